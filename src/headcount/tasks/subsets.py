"""Uniform random subsets, many at once."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096  # rows processed together, so that their picks fit into the CPU cache
_LIST_LIMIT = 4096  # up to this many subsets in total, drawing from a list of all is faster than drawing elements
_COMPARE_LIMIT = 64  # above this size, permuting whole rows is faster than comparing picks
_NETWORK_LIMIT = 8  # up to this size, comparing columns is faster than sorting row by row


def random_subsets(rng: np.random.Generator, rows: int, n: int, size: int) -> NDArray[np.int64]:
    """``rows`` independent uniform subsets of {0..n-1} of one size, sorted: (rows, size).

    Floyd's algorithm on all rows at once: for j = n-size..n-1 draw t in {0..j}; take t, or j if t was
    taken already. Every subset is equally likely (Bentley and Floyd, 1987), and no rejection is needed for any
    size/n. Comparing with earlier picks costs size^2/2 per row; above 64 a random permutation is cheaper.
    If the total number of subsets is small, they are drawn from a list of all subsets.

    >>> random_subsets(np.random.default_rng(0), 2, 5, 5)
    array([[0, 1, 2, 3, 4],
           [0, 1, 2, 3, 4]])
    """
    if size > n:
        raise ValueError(f"no subset of {n} elements has {size}")
    result = np.empty((rows, size), dtype=np.int64)
    if 0 < size <= _NETWORK_LIMIT and comb(n, size) <= _LIST_LIMIT:
        which = rng.integers(0, comb(n, size), rows, dtype=np.int32)
        for k, elements in enumerate(_listed(n, size)):
            result[:, k] = elements.take(which)
        return result
    if size > _COMPARE_LIMIT:
        for row in result:
            row[:] = rng.permutation(n)[:size]
    else:
        for start in range(0, rows, _BLOCK):
            width = min(_BLOCK, rows - start)
            picks = np.empty((size, width), dtype=np.int32)  # half the memory traffic of int64
            for k, j in enumerate(range(n - size, n)):
                draw = rng.integers(0, j + 1, width, dtype=np.int32)
                if k:
                    np.copyto(draw, j, where=(picks[:k] == draw).any(axis=0))
                picks[k] = draw
            if size <= _NETWORK_LIMIT:
                _sort_columns(picks)
            for k, pick in enumerate(picks):  # four times as fast as one transpose
                result[start : start + width, k] = pick
    if size > _NETWORK_LIMIT:
        result.sort(axis=1)
    return result


@lru_cache(maxsize=16)
def _listed(n: int, size: int) -> NDArray[np.int64]:
    """All subsets of {0..n-1} of one size, one per column: (size, comb(n, size))."""
    return np.array(list(combinations(range(n), size)), dtype=np.int64).T.copy()


def _sort_columns(picks: NDArray[np.int32]) -> None:
    """Bubble sort of all columns at once, in place."""
    for end in range(len(picks) - 1, 0, -1):
        for k in range(end):
            larger = np.maximum(picks[k], picks[k + 1])
            np.minimum(picks[k], picks[k + 1], out=picks[k])
            picks[k + 1] = larger
