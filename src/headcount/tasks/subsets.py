"""Uniform random subsets, many at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096  # rows whose picks stay in the cache together
_COMPARE_LIMIT = 64  # above this size, permuting whole rows beats comparing picks


def random_subsets(rng: np.random.Generator, rows: int, n: int, size: int) -> NDArray[np.int64]:
    """``rows`` independent uniform subsets of {0..n-1} of one size, sorted: (rows, size).

    Floyd's algorithm on all rows at once: for j = n-size..n-1 draw t in {0..j}; take t, or j where t is taken
    already. Every subset is equally likely (Bentley and Floyd, 1987), and it needs no rejection, whatever
    size/n is. The comparison with earlier picks is size^2/2 a row; above 64 a random permutation is cheaper.

    >>> random_subsets(np.random.default_rng(0), 2, 5, 5)
    array([[0, 1, 2, 3, 4],
           [0, 1, 2, 3, 4]])
    """
    if size > n:
        raise ValueError(f"no subset of {n} elements has {size}")
    result = np.empty((rows, size), dtype=np.int64)
    if size > _COMPARE_LIMIT:
        for row in result:
            row[:] = rng.permutation(n)[:size]
    else:
        for start in range(0, rows, _BLOCK):
            width = min(_BLOCK, rows - start)
            picks = np.empty((size, width), dtype=np.int32)  # half the memory traffic of int64
            for k, j in enumerate(range(n - size, n)):
                draw = rng.integers(0, j + 1, width, dtype=np.int32)
                draw[(picks[:k] == draw).any(axis=0)] = j
                picks[k] = draw
            result[start : start + width] = picks.T
    result.sort(axis=1)
    return result
