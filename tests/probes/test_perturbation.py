"""Rows of attention beside the softmax perturbation bounds: each against rows written out, one by one, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_tokens

from headcount.pretrained.families import attention_of, family_of, layers_of, read_spec
from headcount.pretrained.opening.loading import OpenModel, fingerprint
from headcount.pretrained.running.capture import AttentionCall, observed_attention
from headcount.probes.saturation.inequalities import (
    long_context_bound,
    row_bounds,
    sharper_long_context_bound,
    total_variation_bound,
)
from headcount.probes.saturation.perturbation import BY_RANK, bound_ranks, bound_records, window_rows
from headcount.probes.saturation.ranks import head_forms, looked_at
from headcount.probes.saturation.record import mean_errors, summary_json
from headcount.probes.saturation.run import QUERIES, saturation

ROUNDING = 1e-12  # float64 sums of up to 32 weights below 1; logits of the tiny models are below 100


def calls_of(model: Any, ids: torch.Tensor) -> list[AttentionCall]:
    calls: list[AttentionCall] = []
    attentions = [attention_of(layer, family_of(model.config)) for layer in layers_of(model, family_of(model.config))]
    with torch.no_grad(), observed_attention(model, attentions, calls.append):
        model(ids)
    return calls


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2", "bert"])
def test_rows_are_those_written_out_and_no_bound_is_broken(family: str) -> None:
    model = tiny_model(family)
    call = calls_of(model, tiny_tokens(3, 20))[0]
    forms, positions = head_forms([call], [[0, 1]]), looked_at(20, 5)
    spec = read_spec(model).layers[0]
    ranks = bound_ranks(spec.qk_dim)
    rows = window_rows(call, 2, positions, forms, ranks)
    groups = spec.n_heads // spec.n_kv_heads
    checked = 0
    for head in range(spec.n_heads):
        q, k, v = (side[2].double().numpy() for side in (call.q, call.k, call.v))
        q, k, v = q[head], k[head // groups], v[head // groups]
        for place, i in enumerate(positions.tolist()):
            first = 0 if spec.window is None else max(0, i + 1 - spec.window)
            seen = slice(first, i + 1) if spec.causal else slice(0, 20)
            centred = k[seen] - forms.mean[head].numpy()
            values = v[seen]
            assert float(rows["tokens"][head, place]) == len(values)
            trace = np.trace(np.cov(values.T, bias=True))
            radius = max(np.linalg.norm(value - values.mean(0)) for value in values)
            assert float(rows["value_trace"][head, place]) == pytest.approx(trace, rel=1e-9)
            assert float(rows["value_radius"][head, place]) == pytest.approx(radius, rel=1e-9)
            exact = call.scaling * centred @ q[i]
            for number, rank in enumerate(ranks):
                projection = (forms.a[head][:, :rank] @ forms.b[head][:rank]).numpy()
                cut = call.scaling * (centred @ projection.T) @ q[i]
                # The exact logits of a window are those at full rank, A B = I but for floored directions.
                whole = call.scaling * (centred @ (forms.a[head] @ forms.b[head]).numpy().T) @ q[i]
                np.testing.assert_allclose(whole, exact, rtol=1e-6, atol=1e-6)
                wanted = row_bounds(whole, cut)
                weights = [np.exp(s - s.max()) / np.exp(s - s.max()).sum() for s in (whole, cut)]
                error = np.linalg.norm((weights[1] - weights[0]) @ values)
                measured = {name: float(rows[name][head, number, place]) for name in BY_RANK}
                for name in ("half_range", "logit_bound", "total_variation", "squared_distance"):
                    assert measured[name] == pytest.approx(wanted[name], rel=1e-9, abs=ROUNDING)
                assert measured["output_error"] == pytest.approx(error, rel=1e-9, abs=ROUNDING)
                delta, reach = measured["half_range"], measured["logit_bound"]
                assert measured["total_variation"] <= total_variation_bound(delta) + ROUNDING
                assert measured["squared_distance"] <= long_context_bound(delta, reach, len(values)) + ROUNDING
                assert measured["squared_distance"] <= sharper_long_context_bound(delta, reach, len(values)) + ROUNDING
                assert error <= 2 * total_variation_bound(delta) * radius + ROUNDING
                checked += 1
    assert checked == spec.n_heads * 5 * len(ranks)


def test_chunks_of_heads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    call = calls_of(tiny_model("qwen2"), tiny_tokens(2, 20))[1]
    forms, positions = head_forms([call], [[0]]), looked_at(20, 5)
    whole = window_rows(call, 1, positions, forms, [3, 6])
    monkeypatch.setattr("headcount.probes.saturation.perturbation.CHUNK", 1)
    for name, rows in window_rows(call, 1, positions, forms, [3, 6]).items():
        # Matrix products of other batch sizes may add in another order.
        torch.testing.assert_close(rows, whole[name], rtol=1e-10, atol=1e-12)


def test_records_are_medians_and_count_what_breaks_a_bound() -> None:
    call = calls_of(tiny_model("llama"), tiny_tokens(2, 20))[0]
    forms, positions = head_forms([call], [[0]]), looked_at(20, 5)
    rows = {name: part.numpy() for name, part in window_rows(call, 1, positions, forms, [2, 8]).items()}
    first, second = bound_records(rows, [2, 8])
    assert (first.rank, second.rank) == (2, 8) and first.rows == 4 * 5 and first.violations == second.violations == 0
    deltas, reaches = rows["half_range"][:, 1].ravel(), rows["logit_bound"][:, 1].ravel()
    lengths = rows["tokens"].ravel()
    squared = [long_context_bound(d, b, int(n)) for d, b, n in zip(deltas, reaches, lengths, strict=True)]
    totals = [total_variation_bound(delta) for delta in deltas]
    # Records keep four digits.
    assert second.half_range == pytest.approx(np.median(deltas), rel=1e-3)
    assert second.squared_bound == pytest.approx(np.median(squared), rel=1e-3)
    assert second.total_variation_bound == pytest.approx(np.median(totals), rel=1e-3)
    assert second.long_context_says_more == np.mean(np.array(squared) < 2 * np.array(totals) ** 2)
    wrong = dict(rows)
    wrong["total_variation"] = rows["total_variation"].copy()
    wrong["total_variation"][2, 1, 3] = totals[2 * 5 + 3] + 1e-6
    assert [record.violations for record in bound_records(wrong, [2, 8])] == [0, 1]


def test_logits_of_any_size_give_finite_bounds() -> None:
    """e^(2b) of b = 5,000 is no float64."""
    q = torch.full((1, 1, 16, 4), 100.0)
    k = torch.randn(1, 1, 16, 4, generator=torch.Generator().manual_seed(0)) * 100
    call = AttentionCall(torch.nn.Module(), q, k, k, None, 1.0, None)
    rows = window_rows(call, 0, looked_at(16, 4), head_forms([call], [[0]]), [1])
    (record,) = bound_records({name: part.numpy() for name, part in rows.items()}, [1])
    assert record.logit_bound > 1000 and np.isfinite(record.squared_bound) and record.violations == 0


def test_absolute_errors_of_a_run_are_those_computed_directly(tmp_path: Path) -> None:
    model, ids = tiny_model("llama"), tiny_tokens(6, 16)
    opened = OpenModel("tiny", model, None, read_spec(model), fingerprint(model))
    run = saturation(opened, {16: {"a": ids}, 32: {"a": tiny_tokens(4, 32)}}, out=tmp_path / "s", matmul_dtype="model")
    context = run.record.contexts[0]
    positions = looked_at(16, -(-QUERIES // 3))
    assert context.queries == 3 * len(positions)
    calls = calls_of(model, ids)
    for layer, call in enumerate(calls):
        forms = head_forms([call], [[0, 2, 4]])
        for head in range(4):
            curve = context.layers[layer].heads[head]
            for rank in (0, 2, 8):
                squares = []
                projection = forms.a[head][:, :rank] @ forms.b[head][:rank]
                for window in (1, 3, 5):
                    q, k, v = call.q[window, head], call.k[window, head // 2], call.v[window, head // 2]
                    q, k, v = q.double(), k.double(), v.double()
                    for i in positions.tolist():
                        exact = (call.scaling * k[: i + 1] @ q[i]).softmax(0)
                        cut = (call.scaling * (k[: i + 1] - forms.mean[head]) @ projection.T @ q[i]).softmax(0)
                        squares.append(float(((cut - exact) @ v[: i + 1]).square().sum()))
                # The record's curve has four digits; activations and its softmax are float32.
                assert curve.absolute(rank) == pytest.approx(np.sqrt(np.mean(squares)), rel=2e-3, abs=1e-5)
    heads = [head for layer in context.layers for head in layer.heads]
    error = mean_errors(context)[8]
    assert error.absolute == pytest.approx(np.mean([head.absolute(8) or 0.0 for head in heads]))
    assert error.relative == pytest.approx(np.mean([head.errors[8] for head in heads]))
    told = summary_json(run)["contexts"][0]
    assert told["errors"][8]["absolute"] == error.absolute
    assert [bound["rank"] for bound in told["bounds"]] == [2, 4, 8, 12]
    assert all(bound["violations"] == 0 and bound["rows"] == 3 * 4 * context.queries for bound in told["bounds"])
    layers = [layer.bounds for layer in context.layers]
    assert all(bound.violations == 0 and bound.rows == 4 * context.queries for own in layers for bound in own)
