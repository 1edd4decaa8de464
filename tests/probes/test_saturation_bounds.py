"""Saturation bounds: nothing violates them, adversaries included, and the first one is reached."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.probes.saturation.inequalities import (
    half_range,
    long_context_bound,
    output_error_bound,
    row_bounds,
    sharper_long_context_bound,
    total_variation_bound,
    worst_case,
)

ROUNDING = 1e-12  # sums of up to 300 float64 weights below 1
numbers = st.floats(-6, 6, allow_nan=False)
pairs = st.integers(1, 30).flatmap(
    lambda n: st.tuples(st.lists(numbers, min_size=n, max_size=n), st.lists(numbers, min_size=n, max_size=n))
)


def assert_bounds_hold(first: np.ndarray, second: np.ndarray) -> None:
    delta = half_range(first, second)
    apart = softmax(first) - softmax(second)
    assert np.abs(apart).sum() / 2 <= total_variation_bound(delta) + ROUNDING
    bound = max(np.abs(first).max(), np.abs(second).max())
    sharper = sharper_long_context_bound(delta, bound, first.size)
    assert apart @ apart <= sharper + ROUNDING
    assert sharper <= long_context_bound(delta, bound, first.size)


@given(pairs)
@settings(max_examples=300, deadline=None)
def test_no_rows_violate_the_bounds(rows: tuple[list[float], list[float]]) -> None:
    assert_bounds_hold(np.array(rows[0]), np.array(rows[1]))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 5), st.floats(0, 5), st.floats(0, 3))
@settings(max_examples=200, deadline=None)
def test_two_level_rows_do_not_violate_them(high: int, low: int, up: float, down: float, change: float) -> None:
    """The shape of the worst cases: one block of tokens above the other, moved against it."""
    first = np.r_[np.full(high, up), np.full(low, -down)]
    assert_bounds_hold(first, first + np.r_[np.full(high, change), np.full(low, -change)])


@pytest.mark.parametrize("start", range(4))
def test_an_adversary_reaches_the_first_bound_and_passes_neither(start: int) -> None:
    """Gradient search over all rows of 6 logits in [-b, b] whose change has half-range at most delta."""
    delta, bound, tokens = 0.7, 1.5, 6
    generator = numpy_generator(start, "adversary")

    def rows(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre = (bound - delta) * np.tanh(point[:tokens])
        change = delta * np.tanh(point[tokens:])
        return centre - change / 2, centre + change / 2

    def distance(point: np.ndarray) -> float:
        first, second = rows(point)
        return -float(np.abs(softmax(first) - softmax(second)).sum()) / 2

    def squared(point: np.ndarray) -> float:
        first, second = rows(point)
        return -float(((softmax(first) - softmax(second)) ** 2).sum())

    point = generator.normal(size=2 * tokens)
    best = -minimize(distance, point, options={"maxiter": 60}).fun
    # The change's half-range is delta / 1 * (1/2 + 1/2) = delta when it moves by -delta and +delta.
    assert best <= total_variation_bound(delta) + ROUNDING
    assert best > 0.99 * total_variation_bound(delta)
    assert -minimize(squared, point, options={"maxiter": 60}).fun <= long_context_bound(delta, bound, tokens)


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("tokens", [2, 17, 300])
def test_the_first_bound_is_reached(delta: float, tokens: int) -> None:
    first, second = worst_case(delta, tokens)
    assert half_range(first, second) == pytest.approx(delta, abs=1e-12)
    reached = np.abs(softmax(first) - softmax(second)).sum() / 2
    assert reached == pytest.approx(total_variation_bound(delta), abs=1e-12)


@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5])
def test_how_far_the_second_bound_is_from_the_truth(delta: float) -> None:
    """A block of tokens at b with half of the weight, moved against the rest: e^(2b) / L and delta are both felt.

    To first order the truth is delta^2 / 4 * e^(2b) / L for a wide gap; the sharper bound is 2 delta^2 of it (a factor
    of 8 at most here, and not growing as delta falls), the plain one delta.
    """
    bound, low = 2.0, 5000
    high = round(low * math.exp(-2 * bound))
    first = np.r_[np.full(high, bound - delta), np.full(low, -bound)]
    second = first + np.r_[np.full(high, delta), np.full(low, 0.0)]
    got = row_bounds(first, second)
    truth = got["squared_distance"]
    own = half_range(first, second)
    assert own == pytest.approx(delta / 2)
    assert truth <= got["sharper_bound"] < 9 * truth
    assert got["squared_bound"] / got["sharper_bound"] == pytest.approx(1 / (1 - math.exp(-2 * own)))


def test_weights_reach_the_ceiling_of_the_second_bound() -> None:
    """e^(2b) / L itself is reached by one token at b among many at -b."""
    bound, tokens = 1.0, 100_000
    row = np.full(tokens, -bound)
    row[0] = bound
    assert softmax(row).max() == pytest.approx(math.exp(2 * bound) / tokens, rel=1e-4)


def test_a_vector_added_to_all_keys_changes_nothing() -> None:
    generator = numpy_generator(0, "keys")
    queries, keys = generator.normal(size=(3, 8)), generator.normal(size=(20, 8))
    moved = keys + generator.normal(size=8)
    for query in queries:
        assert half_range(keys @ query, moved @ query) < 1e-13
        np.testing.assert_allclose(softmax(keys @ query), softmax(moved @ query), atol=1e-14)


def test_the_output_moves_by_the_trace_times_the_distance() -> None:
    """Monte Carlo over values: E||o - o'||^2 = tr(S) ||p - p'||^2, below the bound."""
    generator = numpy_generator(0, "values")
    mix = generator.normal(size=(5, 5))
    trace = float(np.trace(mix @ mix.T))
    first, second = generator.uniform(-1, 1, size=(2, 40))
    apart = softmax(first) - softmax(second)
    values = generator.normal(size=(20_000, 40, 5)) @ mix.T
    moved = (np.einsum("j,njd->nd", apart, values) ** 2).sum(axis=1)
    # 20,000 draws: the mean's standard error is below 1%, five of them are allowed.
    assert moved.mean() == pytest.approx(trace * (apart @ apart), rel=0.05)
    assert moved.mean() <= output_error_bound(half_range(first, second), 1.0, 40, trace)


def test_hypotheses_are_checked() -> None:
    with pytest.raises(HeadcountError, match="cannot change by a half-range of 3"):
        long_context_bound(3.0, 1.0, 10)
    with pytest.raises(HeadcountError, match=r"half-range of -1.0"):
        total_variation_bound(-1.0)
    with pytest.raises(HeadcountError, match="half-range of nan"):
        total_variation_bound(math.nan)
    with pytest.raises(HeadcountError, match="row of 0 tokens"):
        long_context_bound(0.1, 1.0, 0)
    with pytest.raises(HeadcountError, match="trace"):
        output_error_bound(0.1, 1.0, 10, -1.0)
    with pytest.raises(HeadcountError, match="not finite"):
        row_bounds(np.array([0.0, -np.inf]), np.zeros(2))
    with pytest.raises(HeadcountError, match="shapes"):
        half_range(np.zeros(2), np.zeros(3))
    with pytest.raises(HeadcountError, match="row of 1 tokens"):
        worst_case(1.0, 1)
