"""Sizes at the ends of every formula: scales that would be negative, gaps of rounding, numbers beyond float64."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from headcount import bounds, constructions, tasks
from headcount.bounds.base import Sizes
from headcount.bounds.built import LimbPolytope, built_qsa
from headcount.bounds.gap import lower_bound
from headcount.constructions import Construction
from headcount.constructions.matching.any_order import build_match_s
from headcount.constructions.qsa.unit import depth_for, sufficient_bits
from headcount.constructions.separators import separate
from headcount.core.errors import HeadcountError
from headcount.pbit.widths import denominator_bits, numerator_bits
from headcount.tasks.match import modulus_for

UNIFORM_SUFFICES = [(24, 23, 0.49), (24, 22, 0.49), (12, 11, 0.49), (10, 9, 0.48), (16, 15, 0.4)]
"""4 (N-q) / (q eps) is below 1."""


def worst_error(built: Construction, sets: list[tuple[int, ...]]) -> float:
    """Over the sets and all vectors of norm at most 1: sum_j |a_j - t_j|, a read off with one-hot vectors."""
    n, dim = built.task.parameters()["tokens"], built.task.parameters()["dim"]
    y = torch.tensor(sets)[:, None].expand(-1, n, -1)
    rows = []
    for start in range(0, n, dim):
        z = torch.zeros(len(sets), n, dim, dtype=torch.float64)
        for c in range(min(dim, n - start)):
            z[:, start + c, c] = 1
        rows.append(built.module(z, y)[:, 0, : min(dim, n - start)].detach())
    attention = torch.cat(rows, dim=1)
    target = torch.zeros_like(attention).scatter_(1, y[:, 0], 1 / len(sets[0]))
    return float((attention - target).abs().sum(1).max())


@pytest.mark.parametrize("name", ["qsa-polytope", "qsa-certificate"])
@pytest.mark.parametrize(("tokens", "sparsity", "epsilon"), UNIFORM_SUFFICES)
def test_no_scale_is_negative(name: str, tokens: int, sparsity: int, epsilon: float) -> None:
    assert depth_for(tokens, sparsity, epsilon) >= 0
    built = constructions.build(name, tokens=tokens, sparsity=sparsity, dim=8, epsilon=epsilon)
    assert built.certificate.scale >= 0 and built.certificate.bits > 0
    if name == "qsa-certificate" and built.certificate.guarantee != "all inputs":
        return
    sets = list(itertools.combinations(range(tokens), sparsity))
    assert worst_error(built, sets) <= epsilon / 2 + 1e-12  # exact arithmetic's half, and float64 sums


@pytest.mark.parametrize(("tokens", "sparsity", "epsilon"), [*UNIFORM_SUFFICES, (3, 2, 7.0), (5, 5, 0.1)])
def test_no_scale_of_the_integer_polytope_is_negative(tokens: int, sparsity: int, epsilon: float) -> None:
    built = LimbPolytope(tokens, sparsity, 1, 8, epsilon)
    assert built.alpha >= 0
    signs = [[1.0 if j % 2 else -1.0] for j in range(tokens)]
    for subset in itertools.islice(itertools.combinations(range(tokens), sparsity), 20):
        mean = sum(signs[j][0] for j in subset) / sparsity
        assert abs(built.attend(signs, subset)[0] - mean) <= epsilon


def test_gaps_of_rounding_are_none() -> None:
    """Two equal keys cannot be told apart, whatever rounding says; 3 sign dimensions give 4 tokens equal ones."""
    keys = torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], dtype=torch.float64)
    for q in (1, 2, 3):
        sets = torch.tensor(list(itertools.combinations(range(4), q)))
        w, gaps = separate(keys, sets, torch.ones(q, dtype=torch.float64), 0.25)
        split = [(0 in y) != (2 in y) for y in sets.tolist()]
        assert (gaps[torch.tensor(split)] <= 0).all() and w.isfinite().all()
    for seed, q in itertools.product(range(20), (1, 2)):
        built = constructions.build("qsa-certificate", tokens=4, sparsity=q, dim=4, epsilon=0.1, key_dim=3, seed=seed)
        same = len(torch.unique(built.module.queries.keys, dim=0)) < 4
        if same:
            assert built.certificate.guarantee == "the subsets given"
        if built.certificate.guarantee == "all inputs":
            assert worst_error(built, list(itertools.combinations(range(4), q))) <= 0.1


def test_equations_on_the_set_are_met_to_rounding() -> None:
    """Keys of 7 signs, nearly dependent: <w, u_j> = 1 on the set to a few roundings of its 7 products."""
    keys = constructions.build("qsa-certificate", tokens=10, sparsity=3, dim=3, key_dim=7, seed=40).module.queries.keys
    sets = torch.tensor(list(itertools.combinations(range(10), 3)))
    w, gaps = separate(keys, sets, torch.ones(3, dtype=torch.float64), 0.125)
    missed = ((w @ keys.T).gather(1, sets) - 1).abs().amax(1)
    accepted = gaps > 0
    assert accepted.sum() > 50
    roundings = 7 * 2.0**-53 * w.abs().sum(1)[accepted]
    assert (missed[accepted] <= 2 * roundings).all()  # of the computation, and of this check


def test_a_certificate_without_a_gap_is_saved_and_read(tmp_path: Path) -> None:
    built = constructions.build("qsa-certificate", tokens=12, sparsity=2, dim=2, key_dim=1)
    assert built.certificate.gap == -math.inf and built.certificate.scale == math.inf
    built.save(tmp_path)
    assert constructions.load(tmp_path).certificate == built.certificate


@pytest.mark.parametrize("epsilon", [5e-324, 1e-310, 1e-300])
@pytest.mark.parametrize("name", constructions.names())
def test_the_smallest_errors_can_be_asked_for(name: str, epsilon: float) -> None:
    """In exact arithmetic: as many bits as epsilon has, at least; answers of float64 are then still read rightly."""
    sizes = {"tokens": 5, "sparsity": 2} if name.startswith("qsa") else {"tokens": 5, "modulus": 7}
    built = constructions.build(name, **sizes, epsilon=epsilon)
    assert math.isfinite(built.certificate.scale)
    if name.startswith("qsa"):
        assert built.certificate.bits > -math.log2(epsilon)
    else:
        assert built.verify(built.task.sample(0, 4, "adversarial")).wrong == 0
    (row, *_) = built_qsa(Sizes(tokens=5, sparsity=2, dim=2, epsilon=epsilon))
    assert row.needs_bits > -math.log2(epsilon)


@pytest.mark.parametrize("terms", [0.0, 1e-3, 1.0, 3.7, 2.0**40, 1e300])
@pytest.mark.parametrize("key_dim", [1, 2, 7])
def test_bits_in_logarithms_are_those_of_the_formula(terms: float, key_dim: int) -> None:
    tokens, depth, epsilon = 9, 4.5, 0.03
    total = 5 * ((3 + math.ceil(math.log2(key_dim))) * terms + depth) + 2 * 4 + 6
    log2_terms = math.log2(terms) if terms else -math.inf
    assert sufficient_bits(log2_terms, key_dim, tokens, depth, epsilon) == math.ceil(math.log2(2 * total / epsilon))


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("qsa-polytope", {"tokens": 2000, "sparsity": 1500}, "gap of 1500 neighbours among 2000 tokens"),
        ("qsa-polytope", {"tokens": 10**9}, "more than 134,217,728 numbers"),
        ("qsa-certificate", {"tokens": 40, "sparsity": 2, "key_dim": 10**9}, "more than 134,217,728 numbers"),
        ("qsa-certificate", {"tokens": 40, "sparsity": 2, "dim": 10**6}, "more than 134,217,728 numbers"),
        ("match2", {"tokens": 10**17}, "more than 33,554,432 tuples"),
        ("match2", {"tokens": 10**400}, "is above 288230376151711744"),
        ("match3-bigram", {"tokens": 10**17}, "more than 33,554,432 tuples"),
        ("match-s", {"order": 1000}, "order 1000 is above 64"),
        ("match-s", {"order": 5}, "order 5 has no construction"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        constructions.build(name, **sizes)


def test_a_bound_stands_beside_a_construction_only_where_it_applies() -> None:
    """eps < 1/(2q), or 1/q, is a hypothesis of all four; at q = 5 and 0.4 none of them holds."""
    few = constructions.build("qsa-certificate", tokens=20, sparsity=5, dim=1, epsilon=0.4, key_dim=2)
    assert few.certificate.embedding_dim == 3 and lower_bound(few, "fp64") is None
    assert lower_bound(constructions.build("qsa-polytope", tokens=20, sparsity=5, dim=1, epsilon=0.09), "fp64") == 11


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 9, 100, 1000])
@pytest.mark.parametrize("precision_bits", [1, 2, 3, 8, 11])
def test_widths_of_sums_are_those_of_the_largest_sums(tokens: int, precision_bits: int) -> None:
    most = tokens * (2**precision_bits - 1)
    assert denominator_bits(tokens, precision_bits) == most.bit_length()
    assert numerator_bits(tokens, precision_bits) == (most * 2 ** (precision_bits - 1)).bit_length() + 1
    assert numerator_bits(0, precision_bits) == 1
    assert bounds.get("match3-protocol").evaluate(tokens=9, precision_bits=10**12).value == 0  # 2^p is not written out


@pytest.mark.parametrize(("n", "q"), [(1, 1), (2, 1), (2, 2), (3, 2), (9, 4), (30, 7), (64, 63), (50, 1), (200, 90)])
def test_the_longest_number_of_the_polytope_is_found_without_trying_all(n: int, q: int) -> None:
    built = LimbPolytope(n, q, 3, 2, 0.1)
    assert built.undivided_bits == 1 + max(*built._key_bits, *built._query_bits, built.fraction + 1)


def test_large_sparsities_leave_out_the_digits_and_take_no_time() -> None:
    rows = built_qsa(Sizes(tokens=10**12, sparsity=10**9, dim=2, precision_bits=8))
    assert [row.id for row in rows] == ["qsa-polytope", "one-hot keys"]


def test_one_token_needs_no_dimension() -> None:
    assert bounds.get("low-rank-attention").evaluate(tokens=1).value == 0


def test_the_natural_modulus_of_huge_tasks_is_the_limit() -> None:
    assert modulus_for(1) == 1 and modulus_for(10**6, 2) == round(10**6 / 2 / math.log(2))
    assert tasks.get("match-s", tokens=10**9, order=64).parameters()["modulus"] == 2**58
    assert tasks.get("match3-bigram", tokens=10**17).parameters()["modulus"] == round((10**17 - 1) / math.log(2))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_two_residues_and_one_token(order: int) -> None:
    """N = 1: s times the only residue; M = 2: every sequence, by counting."""
    for n in (1, 2, 3):
        built = build_match_s(n, 2, order, 0.49)
        x = np.array(list(itertools.product(range(2), repeat=n)))
        outputs = built.outputs(built.task.batch(x=x), "fp64", "each")
        for row, output in zip(x.tolist(), outputs, strict=True):
            want = [any((i + sum(rest)) % 2 == 0 for rest in itertools.product(row, repeat=order - 1)) for i in row]
            np.testing.assert_allclose(output, np.array(want), rtol=0, atol=0.49 / 2)
