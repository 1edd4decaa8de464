"""The constructions that the bounds are compared with do what they say, and never undercut a bound."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from headcount import bounds, tasks
from headcount.bounds.base import Sizes
from headcount.bounds.built import LimbPolytope, built_match3, built_qsa, smallest_built, smallest_value_width
from headcount.core.errors import HeadcountError
from headcount.pbit.examples import histogram_layer, threshold_bits, threshold_layer


@pytest.mark.parametrize(("n", "q", "p"), [(5, 2, 2), (7, 2, 3), (8, 3, 4), (6, 5, 8), (9, 1, 16), (4, 4, 5)])
def test_logits_are_exact_for_every_subset(n: int, q: int, p: int) -> None:
    built = LimbPolytope(n, q, 2, p, 0.1)
    for subset in itertools.combinations(range(n), q):
        digits = [digit for number in built.query(subset) for digit in number]
        assert all(-(2 ** (p - 1)) < digit < 2 ** (p - 1) for digit in digits)
        assert len(digits) <= built.embedding_dim
        product = [math.prod((t - j) ** 2 for j in subset) for t in range(n)]
        logits = built.logits(subset)
        shift = logits[subset[0]]
        assert [shift - logit for logit in logits] == product
    for token in range(n):
        digits = [digit for number in built.key(token) for digit in number]
        assert all(-(2 ** (p - 1)) < digit < 2 ** (p - 1) for digit in digits)
        assert len(digits) + 2 * built.limbs(built.fraction + 1) <= built.embedding_dim


@pytest.mark.parametrize(("n", "q", "p", "epsilon"), [(12, 3, 4, 0.05), (64, 8, 16, 0.03), (200, 4, 2, 1e-6)])
def test_outputs_are_within_epsilon(n: int, q: int, p: int, epsilon: float) -> None:
    built = LimbPolytope(n, q, 3, p, epsilon)
    for kind in ("uniform", "adversarial"):
        batch = tasks.get("qsa", tokens=n, sparsity=q, dim=3).sample(4, 1, kind)  # type: ignore[arg-type]
        z, y = batch.inputs["z"][0].astype(float), batch.inputs["y"][0]
        for token in range(0, n, max(1, n // 8)):
            output = built.attend(z.tolist(), y[token].tolist())
            assert np.linalg.norm(np.array(output) - batch.targets[0, token]) <= epsilon


def test_the_size_of_the_issue_runs_at_16_bits() -> None:
    built = LimbPolytope(1024, 8, 8, 16, 1 / 32)
    batch = tasks.get("qsa", tokens=1024, sparsity=8, dim=8).sample(0)
    output = built.attend(batch.inputs["z"][0].astype(float).tolist(), batch.inputs["y"][0, 5].tolist())
    assert np.linalg.norm(np.array(output) - batch.targets[0, 5]) <= 1 / 32


@pytest.mark.parametrize("n", [3, 8, 40, 1000, 10**6])
def test_nothing_built_is_below_a_bound(n: int) -> None:
    for q in {1, 2, 3, n // 3, n // 2, n - 1} & set(range(1, min(n, 400))):
        for p in (2, 3, 8, 16, 64, None):
            for built in built_qsa(Sizes(tokens=n, sparsity=q, dim=4, precision_bits=p)):
                sizes = Sizes(tokens=n, sparsity=q, dim=4, precision_bits=built.needs_bits)
                for bound in bounds.of_task("qsa"):
                    answer = bound.evaluate(sizes)
                    if answer.unit == "embedding dimensions" and answer.value is not None:
                        assert answer.value <= built.embedding_dim, (n, q, p, bound.id)


def test_unlimited_precision_meets_the_radon_bound_exactly() -> None:
    for n, q, dim in [(6, 2, 1), (30, 10, 8), (4096, 16, 8)]:
        sizes = Sizes(tokens=n, sparsity=q, dim=dim)
        (built,) = built_qsa(sizes)
        assert built.embedding_dim == bounds.get("qsa-radon").evaluate(sizes).value == dim + 2 * q
        assert smallest_built([built], None) == dim + 2 * q
        assert smallest_built([built], built.needs_bits) == dim + 2 * q
        assert smallest_built([built], built.needs_bits - 1) is None


@pytest.mark.parametrize(("n", "q"), [(5, 2), (8, 3), (40, 4), (100, 16)])
def test_with_enough_bits_a_digit_is_a_whole_number(n: int, q: int) -> None:
    bits = LimbPolytope(n, q, 3, 2, 0.1).undivided_bits
    assert LimbPolytope(n, q, 3, bits, 0.1).embedding_dim == 3 + 2 * q
    assert LimbPolytope(n, q, 3, bits - 1, 0.1).embedding_dim > 3 + 2 * q


def test_one_bit_is_too_few_for_what_is_built() -> None:
    sizes = Sizes(tokens=8, sparsity=2, dim=1, precision_bits=1)
    assert smallest_built(built_qsa(sizes), 1) is None
    with pytest.raises(HeadcountError, match="2 bits"):
        LimbPolytope(8, 2, 1, 1, 0.1)


@pytest.mark.parametrize("n", [3, 4, 13, 14, 15, 30, 31, 62, 63, 64])
def test_the_histogram_needs_bits_for_the_tokens(n: int) -> None:
    built, _ = built_match3(Sizes(tokens=n, modulus=n + 1))
    layer = histogram_layer(n, n + 1, built.needs_bits)
    assert built.embedding_dim == layer.embedding_dim == built.value_width == layer.value_dim == n + 1
    with pytest.raises(HeadcountError, match="do not show one token"):
        histogram_layer(n, n + 1, built.needs_bits - 1)


@pytest.mark.parametrize(("n", "modulus"), [(3, 4), (7, 8), (15, 29), (15, 30), (15, 31), (15, 62), (15, 63), (9, 500)])
def test_thresholds_need_bits_to_count_the_tokens(n: int, modulus: int) -> None:
    _, built = built_match3(Sizes(tokens=n, modulus=modulus))
    layer = threshold_layer(n, modulus, built.needs_bits)
    assert built.needs_bits == threshold_bits(n, modulus)
    assert (built.embedding_dim, built.value_width) == (layer.embedding_dim, layer.value_dim) == (2, modulus + 1)
    with pytest.raises(HeadcountError, match=f"give at least {built.needs_bits} bits"):
        threshold_layer(n, modulus, built.needs_bits - 1)


@pytest.mark.parametrize("n", [3, 9, 65, 1025, 10**6 + 1])
def test_nothing_built_for_match3_is_below_the_bound_on_the_value_width(n: int) -> None:
    for p in range(1, 40):
        sizes = Sizes(tokens=n, modulus=n + 1, precision_bits=p)
        least = bounds.get("match3-protocol").evaluate(sizes).value
        width = smallest_value_width(built_match3(sizes), p)
        assert least is not None and (width is None or width >= least)


def test_large_sizes_take_no_time_and_no_exact_powers() -> None:
    sizes = Sizes(tokens=10**6, sparsity=20_000, dim=8, precision_bits=16)
    whole, digits, one_hot = built_qsa(sizes)
    # 2q numbers of up to 2q log2(N/2) bits.
    assert whole.needs_bits == pytest.approx(40_000 * math.log2(5e5), rel=1e-3)
    # Coefficients: half of that on average, and log2 C(2q, k), which add up to (2q)^2 / (2 ln 2).
    coefficients = 40_000 * whole.needs_bits / 2 + 40_000**2 / (2 * math.log(2))
    assert digits.embedding_dim == pytest.approx(coefficients / 15, rel=0.01)
    assert one_hot.embedding_dim == 10**6 + 8 * 2  # values of 2^-18: two digits
    assert smallest_built([whole, digits, one_hot], 16) == one_hot.embedding_dim
