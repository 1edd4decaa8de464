"""Moments and gradients against plain float64 loops and autograd."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model, tiny_tokens

from headcount.pretrained.families import attention_of, family_of, layers_of, projections_of
from headcount.pretrained.running.capture import AttentionCall, observed_attention
from headcount.trimming.audit.heads import HeadStatistics, attention_rows
from headcount.trimming.audit.moments import SideMoments
from headcount.trimming.audit.passes import LocalGradients, fisher_batch, sample_labels


def test_side_moments_are_what_a_loop_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(50, 6, generator=generator) for _ in range(2))
    moments = SideMoments(6)
    moments.add(x[:20], g[:20])
    moments.add(x[20:], g[20:])
    expected = {name: torch.zeros_like(tensor) for name, tensor in moments.sums.items()}
    for row, gradient in zip(x.double(), g.double(), strict=True):
        weight, size = (gradient * gradient).sum(), (row * row).sum()
        expected["count"] += 1
        expected["weight"] += weight
        expected["mean"] += row
        expected["weighted_mean"] += weight * row
        expected["C"] += torch.outer(row, row)
        expected["weighted_C"] += weight * torch.outer(row, row)
        expected["weighted_G"] += size * torch.outer(gradient, gradient)
    for name, tensor in moments.sums.items():
        assert tensor.dtype == torch.float64
        # Both are float64 sums of 50 terms, in another order.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox"])
def test_fisher_gradients_are_the_loss_at_keys_and_values(name: str) -> None:
    """The gradients handed out are those of the summed cross-entropy with the labels that were drawn."""
    model = tiny_model(name).double()
    family = family_of(model.config)
    attentions = [attention_of(layer, family) for layer in layers_of(model, family)]
    ids = tiny_tokens(2, 12)
    told: dict[int, tuple[AttentionCall, torch.Tensor, torch.Tensor]] = {}

    def gather(call: AttentionCall, k: torch.Tensor | None, v: torch.Tensor | None) -> None:
        assert k is not None and v is not None
        told[attentions.index(call.module)] = (call, k.clone(), v.clone())

    fisher_batch(model, attentions, ids, torch.Generator().manual_seed(3), gather, None)
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    _, labels = sample_labels(logits, torch.Generator().manual_seed(3))
    calls: dict[int, AttentionCall] = {}

    def keep(call: AttentionCall) -> None:
        call.k.retain_grad()
        call.v.retain_grad()
        calls[attentions.index(call.module)] = call

    embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    with torch.enable_grad(), observed_attention(model, attentions, keep):
        out = model(inputs_embeds=embedded).logits[:, :-1].flatten(0, 1)
        torch.nn.functional.cross_entropy(out, labels, reduction="sum").backward()
    assert sorted(told) == [0, 1, 2]
    for place, (_, k_grad, v_grad) in told.items():
        # Ours go through a softmax in float32 (relative error 6e-8 of probabilities up to 1).
        torch.testing.assert_close(k_grad, calls[place].k.grad, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(v_grad, calls[place].v.grad, rtol=1e-5, atol=1e-6)


def test_fisher_needs_no_more_than_one_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting the vocabulary's work into chunks changes nothing but which label each row draws."""
    model = tiny_model("llama").double()
    family = family_of(model.config)
    attentions = [attention_of(layer, family) for layer in layers_of(model, family)]
    covariances = []
    for chunk in (2**25, 97 * 5):
        monkeypatch.setattr("headcount.trimming.audit.passes.LOGIT_CHUNK", chunk)
        sums = SideMoments(32)

        def gather(
            call: AttentionCall, k: torch.Tensor | None, v: torch.Tensor | None, moments: SideMoments = sums
        ) -> None:
            moments.add(call.v.detach().transpose(1, 2).flatten(0, 1).flatten(1), None)

        fisher_batch(model, attentions, tiny_tokens(2, 12), torch.Generator().manual_seed(0), gather, None)
        covariances.append(sums.sums["C"])
    torch.testing.assert_close(covariances[0], covariances[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma3_text", "gpt2", "bert"])
def test_local_gradients_are_autograds(name: str) -> None:
    """With every query looked at, keys' and values' gradients are those of <z, attention output>."""
    model = tiny_model(name)
    family = family_of(model.config)
    layer = layers_of(model, family)[1]
    attention, matrix = attention_of(layer, family), projections_of(layer, family, model.config).o
    ids = tiny_tokens(2, 12)
    seen: list[AttentionCall] = []
    with torch.no_grad(), observed_attention(model, [attention], lambda call: seen.append(call)):
        model(ids)
    call = next(c for c in seen if c.module is attention)
    rows = attention_rows(call, 1)
    k_grad, v_grad = LocalGradients(matrix, 5, 1)(call, rows, 0)
    from headcount.core.seeds import torch_generator

    z = torch.randn(2, 12, matrix.shape[0], generator=torch_generator(5, "directions", 1, 0))
    k, v = (side.clone().requires_grad_(True) for side in (call.k, call.v))
    groups = call.q.shape[1] // k.shape[1]
    logits = call.q @ k.repeat_interleave(groups, 1).transpose(-1, -2) * call.scaling
    weights = logits.masked_fill(rows.weights == 0, -torch.inf).softmax(-1)
    heads = (weights @ v.repeat_interleave(groups, 1)).transpose(1, 2).flatten(2)
    ((heads @ matrix.T) * z).sum().backward()
    # The same float32 products in another order.
    torch.testing.assert_close(k_grad, k.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(v_grad, v.grad, rtol=1e-4, atol=1e-5)


def test_labels_follow_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1e4]]).repeat(40_000, 1)
    _, labels = sample_labels(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(labels, minlength=4) / len(labels)
    # Standard deviation of a share is below 0.0025; 0.01 is four of them.
    torch.testing.assert_close(shares, logits[0].softmax(-1), rtol=0, atol=0.01)
    assert int(labels.max()) == 2


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "bert"])
def test_head_statistics_against_eager_attention(name: str) -> None:
    model = tiny_model(name)
    family = family_of(model.config)
    attentions = [attention_of(layer, family) for layer in layers_of(model, family)]
    ids = tiny_tokens(3, 16)
    collected = [HeadStatistics(4) for _ in attentions]
    with (
        torch.no_grad(),
        observed_attention(
            model, attentions, lambda call: collected[attentions.index(call.module)].add(attention_rows(call, 4))
        ),
    ):
        model(ids)
    model.set_attn_implementation("eager")
    weights = model(ids, output_attentions=True).attentions
    for index, statistics in enumerate(collected):
        w = weights[index][:, :, 3::4].double()
        expected = {
            "entropy": torch.special.entr(w).sum(-1).mean((0, 2)),
            "strongest": w.amax(-1).mean((0, 2)),
            "first": w[..., 0].mean((0, 2)),
        }
        for head, averages in enumerate(statistics.averages()):
            for key, value in expected.items():
                # Two float32 softmaxes of the same logits.
                assert averages[key] == pytest.approx(float(value[head]), abs=1e-5)
            logits = w[:, head].log()
            finite = logits.masked_fill(logits.isinf(), torch.nan)
            spread = finite.nan_to_num(-torch.inf).amax(-1) - finite.nan_to_num(torch.inf).amin(-1)
            assert averages["logit_range"] == pytest.approx(float(spread.mean()), rel=1e-3, abs=1e-3)
