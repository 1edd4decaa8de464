"""Exact allocation of a budget over lags: the number and dimension of heads for each lag.

A layer must extract y_t = sum_k A_k x_{t - tau_k} from white noise x. Lag k gets a group of H_k heads of value
dimension d_k, and with singular values sigma_k1 >= sigma_k2 >= ... of A_k the root-mean-square error is at most

    sum_k  ||A_k||_F E_pos(H_k, d_k, tau_k) + (sum_{i > d_k} sigma_ki^2)^(1/2)    subject to  sum_k H_k d_k <= budget:

the best A_k' of rank d_k leaves the tail, and using a mixture of kernels instead of the spike at tau_k
costs at most ||A_k'||_F <= ||A_k||_F per unit of mixture error (Yu et al. 2025, arXiv 2510.03784, section
3, with E_pos computed). Queries and keys of a head have the same dimension as its values, so E_pos of kernels that
depend on the dimension (rotary ones) is evaluated at the dimension of the head; other schemes have one E_pos for all d.
H_k and d_k are chosen jointly. The terms of different lags are coupled only by the budget, so dynamic programming over
the budget finds the exact minimum, in O(lags * budget * options).

The best *uniform* layer has H heads of the same dimension d with H d <= budget, distributed optimally over the lags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """The heads of one lag."""

    lag: int
    heads: int
    dim: int


@dataclass(frozen=True)
class Uniform:
    """Heads of one dimension: the total number, the number for each lag, and the error."""

    heads: int
    dim: int
    error: float
    heads_of_lag: tuple[int, ...]


@dataclass(frozen=True)
class Allocation:
    """The best groups, their error, the best uniform layer, and the uniform error for each number of heads."""

    groups: tuple[Group, ...]
    error: float
    uniform: Uniform
    curve: tuple[Uniform, ...]

    def as_json(self) -> JsonObject:
        """The fields printed by ``headcount allocate --json``."""
        return {
            "groups": [{"lag": group.lag, "heads": group.heads, "dim": group.dim} for group in self.groups],
            "error": self.error,
            "uniform": {"heads": self.uniform.heads, "dim": self.uniform.dim, "error": self.uniform.error},
            "curve": [{"heads": uniform.heads, "dim": uniform.dim, "error": uniform.error} for uniform in self.curve],
        }


def tails(spectrum: Sequence[float]) -> Array:
    """(sum_{i > d} sigma_i^2)^(1/2) for d = 0, 1, ..., n; the first is the Frobenius norm.

    >>> tails([4.0, 3.0]).tolist()
    [5.0, 3.0, 0.0]
    """
    squares = np.asarray(spectrum, dtype=np.float64) ** 2
    errors: Array = np.sqrt(np.append(np.cumsum(squares[::-1])[::-1], 0.0))
    return errors


def allocate(
    lags: Sequence[int],
    budget: int,
    position: Sequence[Sequence[float] | Array] | Array,
    spectra: Sequence[Sequence[float]],
) -> Allocation:
    """The best groups under a budget, and the best uniform layer for comparison.

    Args:
        lags: distinct, not negative.
        budget: sum of heads times dimension over the groups, at most.
        position: for each lag E_pos for 1, 2, ... heads, (H,); or (H, D), column d - 1 for heads of dimension d, not
            increasing with d. No group has more than H heads. Dimensions above D have the errors of D.
        spectra: for each lag the singular values of A_k, descending. Group dimensions are at most the larger of
            their number and D.

    Ties in the error are broken by lower cost, then by fewer heads.

    Raises:
        HeadcountError: for repeated or negative lags, a budget below one number per lag, spectra that are not
            descending, or position errors that increase with the dimension.

    >>> found = allocate([1, 2], 6, [[0.5, 0.0], [1.0, 0.0]], [[1.0], [3.0, 2.0]])
    >>> found.groups, round(found.error, 6)
    ((Group(lag=1, heads=2, dim=1), Group(lag=2, heads=2, dim=2)), 0.0)

    With kernels that need two dimensions, a dimension above the rank of the content can reduce the position error.

    >>> allocate([1], 4, [[[0.9, 0.1, 0.1]]], [[1.0]]).groups
    (Group(lag=1, heads=1, dim=2),)
    """
    check_lags(lags)
    check_budget(lags, budget)
    _check(lags, position, spectra)
    rests = [tails(spectrum) for spectrum in spectra]
    errors = [_by_dim(row, rest.size - 1) for row, rest in zip(position, rests, strict=True)]
    chosen = _best_groups(budget, errors, rests)
    groups = tuple(Group(int(lag), heads, dim) for lag, (heads, dim) in zip(lags, chosen, strict=True))
    curve = _curve(budget, errors, rests)
    uniform = min(curve, key=lambda candidate: (candidate.error, candidate.heads * candidate.dim, candidate.heads))
    return Allocation(groups, group_error(groups, errors, rests), uniform, curve)


def group_error(groups: Sequence[Group], errors: Sequence[Array], rests: Sequence[Array]) -> float:
    """The error of groups: sum_k ||A_k||_F E_pos(H_k, d_k, tau_k) + tail_{d_k}(A_k); ``errors`` as in ``allocate``."""
    parts = zip(groups, errors, rests, strict=True)
    return float(sum(rest[0] * _at(row, group) + rest[min(group.dim, rest.size - 1)] for group, row, rest in parts))


def _at(row: Array, group: Group) -> float:
    error = np.asarray(row, dtype=np.float64)[group.heads - 1]
    return float(error if error.ndim == 0 else error[min(group.dim, error.size) - 1])


def _by_dim(row: Sequence[float] | Array, rank: int) -> Array:
    """E_pos as (H, D) with D at least the rank of the content."""
    errors = np.asarray(row, dtype=np.float64)
    if errors.ndim == 1:
        errors = errors[:, None]
    return np.pad(errors, ((0, 0), (0, max(0, rank - errors.shape[1]))), mode="edge")


def check_lags(lags: Sequence[int]) -> None:
    """Raise if lags repeat or are negative."""
    if not lags:
        raise HeadcountError("no lags are given", fix="name at least one")
    for lag in lags:
        if lag < 0:
            raise HeadcountError(f"lag {lag} is negative: it looks ahead", fix="use lags of 0 and more")
    repeated = sorted({lag for lag in lags if list(lags).count(lag) > 1})
    if repeated:
        raise HeadcountError(f"lag {repeated[0]} is there more than once", fix="name each lag once")


def check_budget(lags: Sequence[int], budget: int) -> None:
    """Raise if the budget is less than one number per lag."""
    if budget < len(lags):
        raise HeadcountError(
            f"a budget of {budget} is too small for {len(lags)} lags",
            fix=f"the smallest is {len(lags)}: one head of dimension 1 for each lag",
        )


def _check(lags: Sequence[int], position: Sequence[Any] | Array, spectra: Sequence[Any]) -> None:
    if len(position) != len(lags) or len(spectra) != len(lags):
        raise HeadcountError(
            f"{len(lags)} lags have {len(position)} rows of position errors and {len(spectra)} spectra",
            fix="give one of each for every lag",
        )
    for lag, row, spectrum in zip(lags, position, spectra, strict=True):
        values = np.asarray(spectrum, dtype=np.float64)
        if (
            values.ndim != 1
            or values.size == 0
            or not np.isfinite(values).all()
            or values[-1] < 0
            or (np.diff(values) > 0).any()
        ):
            raise HeadcountError(
                f"the spectrum of lag {lag} does not descend to 0 or more",
                fix="give its singular values, largest first",
            )
        errors = np.asarray(row, dtype=np.float64)
        if errors.size == 0 or errors.ndim > 2 or not np.isfinite(errors).all():
            raise HeadcountError(f"lag {lag} has no position errors", fix="give E_pos for 1 head and more")
        if errors.ndim == 2 and (np.diff(errors, axis=1) > 0).any():
            raise HeadcountError(
                f"the position errors of lag {lag} rise with the dimension",
                fix="give for each dimension the least error up to it",
            )


def _best_groups(budget: int, errors: Sequence[Array], rests: Sequence[Array]) -> list[tuple[int, int]]:
    """(heads, dim) of each lag: best[b] is the least error of the lags so far on at most b numbers."""
    best = np.zeros(budget + 1)
    picked = []
    for row, rest in zip(errors, rests, strict=True):
        costs, heads, lag_errors = _options(budget, row, rest)
        grown = np.full(budget + 1, np.inf)
        pick = np.zeros(budget + 1, dtype=np.int64)
        for index, cost in enumerate(costs):  # cheaper options first, so ties keep the cheaper option
            offered = best[: budget + 1 - cost] + lag_errors[index]
            better = offered < grown[cost:]
            grown[cost:][better] = offered[better]
            pick[cost:][better] = index
        best = grown
        picked.append((pick, costs, heads))
    left = int(np.argmin(best))  # the first minimum, so the cheapest
    groups = []
    for pick, costs, heads in reversed(picked):
        index = pick[left]
        groups.append((int(heads[index]), int(costs[index] // heads[index])))
        left -= int(costs[index])
    return groups[::-1]


def _options(budget: int, row: Array, rest: Array) -> tuple[Array, Array, Array]:
    """Costs H d (ascending), heads and errors of one lag; per cost the best split with the fewest heads."""
    heads, dims = (part.ravel() for part in np.meshgrid(*(np.arange(1, size + 1) for size in row.shape), indexing="ij"))
    costs, errors = heads * dims, rest[0] * row.ravel() + rest[np.minimum(dims, rest.size - 1)]
    order = np.lexsort((heads, errors, costs))
    first = np.unique(costs[order], return_index=True)[1]
    selected = order[first][costs[order][first] <= budget]
    falls = np.minimum.accumulate(np.append(np.inf, errors[selected]))[:-1] > errors[selected]
    selected = selected[falls]
    return costs[selected], heads[selected], errors[selected]


def _curve(budget: int, errors: Sequence[Array], rests: Sequence[Array]) -> tuple[Uniform, ...]:
    """For each number of heads H, from one per lag upwards, the best layer of dimension floor(budget / H).

    If several H have the same dimension, all are listed. Heads that no lag can use remain idle. A smaller
    dimension is never better because E_pos does not increase with it.
    """
    lags, most = len(errors), max(row.shape[1] for row in errors)
    total = min(budget, sum(len(row) for row in errors))
    norms = [rest[0] for rest in rests]
    dealt: dict[int, tuple[Array, Any]] = {}
    curve = []
    for heads in range(lags, total + 1):
        dim = min(budget // heads, most)
        if dim not in dealt:
            dealt[dim] = _deal(total, [row[:, min(dim, row.shape[1]) - 1] for row in errors], norms)
        least, shares = dealt[dim]
        error = least[heads] + sum(float(rest[min(dim, rest.size - 1)]) for rest in rests)
        curve.append(Uniform(heads, dim, float(error), shares(heads)))
    return tuple(curve)


def _deal(total: int, errors: Sequence[Array], norms: Sequence[float]) -> tuple[Array, Any]:
    """The minimum of sum ||A_k|| E_pos(H_k, tau_k) with sum H_k <= h, for every h, and the H_k that attain it."""
    best = np.zeros(total + 1)
    picked = []
    for row, norm in zip(errors, norms, strict=True):
        grown = np.full(total + 1, np.inf)
        pick = np.zeros(total + 1, dtype=np.int64)
        for heads in range(1, min(row.size, total) + 1):
            offered = best[: total + 1 - heads] + norm * row[heads - 1]
            better = offered < grown[heads:]
            grown[heads:][better] = offered[better]
            pick[heads:][better] = heads
        best = grown
        picked.append(pick)

    def shares(heads: int) -> tuple[int, ...]:
        left, counts = heads, []
        for pick in reversed(picked):
            counts.append(int(pick[left]))
            left -= counts[-1]
        return tuple(counts[::-1])

    return best, shares
