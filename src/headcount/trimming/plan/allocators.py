"""Allocation of a budget of cached numbers to columns of energies.

A *column* is one side of one layer (or of one head): energies e_1 >= e_2 >= ... of its directions. Keeping its
first r directions caches r numbers per token and drops the remaining energies. Ranks are multiples of
``multiple`` (the last step of a column may be smaller), at least one step each. Every allocator stays
within the budget and is less than one multiple below it. ``fixed`` numbers per token are cached for any ranks and are
part of the budget.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import accumulate

from headcount.core.errors import HeadcountError

Columns = Sequence[Sequence[float]]


def steps_of(width: int, multiple: int) -> list[int]:
    """The sizes of a column's steps: multiples, then the remainder.

    >>> steps_of(10, 4)
    [4, 4, 2]
    """
    whole, rest = divmod(width, multiple)
    return [multiple] * whole + ([rest] if rest else [])


def smallest_budget(columns: Columns, multiple: int) -> int:
    """The smallest possible budget: one step of every column."""
    return sum(min(multiple, len(column)) for column in columns)


def dropped(columns: Columns, ranks: Sequence[int]) -> float:
    """The total energy dropped by the given ranks: sum over columns of sum_{i > r} e_i."""
    return float(sum(sum(column[rank:]) for column, rank in zip(columns, ranks, strict=True)))


def greedy(columns: Columns, budget: int, multiple: int, fixed: int = 0) -> list[int]:
    """The ranks that drop the least energy.

    Energies descend, so a column's steps have diminishing gains and taking the largest gain per number first is
    optimal when all steps have the same size (an exchange argument; tests compare it with brute force).

    >>> greedy([[9.0, 1.0], [5.0, 4.0]], budget=3, multiple=1)
    [1, 2]
    """
    sums = [[0.0, *accumulate(column)] for column in columns]

    def gain(index: int, rank: int, size: int) -> float:
        return (sums[index][rank + size] - sums[index][rank]) / size

    return _fill(columns, budget, multiple, fixed, gain)


def uniform(columns: Columns, budget: int, multiple: int, fixed: int = 0) -> list[int]:
    """The same share of every column, as close as multiples allow: the baseline.

    >>> uniform([[9.0, 1.0], [5.0, 4.0]], budget=2, multiple=1)
    [1, 1]
    """
    return _fill(columns, budget, multiple, fixed, lambda index, rank, size: -(rank + size) / len(columns[index]))


def _fill(
    columns: Columns, budget: int, multiple: int, fixed: int, gain: Callable[[int, int, int], float]
) -> list[int]:
    """Repeatedly take the step with the largest gain that fits the budget; ties go to the earlier column."""
    check_budget(columns, budget, multiple, fixed)
    steps = [steps_of(len(column), multiple) for column in columns]
    ranks = [sizes[0] for sizes in steps]
    left = budget - fixed - sum(ranks)
    queue: list[tuple[float, int, int]] = []

    def offer(index: int, taken: int) -> None:
        if taken < len(steps[index]):
            heapq.heappush(queue, (-gain(index, ranks[index], steps[index][taken]), index, taken))

    for index in range(len(columns)):
        offer(index, 1)
    while queue and left > 0:
        _, index, taken = heapq.heappop(queue)
        size = steps[index][taken]
        if size > left:
            continue
        ranks[index] += size
        left -= size
        offer(index, taken + 1)
    return ranks


def check_budget(columns: Columns, budget: int, multiple: int, fixed: int = 0) -> None:
    """Reject an infeasible multiple or budget; the error states the smallest feasible budget."""
    if multiple < 1:
        raise HeadcountError(f"a multiple of {multiple} is not possible", fix="use 1 or more")
    smallest = fixed + smallest_budget(columns, multiple)
    if budget < smallest:
        total = sum(map(len, columns))
        raise HeadcountError(
            f"a cache share of {budget / total:.4f} is below the smallest possible, {smallest / total:.4f} "
            f"({smallest} of {total} numbers a token at multiples of {multiple})",
            fix=f"ask for at least {_round_up(smallest / total)}",
        )


def _round_up(share: float) -> str:
    return f"{int(share * 1e4 + 1) / 1e4:.4f}"
