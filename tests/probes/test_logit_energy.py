"""Components that hold 90% of the energy: against the singular values of logits and weight products written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, tiny_model, tiny_tokens
from scipy.special import softmax

from headcount.pretrained.families import attention_of, family_of, layers_of, read_spec
from headcount.pretrained.opening.loading import OpenModel, fingerprint
from headcount.pretrained.running.capture import AttentionCall, observed_attention
from headcount.probes.saturation.energy import components, logit_components, product_energies, weight_components
from headcount.probes.saturation.ranks import head_forms, hidden_keys, looked_at
from headcount.probes.saturation.record import component_counts
from headcount.probes.saturation.run import QUERIES, saturation


def calls_of(model: Any, ids: torch.Tensor) -> list[AttentionCall]:
    calls: list[AttentionCall] = []
    attentions = [attention_of(layer, family_of(model.config)) for layer in layers_of(model, family_of(model.config))]
    with torch.no_grad(), observed_attention(model, attentions, calls.append):
        model(ids)
    return calls


def count_by_hand(matrix: np.ndarray, share: float = 0.9) -> int:
    """Components of a matrix that hold a share of its squared Frobenius norm."""
    energies = np.linalg.svd(matrix, compute_uv=False) ** 2
    for count in range(1, len(energies) + 1):
        if energies[:count].sum() >= share * (matrix**2).sum():
            return count
    raise AssertionError("no number of components holds the share")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [10, 60])
def test_logits_of_a_window_against_their_whole_matrix(family: str, tokens: int) -> None:
    """Windows shorter and longer than a head is wide."""
    for call in calls_of(tiny_model(family), tiny_tokens(2, tokens)):
        groups = call.q.shape[1] // call.k.shape[1]
        positions = looked_at(tokens, 4)
        counts, squares = logit_components(call, 1, positions)
        bias = hidden_keys(call, 1, positions).double().numpy()
        for head, count in enumerate(counts.tolist()):
            logits = (call.scaling * call.q[1, head].double() @ call.k[1, head // groups].double().T).numpy()
            centred = logits - logits.mean(1, keepdims=True)
            assert count == count_by_hand(centred)
            u, s, vt = np.linalg.svd(centred)
            cut = (u[:, :count] * s[:count]) @ vt[:count]
            weights = [softmax(own[positions.numpy()] + bias, axis=-1) for own in (cut, logits)]
            lost = (weights[0] - weights[1]) @ call.v[1, head // groups].double().numpy()
            assert float(squares[head]) == pytest.approx((lost**2).sum(), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_products_against_the_whole_product(family: str) -> None:
    """Heads taken out of each family's own layout by what its modules compute: x W_q' is linear in x."""
    model = tiny_model(family)
    counts = weight_components(model)
    spec = read_spec(model)
    for index, layer in enumerate(layers_of(model, family_of(model.config))):
        attention: Any = attention_of(layer, family_of(model.config))
        eye, d = torch.eye(48), spec.layers[index].qk_dim
        groups = spec.layers[index].n_heads // spec.layers[index].n_kv_heads
        zero = torch.zeros(1, 48)
        if family == "gpt2":
            q, k = (attention.c_attn(eye) - attention.c_attn(zero)).split(48, dim=1)[:2]
        elif family == "gpt_neox":
            fused = (attention.query_key_value(eye) - attention.query_key_value(zero)).view(48, 4, 3 * d)
            q, k = (fused[..., part * d : (part + 1) * d].reshape(48, -1) for part in (0, 1))
        else:
            names = ("query", "key") if family == "bert" else ("q_proj", "k_proj")
            q, k = (getattr(attention, name)(eye) - getattr(attention, name)(zero) for name in names)
        q, k = q.double().numpy(), k.double().numpy()
        for head in range(spec.layers[index].n_heads):
            own = k[:, d * (head // groups) :][:, :d]
            assert counts[index][head] == count_by_hand(q[:, d * head : d * (head + 1)] @ own.T)


def test_singular_values_of_a_product_without_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(3, 40, 8, generator=generator, dtype=torch.float64)
    right = torch.randn(3, 5, 8, generator=generator, dtype=torch.float64)
    wanted = torch.linalg.svdvals(left @ right.transpose(1, 2)).square()
    torch.testing.assert_close(product_energies(left, right)[:, :5], wanted, rtol=1e-10, atol=1e-12)


def test_energies_of_all_windows_are_those_of_all_their_logits() -> None:
    call = calls_of(tiny_model("qwen2"), tiny_tokens(3, 30))[1]
    forms = head_forms([call], [[0, 2]])
    for head in range(4):
        q = call.q[[0, 2], head].double().reshape(60, -1)
        k = call.k[[0, 2], head // 2].double().reshape(60, -1)
        logits = q @ (k - k.mean(0)).T
        wanted = torch.linalg.svdvals(logits).square()[: q.shape[1]] / 60**2
        # Eigenvalues of a product of two roots: rounding is relative to the largest.
        torch.testing.assert_close(forms.energies[head], wanted, rtol=1e-8, atol=1e-10 * float(wanted[0]))
        assert int(components(forms.energies[head])) == count_by_hand(logits.numpy())


def test_constant_keys_have_no_components() -> None:
    """Rounding of their mean is no energy; attention is even, and nothing is lost without it."""
    generator = torch.Generator().manual_seed(0)
    q, v = (torch.randn(1, 2, 12, 4, generator=generator) for _ in range(2))
    k = torch.randn(1, 2, 1, 4, generator=generator).expand(1, 2, 12, 4)
    counts, squares = logit_components(AttentionCall(torch.nn.Module(), q, k, v, None, 0.5, None), 0, looked_at(12, 3))
    assert counts.tolist() == [0, 0] and float(squares.max()) < 1e-24


def test_counts_at_the_edges() -> None:
    energies = torch.tensor([[9.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert components(energies).tolist() == [1, 1, 0, 3]
    assert components(torch.tensor([0.7, 0.2, 0.1])).item() == 2, "0.7 + 0.2 is 90%, whatever rounding says"


def test_a_run_keeps_means_over_its_measured_windows(tmp_path: Path) -> None:
    model, ids = tiny_model("llama"), tiny_tokens(6, 16)
    opened = OpenModel("tiny", model, None, read_spec(model), fingerprint(model))
    run = saturation(opened, {16: {"a": ids}}, out=tmp_path / "s", matmul_dtype="model")
    context = run.record.contexts[0]
    expected, errors = [], []
    for layer, call in zip(context.layers, calls_of(model, ids), strict=True):
        positions = looked_at(16, -(-QUERIES // 3))
        measured = [logit_components(call, window, positions) for window in (1, 3, 5)]
        counts = torch.stack([own for own, _ in measured]).double().mean(0)
        lost = torch.stack([squares for _, squares in measured]).sum(0) / (3 * len(positions))
        pooled = components(head_forms([call], [[0, 2, 4]]).energies)
        for head, curve in enumerate(layer.heads):
            assert curve.energy_rank == pytest.approx(float(counts[head])) and curve.pooled_energy_rank == pooled[head]
            # Outputs' lengths are sums of float32 numbers.
            assert curve.energy_error * (curve.output_rms or 0) == pytest.approx(float(lost[head]) ** 0.5, rel=1e-5)
            expected.append(curve.energy_rank)
            errors.append(curve.energy_error)
    assert run.record.weight_ranks == weight_components(model)
    summary = component_counts(run.record, context)
    assert summary is not None
    assert (summary.window.mean, summary.window.low, summary.window.high) == pytest.approx(
        (np.mean(expected), min(expected), max(expected))
    )
    assert summary.error.mean == pytest.approx(np.mean(errors))
