"""Both qSA constructions: every set of small sizes, sampled ones elsewhere, dimensions, gaps, bits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from headcount import constructions, tasks
from headcount.constructions.qsa import certified as qsa_certificate
from headcount.constructions.qsa.certified import build_qsa_certificate, sign_keys
from headcount.constructions.qsa.curve import curve_gap, curve_query, least_curve_gap
from headcount.constructions.qsa.polytope import build_qsa_polytope
from headcount.constructions.separators import coherence, coherence_gap, separate
from headcount.core.errors import HeadcountError
from headcount.tasks import Batch
from headcount.tasks.subsets import random_subsets

SMALL = [(5, 1), (5, 2), (6, 3), (7, 2), (5, 4), (5, 5), (1, 1)]


def every_set(tokens: int, sparsity: int, dim: int) -> Batch:
    """Sequences in which each set of the size occurs, with vectors on the unit sphere."""
    sets = np.array(list(itertools.combinations(range(tokens), sparsity)))
    rows = np.resize(np.arange(len(sets)), -(-len(sets) // tokens) * tokens).reshape(-1, tokens)
    z = np.random.default_rng(0).standard_normal((len(rows), tokens, dim))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return tasks.get("qsa", tokens=tokens, sparsity=sparsity, dim=dim).batch(z=z, y=sets[rows])


@pytest.mark.parametrize("name", ["qsa-certificate", "qsa-polytope"])
@pytest.mark.parametrize("tokens, sparsity", SMALL)
@pytest.mark.parametrize("epsilon", [1e-2, 1e-7])
def test_every_set_of_small_sizes(name: str, tokens: int, sparsity: int, epsilon: float) -> None:
    built = constructions.build(name, tokens=tokens, sparsity=sparsity, dim=3, epsilon=epsilon)
    assert built.certificate.guarantee == "all inputs"
    found = built.verify(every_set(tokens, sparsity, 3))
    assert found.verified and found.wrong == 0
    assert found.max_error <= epsilon / 2 + 1e-10  # the other half is for rounding, here of float64


@pytest.mark.parametrize("kind", ["uniform", "adversarial", "balanced"])
@pytest.mark.parametrize("tokens, sparsity", [(64, 4), (100, 6), (40, 20)])
def test_certificate_on_sampled_sequences(tokens: int, sparsity: int, kind: str) -> None:
    built = build_qsa_certificate(tokens, sparsity, 4)
    assert built.certificate.guarantee == "the subsets given"
    found = built.verify(built.task.sample(0, 3, kind))
    assert found.verified and found.max_error < 1e-3


@pytest.mark.parametrize("tokens, sparsity", [(64, 3), (500, 2), (1000, 1)])
def test_polytope_on_sampled_sequences(tokens: int, sparsity: int) -> None:
    built = build_qsa_polytope(tokens, sparsity, 4)
    for kind in ("uniform", "adversarial"):
        assert built.verify(built.task.sample(0, 1, kind)).verified


@pytest.mark.parametrize("sparsity", range(1, 17))
def test_polytope_has_exactly_d_plus_2q_dimensions(sparsity: int) -> None:
    built = build_qsa_polytope(64, sparsity, 8)
    assert built.certificate.embedding_dim == 8 + 2 * sparsity
    assert built.certificate.single_map_dim == 8 + 4 * sparsity
    assert built.module.unit.w_q.shape == (1, 8 + 2 * sparsity, 2 * sparsity)
    assert built.module.queries.keys.shape == (64, 2 * sparsity)


def test_certificate_grows_like_q_log_n() -> None:
    """k / (q ln N) stays between 0.8 and 3 while q ln N grows by a factor of 7."""
    for tokens, sparsity in ((64, 2), (64, 8), (256, 4), (1024, 8)):
        certificate = build_qsa_certificate(tokens, sparsity, 8).certificate
        assert 0.8 < (certificate.embedding_dim - 8) / (sparsity * math.log(tokens)) < 3


def test_certificate_of_one_token_needs_keys_that_differ() -> None:
    """q = 1: N random sign keys are all different from about k = 2 log2 N on (birthdays), 2.9 ln N."""
    for tokens in (64, 1024):
        keys = build_qsa_certificate(tokens, 1, 8).module.queries.keys
        assert len(torch.unique(keys, dim=0)) == tokens
        assert math.log2(tokens) <= keys.shape[1] <= 2 * math.log2(tokens) + 4


def test_keys_are_saved_signs_and_seeded() -> None:
    first, again, other = (build_qsa_certificate(32, 3, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.module.queries.keys, again.module.queries.keys)
    assert not torch.equal(sign_keys(1, 32, 9), sign_keys(2, 32, 9))
    assert other.certificate.guarantee == "all inputs"  # C(32, 3) sets are checked one by one
    assert set(first.module.queries.keys.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("tokens, sparsity, key_dim", [(40, 3, 30), (64, 8, 40), (128, 4, 36)])
def test_separators_do_what_they_say(tokens: int, sparsity: int, key_dim: int) -> None:
    keys = sign_keys(0, tokens, key_dim)
    sets = torch.from_numpy(random_subsets(np.random.default_rng(0), 300, tokens, sparsity))
    on = torch.linspace(1, 1.5, sparsity, dtype=torch.float64)
    w, gaps = separate(keys, sets, on, 0.1)
    values = w @ keys.T
    torch.testing.assert_close(values.gather(1, sets), on.expand(300, -1), rtol=0, atol=1e-9)
    off = values.scatter(1, sets, -math.inf).amax(1)
    torch.testing.assert_close(gaps, 1 - off, rtol=0, atol=1e-9)
    plain = torch.linalg.lstsq(keys[sets], on.expand(300, -1)[..., None], driver="gelsd").solution[..., 0]
    plain_gaps = 1 - (plain @ keys.T).scatter(1, sets, -math.inf).amax(1)
    assert (gaps > 0).float().mean() > 0.97
    assert (plain_gaps > 0).float().mean() < (gaps > 0).float().mean()


def test_separation_that_cannot_be_is_not_claimed() -> None:
    """Equal keys cannot be told apart: their gap is 0, and the construction says so by being wrong."""
    keys = sign_keys(0, 12, 20)
    keys[5] = keys[0]
    _, gaps = separate(keys, torch.tensor([[0, 1], [2, 3]]), torch.ones(2, dtype=torch.float64), 0.25)
    assert gaps[0] <= 1e-9 < gaps[1]
    built = build_qsa_certificate(12, 2, 2, key_dim=1)
    found = built.verify(every_set(12, 2, 2))
    assert not found.verified
    assert found.wrong > 0 and found.first_failure.error > built.certificate.epsilon
    assert built.certificate.guarantee == "the subsets given"


def test_coherence_covers_every_set() -> None:
    """Brute force over all sets: the plain solution's gap is never below the bound."""
    keys = sign_keys(0, 9, 400)
    mu = coherence(keys)
    gram = keys @ keys.T / 400
    assert mu == pytest.approx(float((gram - torch.eye(9)).abs().max()))
    for q in (1, 2, 3):
        sets = torch.tensor(list(itertools.combinations(range(9), q)))
        a = keys[sets]
        w = (a.mT @ torch.linalg.solve(a @ a.mT, torch.ones(len(sets), q, 1, dtype=torch.float64)))[..., 0]
        gaps = 1 - (w @ keys.T).scatter(1, sets, -math.inf).amax(1)
        assert float(gaps.min()) >= coherence_gap(mu, q) > 0
    assert coherence_gap(0.5, 4) == -math.inf


