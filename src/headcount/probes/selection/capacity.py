"""Selection capacity: how many of a head's actual keys can one query select?

For the N keys of one window, subsets of q keys are drawn uniformly from all subsets (``random``) or from runs of
adjacent keys (``contiguous``). A subset is

- *separable* if some query of any norm has its q highest logits on the subset;
- *selected* if a query of norm at most rho, the 95th percentile of the head's query norms, has the
  margin c rho g >= ln((N - q) / q) (``separation``): then at least half of the attention is on the subset, since its
  weight is at least q e^m / (q e^m + N - q) at margin m.

The *half point* is the q at which half of the subsets are separable or selected, interpolated between the measured
sizes on a logarithmic scale. It is compared with two references in dimension m: for optimally placed keys (a moment
curve, whose convex hull is neighbourly) every subset of size m // 2 is separable and in general no larger ones;
Gaussian keys are measured by the same program. For uniformly random dichotomies of N points in general position the
count is known (Cover, 1965): with a threshold, a share of 2^(1-N) sum over i <= m of binom(N - 1, i) is separable.
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
"""Quantile of a head's query norms that defines the largest realistic norm rho."""


def sizes_of(tokens: int) -> list[int]:
    """Sizes of subsets: powers of two up to half of the tokens.

    >>> sizes_of(40)
    [1, 2, 4, 8, 16]
    """
    return [2**power for power in range(int(math.log2(tokens // 2)) + 1)]


def draw_subsets(tokens: int, count: int, generator: np.random.Generator) -> dict[str, torch.Tensor]:
    """For each kind, ``count`` subsets of each size: (sizes, count, tokens), boolean."""
    sizes = sizes_of(tokens)
    subsets = {kind: torch.zeros(len(sizes), count, tokens, dtype=torch.bool) for kind in KINDS}
    for row, size in enumerate(sizes):
        for column in range(count):
            subsets["random"][row, column, torch.from_numpy(generator.permutation(tokens)[:size])] = True
            start = int(generator.integers(tokens - size + 1))
            subsets["contiguous"][row, column, start : start + size] = True
    return subsets


@dataclass(frozen=True)
class SubsetMargins:
    """Bounds on g for drawn subsets of one set of keys, (sizes, count), by kind."""

    lower: dict[str, torch.Tensor]
    upper: dict[str, torch.Tensor]


def subset_margins(keys: torch.Tensor, subsets: dict[str, torch.Tensor]) -> SubsetMargins:
    """Solve all subsets of one set of keys (N, d) in one batch."""
    shape = subsets[KINDS[0]].shape
    margins: Margins = best_margins(keys, torch.cat([subsets[kind].flatten(0, 1) for kind in KINDS]))
    lower, upper = (part.view(len(KINDS), *shape[:2]) for part in (margins.lower, margins.upper))
    return SubsetMargins(dict(zip(KINDS, lower, strict=True)), dict(zip(KINDS, upper, strict=True)))


def margin_wanted(tokens: int) -> torch.Tensor:
    """ln((N - q) / q) for each size q: the margin that guarantees half of the attention on the subset."""
    sizes = torch.tensor(sizes_of(tokens), dtype=torch.float64)
    return ((tokens - sizes) / sizes).log()


def half_point(sizes: Sequence[int], shares: Sequence[float]) -> float:
    """The q at which the share drops below one half; 0 if it is below at the smallest size.

    If it never drops below, the largest size is returned as a lower bound.

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
