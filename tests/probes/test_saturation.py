"""Saturation: errors against the attention written out, the best form against others, resuming, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_tokens

from headcount.core.errors import HeadcountError
from headcount.pretrained.families import attention_of, family_of, layers_of, read_spec
from headcount.pretrained.opening.loading import OpenModel, fingerprint
from headcount.pretrained.running.capture import AttentionCall, observed_attention
from headcount.probes.saturation.ranks import head_forms, looked_at, saturation_rank, window_errors
from headcount.probes.saturation.record import Saturation, summary_json
from headcount.probes.saturation.run import saturation, token_losses


def opened(family: str) -> OpenModel:
    model = tiny_model(family)
    return OpenModel(family, model, None, read_spec(model), fingerprint(model))


def calls_of(model: Any, ids: torch.Tensor) -> list[AttentionCall]:
    found: list[AttentionCall] = []
    attentions = [attention_of(layer, family_of(model.config)) for layer in layers_of(model, family_of(model.config))]
    with torch.no_grad(), observed_attention(model, attentions, found.append):
        model(ids)
    return found


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2", "bert"])
def test_errors_are_those_of_the_attention_written_out(family: str) -> None:
    """Row by row in float64, with keys projected instead of queries, under each family's mask."""
    model = tiny_model(family)
    call = calls_of(model, tiny_tokens(3, 20))[0]
    forms = head_forms([call], [[0, 1]])
    positions = looked_at(20, 5)
    squares, lengths, ranges = window_errors(call, 2, positions, forms)
    spec = read_spec(model).layers[0]
    groups = spec.n_heads // spec.n_kv_heads
    for head in range(spec.n_heads):
        q, k, v = call.q[2, head].double(), call.k[2, head // groups].double(), call.v[2, head // groups].double()
        for rank in (0, 1, spec.qk_dim // 2, spec.qk_dim):
            projection = forms.a[head][:, :rank] @ forms.b[head][:rank]
            error = length = spread = 0.0
            for i in positions.tolist():
                first = 0 if spec.window is None else max(0, i + 1 - spec.window)
                seen = slice(first, i + 1) if spec.causal else slice(0, 20)
                exact = call.scaling * k[seen] @ q[i]
                cut = call.scaling * ((k[seen] - forms.mean[head]) @ projection.T) @ q[i]
                output = exact.softmax(0) @ v[seen]
                error += float((cut.softmax(0) @ v[seen] - output).square().sum())
                length += float(output.square().sum())
                spread += float(exact.max() - exact.min()) / len(positions)
            # Float32 activations and softmax: the last digits differ.
            assert float(squares[head, rank]) == pytest.approx(error, rel=1e-3, abs=1e-8)
            assert float(lengths[head]) == pytest.approx(length, rel=1e-4)
            assert float(ranges[head]) == pytest.approx(spread, rel=1e-4)


def test_no_other_form_of_the_same_rank_is_nearer() -> None:
    """Eckart-Young: the dropped eigenvalues, below plain principal components of the keys and random forms."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(2, 8, 8, generator=generator, dtype=torch.float64)
    q, k = (torch.randn(1, 1, 400, 8, generator=generator, dtype=torch.float64) @ m for m in mix)
    call = AttentionCall(torch.nn.Module(), q, k, k, None, 1.0, None)
    forms = head_forms([call], [[0]])
    centred = k[0, 0] - k[0, 0].mean(0)
    logits = q[0, 0] @ centred.T

    def distance(form: torch.Tensor) -> float:
        return float((q[0, 0] @ form @ centred.T - logits).square().mean())

    principal = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)
    values = torch.linalg.svdvals(logits).square() / logits.numel()
    for rank in range(1, 8):
        own = forms.query_maps([rank])[0]
        assert torch.linalg.matrix_rank(own) == rank
        assert distance(own) == pytest.approx(float(values[rank:].sum()), rel=1e-6)
        chosen = principal[:, :rank]
        assert distance(own) <= distance(chosen @ chosen.T) * (1 + 1e-9)
    assert torch.allclose(forms.query_maps([8])[0], torch.eye(8, dtype=torch.float64), atol=1e-6)


def test_full_ranks_lose_nothing_and_mapped_queries_equal_projected_keys() -> None:
    model, ids = tiny_model("qwen2"), tiny_tokens(2, 24)
    calls = calls_of(model, ids)
    forms = [head_forms([call], [[0, 1]]) for call in calls]
    heads = calls[0].q.shape[1]
    d = calls[0].q.shape[3]
    dense = token_losses(model, ids, None, None)
    reference = model(ids).logits.double().log_softmax(-1)[:, :-1]
    wanted = -reference.gather(-1, ids[:, 1:, None]).flatten()
    torch.testing.assert_close(dense, wanted, rtol=1e-5, atol=1e-5)
    full = token_losses(model, ids, [own.query_maps([d] * heads) for own in forms], None)
    torch.testing.assert_close(full, dense, rtol=1e-4, atol=1e-4)
    cut = token_losses(model, ids, [own.query_maps([2] * heads) for own in forms], None)
    assert float((cut - dense).abs().max()) > 1e-3

    attentions = [attention_of(layer, family_of(model.config)) for layer in layers_of(model, family_of(model.config))]

    def project_keys(call: AttentionCall) -> None:
        own = forms[attentions.index(call.module)]
        groups = heads // call.k.shape[1]
        maps = own.query_maps([2] * heads).float()
        keys = call.k.repeat_interleave(groups, 1) - own.mean.float()[:, None]
        call.k, call.v = keys @ maps.transpose(1, 2), call.v.repeat_interleave(groups, 1)

    with torch.no_grad(), observed_attention(model, attentions, project_keys):
        logits = model(ids).logits.double().log_softmax(-1)[:, :-1]
    torch.testing.assert_close(cut, -logits.gather(-1, ids[:, 1:, None]).flatten(), rtol=1e-4, atol=1e-4)


def test_saturation_ranks_ask_for_all_higher_ranks_too() -> None:
    assert saturation_rank([0.5, 0.005, 0.3, 0.05, 0.0], 0.1) == 3
    assert saturation_rank([0.01, 0.02, 0.0], 0.1) == 0
    assert saturation_rank([1.0, 1.0, 1.0], 0.1) == 2, "the full rank is exact, whatever rounding says"


def test_a_run_that_was_stopped_goes_on_to_the_same_record(tmp_path: Path) -> None:
    model = opened("llama")
    windows = {16: {"a": tiny_tokens(6, 16)}, 32: {"a": tiny_tokens(4, 32)}}
    whole = saturation(model, windows, out=tmp_path / "whole", matmul_dtype="model")

    class StopError(Exception):
        pass

    for stage, at in (("context 16", 2), ("losses 16", 3), ("context 32", 1)):

        def stop(name: str, done: int, total: int, stage: str = stage, at: int = at) -> None:
            if (name, done) == (stage, at):
                raise StopError

        with pytest.raises(StopError):
            saturation(model, windows, out=tmp_path / "stopped", matmul_dtype="model", progress=stop)
    again = saturation(model, windows, out=tmp_path / "stopped", matmul_dtype="model")
    assert again.record == whole.record == Saturation.open(tmp_path / "whole").record
    assert not list((tmp_path / "stopped" / "work").iterdir())
    assert model.model.config._attn_implementation == "sdpa"
    rows = whole.to_pandas()
    assert len(rows) == 2 * 3 * 4 and rows["rank_0.01"].max() <= 16
    assert (rows["rank_0.01"] >= rows["rank_0.05"]).all() and (rows["rank_0.05"] >= rows["rank_0.1"]).all()
    assert whole.record.contexts[0].losses[0].name == "dense"
    for context in summary_json(whole)["contexts"]:
        own = rows[rows.context == context["context"]].drop(columns=["context", "head"])
        means = own.groupby("layer", as_index=False).mean().to_dict("records")
        assert [list(layer) for layer in context["layers"]] == [list(layer) for layer in means]
        for layer, mean in zip(context["layers"], means, strict=True):
            assert layer == pytest.approx(mean, rel=4e-16)  # both sum four numbers: one rounding apart at most


def test_a_planted_rank_is_found() -> None:
    """Keys in three dimensions: rank 3 is exact, rank 2 is not."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 1, 64, 8, generator=generator) for _ in range(3))
    k = k[..., :3] @ torch.randn(3, 8, generator=generator) + 5.0
    call = AttentionCall(torch.nn.Module(), q, k, v, None, 0.5, None)
    squares, lengths, _ = window_errors(call, 1, looked_at(64, 16), head_forms([call], [[0]]))
    errors = np.sqrt(squares[0].numpy() / float(lengths[0]))
    assert errors[2] > 0.05 and errors[3:].max() < 1e-4


@pytest.mark.parametrize(
    ("contexts", "says"),
    [([], "no context"), ([32, 16], "must increase"), ([16, 16], "must increase"), ([4], "too short")],
)
def test_bad_contexts(contexts: list[int], says: str) -> None:
    from headcount.probes.windows import check_contexts

    with pytest.raises(HeadcountError, match=says):
        check_contexts(contexts)


def test_one_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadcountError, match="one window of 16"):
        saturation(opened("llama"), {16: {"a": tiny_tokens(1, 16)}}, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()
