"""Allocators: optimal against brute force, exact about the budget, refusing what cannot be met."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.core.errors import HeadcountError
from headcount.trimming.plan.allocators import dropped, greedy, smallest_budget, steps_of, uniform

energies = st.floats(0.0, 100.0, allow_nan=False)


def descending(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[list[float]]:
    return sizes.flatmap(lambda n: st.lists(energies, min_size=n, max_size=n)).map(lambda e: sorted(e, reverse=True))


@given(st.lists(descending(st.integers(1, 12)), min_size=1, max_size=5), st.integers(1, 5), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_budget_is_met_from_below_within_a_multiple(columns: list[list[float]], multiple: int, share: float) -> None:
    total, smallest = sum(map(len, columns)), smallest_budget(columns, multiple)
    budget = smallest + int(share * (total - smallest))
    for allocate in (greedy, uniform):
        ranks = allocate(columns, budget, multiple)
        assert budget - multiple < sum(ranks) <= budget
        for rank, column in zip(ranks, columns, strict=True):
            assert min(multiple, len(column)) <= rank <= len(column)
            assert rank % multiple == 0 or rank == len(column)


@given(
    st.lists(descending(st.sampled_from([2, 4, 6])), min_size=1, max_size=4),
    st.sampled_from([1, 2]),
    st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_greedy_drops_the_least_of_all_ranks(columns: list[list[float]], multiple: int, share: float) -> None:
    total, smallest = sum(map(len, columns)), smallest_budget(columns, multiple)
    budget = smallest + int(share * (total - smallest))
    choices = [list(itertools.accumulate(steps_of(len(column), multiple))) for column in columns]
    best = min(dropped(columns, ranks) for ranks in itertools.product(*choices) if sum(ranks) <= budget)
    # Sums of up to 24 numbers below 100 in float64: rounding stays below 1e-10.
    assert dropped(columns, greedy(columns, budget, multiple)) <= best + 1e-10


@given(st.lists(descending(st.integers(1, 9)), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_a_fixed_part_is_paid_before_ranks(columns: list[list[float]], multiple: int, fixed: int) -> None:
    for budget in range(smallest_budget(columns, multiple), sum(map(len, columns)) + 1):
        for allocate in (greedy, uniform):
            assert allocate(columns, budget + fixed, multiple, fixed) == allocate(columns, budget, multiple)
    with pytest.raises(HeadcountError, match="below the smallest possible"):
        greedy(columns, smallest_budget(columns, multiple) + fixed - 1, multiple, fixed)


def test_uniform_keeps_equal_shares() -> None:
    columns = [[1.0] * 8, [5.0] * 8, [2.0] * 16]
    assert uniform(columns, 16, 2) == [4, 4, 8]
    assert uniform(columns, 18, 2) == [4, 4, 10], "10/16 is less than 6/8"
    assert uniform(columns, 20, 2) == [6, 4, 10], "6/8, 6/8 and 12/16 tie: the first column gets the step"


def test_no_ranks_of_the_same_budget_have_a_smaller_largest_share() -> None:
    """Against all ranks that spend the budget, in exact fractions."""
    columns = [[1.0] * 8, [5.0] * 6, [2.0] * 12]

    def largest(ranks: Sequence[int]) -> Fraction:
        return max(Fraction(rank, len(column)) for rank, column in zip(ranks, columns, strict=True))

    choices = [range(2, len(column) + 1, 2) for column in columns]
    for budget in range(6, 27, 2):
        every = [ranks for ranks in itertools.product(*choices) if sum(ranks) == budget]
        assert largest(uniform(columns, budget, 2)) == min(map(largest, every))


def test_an_impossible_budget_names_the_smallest() -> None:
    columns = [[1.0] * 8] * 4
    with pytest.raises(HeadcountError, match=r"smallest possible, 0\.5000 \(16 of 32"):
        greedy(columns, 15, 4)
    assert greedy(columns, 16, 4) == [4, 4, 4, 4]
    with pytest.raises(HeadcountError, match="multiple of 0"):
        greedy(columns, 16, 0)