def test_guarantee_for_all_inputs_by_coherence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qsa_certificate, "ENUMERATED_SETS", 10)
    built = build_qsa_certificate(30, 2, 2, guarantee="all inputs")
    assert built.certificate.guarantee == "all inputs"
    assert coherence_gap(coherence(built.module.queries.keys), 2) >= 0.5
    loose = build_qsa_certificate(30, 2, 2)
    assert loose.certificate.guarantee == "the subsets given"
    assert loose.certificate.embedding_dim < built.certificate.embedding_dim
    assert built.verify(every_set(30, 2, 2)).verified


@pytest.mark.parametrize("tokens, sparsity", [(7, 2), (9, 3), (8, 5), (6, 6), (12, 1)])
def test_curve_polynomial_and_its_worst_gap(tokens: int, sparsity: int) -> None:
    built = build_qsa_polytope(tokens, sparsity, 2)
    sets = torch.tensor(list(itertools.combinations(range(tokens), sparsity)))
    theta = torch.arange(tokens, dtype=torch.float64) * (2 * math.pi / tokens)
    factors = 1 - torch.cos(theta[None, :, None] - theta[sets][:, None, :])
    product = factors.prod(-1)  # (sets, tokens)
    values = curve_query(sets, tokens) @ built.module.queries.keys.T
    shifted = values - values.gather(1, sets[:, :1])
    torch.testing.assert_close(shifted, -product, rtol=0, atol=1e-12)
    if sparsity < tokens:
        gaps = product.scatter(1, sets, math.inf).amin(1)
        torch.testing.assert_close(curve_gap(sets, tokens), gaps, rtol=1e-12, atol=0)
        assert float(gaps.min()) == pytest.approx(least_curve_gap(tokens, sparsity), rel=1e-12)
        assert built.certificate.gap == least_curve_gap(tokens, sparsity)


