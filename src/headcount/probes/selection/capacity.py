"""Selection capacity: how many of the keys that a head really has can one query single out?

For N keys of one window, subsets of q keys are drawn, uniformly among all (``random``) or among runs of neighbours
(``contiguous``). A subset is

- *separable* when some query has its q highest logits there, whatever the query's length;
- *selected* when a query no longer than rho, the 95th percentile of the lengths of the head's own queries, has the
  margin c rho g >= ln((N - q) / q) (``separation``): then at least half of the attention is on the subset, since its
  weight is at least q e^m / (q e^m + N - q) at margin m.

The *half point* is the q at which half of the subsets are separable or selected, read between the measured sizes on a
logarithmic scale. Two lines of theory stand beside it for dimension m: keys placed at best (a moment curve, whose
convex hull is neighbourly) let every subset of m // 2 be separated and in general no more; keys drawn from a Gaussian
are measured by the same program. For uniformly random dichotomies of N points in general position the count is known
(Cover, 1965): with a threshold, a share of 2^(1-N) sum over i <= m of binom(N - 1, i) is separable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headcount.probes.selection.separation import Margins, best_margins

KINDS = ("random", "contiguous")
QUANTILE = 0.95
"""Of the lengths of a head's queries: what counts as a length that its queries really have."""


def sizes_of(tokens: int) -> list[int]:
    """Sizes of subsets: powers of two up to half of the tokens.

    >>> sizes_of(40)
    [1, 2, 4, 8, 16]
    """
    return [2**power for power in range(int(math.log2(tokens // 2)) + 1)]


def draw_subsets(tokens: int, count: int, generator: np.random.Generator) -> dict[str, torch.Tensor]:
    """For each kind, ``count`` subsets of each size: (sizes, count, tokens), boolean."""
    sizes = sizes_of(tokens)
    found = {kind: torch.zeros(len(sizes), count, tokens, dtype=torch.bool) for kind in KINDS}
    for row, size in enumerate(sizes):
        for column in range(count):
            found["random"][row, column, torch.from_numpy(generator.permutation(tokens)[:size])] = True
            start = int(generator.integers(tokens - size + 1))
            found["contiguous"][row, column, start : start + size] = True
    return found


@dataclass(frozen=True)
class SubsetMargins:
    """Bounds on g of drawn subsets of one set of keys, (sizes, count), by kind."""

    lower: dict[str, torch.Tensor]
    upper: dict[str, torch.Tensor]


def subset_margins(keys: torch.Tensor, subsets: dict[str, torch.Tensor]) -> SubsetMargins:
    """Solve all subsets of one set of keys (N, d) at once."""
    shape = subsets[KINDS[0]].shape
    found: Margins = best_margins(keys, torch.cat([subsets[kind].flatten(0, 1) for kind in KINDS]))
    lower, upper = (part.view(len(KINDS), *shape[:2]) for part in (found.lower, found.upper))
    return SubsetMargins(dict(zip(KINDS, lower, strict=True)), dict(zip(KINDS, upper, strict=True)))


def margin_wanted(tokens: int) -> torch.Tensor:
    """ln((N - q) / q) for each size q: the margin at which half of the attention is on the subset for sure."""
    sizes = torch.tensor(sizes_of(tokens), dtype=torch.float64)
    return ((tokens - sizes) / sizes).log()


def half_point(sizes: Sequence[int], shares: Sequence[float]) -> float:
    """The q at which the share falls through one half; 0 when it is below from the start.

    Where it never falls the largest size is returned: a lower bound.

    >>> half_point([1, 2, 4, 8], [1.0, 1.0, 0.75, 0.25]) == 4 * 2**0.5
    True
    >>> half_point([1, 2], [0.25, 0.0]), half_point([1, 2], [1.0, 0.5])
    (0.0, 2.0)
    """
    if shares[0] < 0.5:
        return 0.0
    for index in range(1, len(sizes)):
        if shares[index] < 0.5:
            part = (shares[index - 1] - 0.5) / (shares[index - 1] - shares[index])
            return float(sizes[index - 1] * (sizes[index] / sizes[index - 1]) ** part)
    return float(sizes[-1])


def cover_share(tokens: int, dim: int) -> float:
    """Share of all dichotomies of N points in general position in R^m that a hyperplane separates (Cover, 1965).

    >>> cover_share(4, 3), cover_share(4, 2)
    (1.0, 0.875)
    """
    dichotomies: int = 2 ** (tokens - 1)
    return sum(math.comb(tokens - 1, i) for i in range(dim + 1)) / dichotomies