@pytest.mark.parametrize(
    "name, tokens, sparsity",
    [("qsa-certificate", 20, 2), ("qsa-certificate", 48, 6), ("qsa-polytope", 20, 2)],
)
def test_the_analysed_bits_suffice_and_are_not_far_off(name: str, tokens: int, sparsity: int) -> None:
    built = constructions.build(name, tokens=tokens, sparsity=sparsity, dim=3, epsilon=0.01)
    bits = built.certificate.bits
    batch = built.task.sample(0, 2)
    assert built.verify(batch, f"float:{bits}").verified
    assert not built.verify(batch, f"float:{bits - 14}").verified


def test_error_is_not_hidden_where_float64_is_too_coarse() -> None:
    built = build_qsa_polytope(64, 16, 2)
    assert built.certificate.bits > 53
    found = built.verify(built.task.sample(0, 2))
    assert not found.verified and found.wrong > 0
    assert found.first_failure is not None and found.first_failure.error > 1e-3


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("qsa-certificate", {"sparsity": 65}, "sparsity 65 is larger"),
        ("qsa-polytope", {"sparsity": 65}, "sparsity 65 is larger"),
        ("qsa-polytope", {"dim": 0}, "dim must be"),
        ("qsa-polytope", {"epsilon": 0}, "epsilon 0 is outside"),
        ("qsa-certificate", {"epsilon": -1e-3}, "epsilon"),
        ("qsa-certificate", {"key_dim": 0}, "key_dim 0"),
    ],
)
def test_refusals(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        constructions.build(name, **options)


@pytest.mark.parametrize("tokens, sparsity", [(7, 2), (9, 4), (6, 6), (12, 1)])
def test_wide_arithmetic_agrees_with_float64_where_that_is_enough(tokens: int, sparsity: int) -> None:
    built = build_qsa_polytope(tokens, sparsity, 2, epsilon=1e-6)
    batch = every_set(tokens, sparsity, 2)
    exact = built.outputs(batch, "fp64", "each")
    np.testing.assert_allclose(built.outputs(batch, "wide:200", "each"), exact, rtol=0, atol=1e-9)
    assert built.verify(batch, "wide:100").verified


def neighbours(tokens: int, sparsity: int) -> Batch:
    """Sets of q neighbours, which have the least gap of all, and random signs for vectors."""
    y = (np.arange(tokens)[:, None] + np.arange(sparsity)) % tokens
    z = np.random.default_rng(0).choice([-1.0, 1.0], (tokens, 1))
    return tasks.get("qsa", tokens=tokens, sparsity=sparsity, dim=1).batch(z=z, y=y)


@pytest.mark.parametrize("tokens, sparsity", [(16, 2), (40, 3), (12, 5)])
def test_the_analysed_bits_suffice_for_the_worst_sets(tokens: int, sparsity: int) -> None:
    built = build_qsa_polytope(tokens, sparsity, 1, epsilon=0.01)
    assert built.certificate.bits < 53
    assert built.verify(neighbours(tokens, sparsity), f"float:{built.certificate.bits}").verified


def test_wide_arithmetic_verifies_what_float64_cannot() -> None:
    """The sufficient bits (and 4 for coefficients above 1) are enough; half, coarser than the gap 2^-62, is not."""
    built = build_qsa_polytope(64, 16, 1)
    bits = built.certificate.bits
    assert bits > 80
    batch = neighbours(64, 16)
    assert not built.verify(batch).verified
    assert built.verify(batch, f"wide:{bits + 4}").verified
    assert not built.verify(batch, f"wide:{bits // 2}").verified


def test_wide_precision_is_for_the_polytope() -> None:
    built = constructions.build("match2", tokens=4, modulus=5)
    with pytest.raises(HeadcountError, match="is for qsa-polytope only"):
        built.verify(built.task.sample(0), "wide:80")
    with pytest.raises(HeadcountError, match="choose p from 2 to 4096"):
        built.verify(built.task.sample(0), "wide:9999")
