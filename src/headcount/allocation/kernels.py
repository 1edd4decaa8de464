"""E_pos: how well H heads single out one lag, computed and not bounded.

    E_pos(H, tau) = min over kernels a_1..a_H of a scheme and coefficients c with sum_h |c_h| <= C of
                    sum_{s < L} | sum_h c_h a_h(s) - [s = tau] |

(Wang and E 2024, arXiv 2402.00522, and Yu et al. 2025, arXiv 2510.03784, bound it up to unknown constants.)

**Why a limit C.** Without one the minimum says nothing for linear biases: from H = tau + 1 heads on it is 0. Take
x_h = h eps: the coefficients that solve sum_h c_h x_h^s = [s = tau] for s <= tau (a Vandermonde system) leave an
error of O(eps) on later lags, and are of size eps^(-tau). So with a limit E_pos(tau + 1, tau) <= K_tau C^(-1/tau).
The limit has a meaning: weights that are stored with a relative error of u (2^-9 in bfloat16) move the mixture by
at most u C in the same norm, as every kernel has sum 1.

Given the kernels, the best coefficients are a linear programme (HiGHS). The kernels are found by sequential linear
programming: both are linearised together inside a trust region, and a step is kept when the exact coefficients at the
new kernels have a smaller error. It finds local minima; warm starts and restarts make them good ones, and
``floor`` says how good: a lower bound for every number of heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import linprog, minimize_scalar

from headcount.allocation.schemes import Array, Linear, Scheme
from headcount.errors import HeadcountError
from headcount.seeds import numpy_generator

LIMIT = 64.0
"""The default C: bfloat16 weights then move the mixture by at most 64 * 2^-9 = 1/8."""
_STEPS, _SMALLEST_STEP, _WORTH = 40, 1e-9, 1e-8
"""Steps of a descent at most; the trust region and the promised gain below which it ends."""
_HIT = 30.0
"""How often a first descent counts the lag itself."""
_TOLERANCES = (1e-10, 1e-9, 1e-7)
"""HiGHS's feasibility tolerances, tried in turn: the tightest fails on mixtures that are nearly exact."""
_CLOSE, _ROUNDS = 1e-6, 12
"""Errors this near to the floor are at it; rounds of adding slopes."""


@dataclass(frozen=True)
class Fit:
    """Kernels (their numbers, (H, P)), coefficients (H), the error, and the multipliers of the lags (L)."""

    given: Array
    coefficients: Array
    error: float
    multipliers: Array


class Solved(NamedTuple):
    """A solved programme."""

    coefficients: Array
    moves: Array
    value: float
    multipliers: Array


def check_lag(scheme: Scheme, lag: int) -> None:
    """Refuse a lag that the context does not hold."""
    if not 0 <= lag < scheme.context:
        raise HeadcountError(
            f"lag {lag} is outside a context of {scheme.context} tokens", fix=f"use 0 to {scheme.context - 1}"
        )


class _Moves(NamedTuple):
    """Linearised moves x: their columns (L, X), low <= x <= high, and planes (R, X) with planes x <= slack."""

    columns: Array
    low: Array
    high: Array
    planes: Array
    slack: Array


def _programme(columns: Array, lag: int, limit: float, weight: float, moves: _Moves) -> Solved:
    """min sum_s w_s |(columns c + moves.columns x - spike)(s)| with ||c||_1 <= limit and x as ``moves`` allows.

    w is ``weight`` at the lag and 1 elsewhere. Coefficients are solved for as c / limit, so that the solver's
    tolerances on reduced costs are tolerances on the bound that its multipliers give.
    """
    lags, heads = columns.shape
    eye = sparse.identity(lags, format="csr")
    scaled = columns * limit
    equal = sparse.hstack([sparse.csr_matrix(np.hstack([scaled, -scaled, moves.columns])), eye, -eye], format="csr")
    weights = np.ones(lags)
    weights[lag] = weight
    free = 2 * heads + moves.columns.shape[1]
    cost = np.concatenate([np.zeros(free), weights, weights])
    above = np.zeros((1 + len(moves.planes), cost.size))
    above[0, : 2 * heads] = 1.0
    above[1:, 2 * heads : free] = moves.planes
    least = np.concatenate([np.zeros(2 * heads), moves.low, np.zeros(2 * lags)])
    most = np.concatenate([np.full(2 * heads, np.inf), moves.high, np.full(2 * lags, np.inf)])
    for tolerance in _TOLERANCES:
        solved = linprog(
            cost,
            A_ub=sparse.csr_matrix(above),
            b_ub=np.append(1.0, moves.slack),
            A_eq=equal,
            b_eq=_spike(lags, lag),
            bounds=np.stack([least, most], axis=1),
            method="highs",
            options={"primal_feasibility_tolerance": tolerance, "dual_feasibility_tolerance": tolerance},
        )
        if solved.status == 0:
            break
    else:  # it is feasible with c = x = 0 and bounded below by 0
        raise RuntimeError(f"HiGHS did not solve the programme of lag {lag}: {solved.message}")
    coefficients = (solved.x[:heads] - solved.x[heads : 2 * heads]) * limit
    return Solved(coefficients, solved.x[2 * heads : free], solved.fun, solved.eqlin.marginals)


def _spike(lags: int, lag: int) -> Array:
    spike = np.zeros(lags)
    spike[lag] = 1.0
    return spike


def best_coefficients(scheme: Scheme, given: Array, lag: int, limit: float = LIMIT, weight: float = 1.0) -> Fit:
    """The best coefficients of given kernels: a linear programme. The error is computed from the coefficients.

    ``weight`` counts the error at the lag itself more than that at others (in the coefficients' choice and in
    ``error``); 1 is E_pos.

    >>> fit = best_coefficients(Linear(8), np.array([[0.0]]), lag=0)
    >>> fit.coefficients.tolist(), fit.error
    ([1.0], 0.0)
    """
    kernels = scheme.kernels(given)
    none = np.zeros(0)
    still = _Moves(np.zeros((scheme.context, 0)), none, none, np.zeros((0, 0)), none)
    solved = _programme(kernels.T, lag, limit, weight, still)
    weights = 1.0 + (weight - 1.0) * _spike(scheme.context, lag)
    misses = np.abs(solved.coefficients @ kernels - _spike(scheme.context, lag))
    return Fit(given, solved.coefficients, float(weights @ misses), solved.multipliers)


def polish(scheme: Scheme, given: Array, lag: int, limit: float = LIMIT, weight: float = 1.0) -> Fit:
    """Go down from kernels to a local minimum by sequential linear programming."""
    fit = best_coefficients(scheme, given, lag, limit, weight)
    heads, width = given.shape
    radius = scheme.step
    for _ in range(_STEPS):
        solved = _programme(scheme.kernels(fit.given).T, lag, limit, weight, _linearised(scheme, fit, radius))
        promised = fit.error - solved.value
        if promised < _WORTH:
            break
        moved = scheme.inside(fit.given + radius * solved.moves.reshape(heads, width))
        tried = best_coefficients(scheme, moved, lag, limit, weight)
        gain = (fit.error - tried.error) / promised
        if gain > 0:
            fit = tried
        radius = min(radius * 2, scheme.step) if gain > 0.5 else radius / 4 if gain < 0.1 else radius
        if radius < _SMALLEST_STEP:
            break
    return fit


def _linearised(scheme: Scheme, fit: Fit, radius: float) -> _Moves:
    """Moves of all numbers within a trust region, in units of its radius."""
    heads, width = fit.given.shape
    slopes = scheme.jacobian(fit.given) * (fit.coefficients[:, None, None] * radius)
    low, high = scheme.moves(fit.given, radius)
    planes, slack = scheme.planes(fit.given)
    rows = (np.eye(heads)[:, :, None] * planes[None]).reshape(heads, heads * width)
    bounding = np.abs(rows).sum(axis=1) > 0
    return _Moves(
        slopes.transpose(1, 0, 2).reshape(scheme.context, heads * width),
        low.ravel() / radius,
        high.ravel() / radius,
        rows[bounding],
        slack[bounding] / radius,
    )


def descend(scheme: Scheme, given: Array, lag: int, limit: float = LIMIT) -> Fit:
    """Polish twice: first so that the lag is hit, then for E_pos itself.

    Coefficients of 0, with an error of 1, are a local minimum for every kernel that puts less than half of its
    weight on the lag; counting the lag ``_HIT`` times leads out of it.
    """
    first = polish(scheme, given, lag, limit, _HIT)
    return polish(scheme, first.given, lag, limit)


def search(
    scheme: Scheme, lag: int, heads: int, limit: float = LIMIT, seed: int = 0, restarts: int | None = None
) -> list[Fit]:
    """The best fits found for 1, 2, ... heads: a list that ends where more heads were not found to help.

    Linear biases start from the optimal mixture of all slopes (``floor``), whose nearest slopes are merged one by one.
    Other schemes start from the fit of one head less with the kernel added that its multipliers ask for most. Both
    add ``restarts`` random starts (none for linear biases by default, one for others). A fit that is not better than
    the one before is replaced by it, so errors never rise.
    """
    check_lag(scheme, lag)
    generator = numpy_generator(seed, "allocation", type(scheme).__name__, lag)
    bottom, merged = None, {}
    if isinstance(scheme, Linear):
        bottom = floor(scheme, lag, limit)
        merged = _merged(scheme, bottom.given, lag, heads, limit) if bottom.error < 1.0 - _CLOSE else {}
    if restarts is None:
        restarts = 0 if bottom else 1
    goal = (bottom.error if bottom else 0.0) + _CLOSE
    fits: list[Fit] = []
    for count in range(1, heads + 1):
        tried = [merged[count]] if count in merged else []
        tried += [descend(scheme, scheme.random(generator, count, lag), lag, limit) for _ in range(restarts)]
        if (fits and not tried) or (fits and not bottom):
            pool = scheme.random(generator, 64, lag)
            wanted = pool[np.abs(scheme.kernels(pool) @ fits[-1].multipliers).argmax()]
            grown = np.vstack([fits[-1].given, wanted])
            tried += [descend(scheme, grown, lag, limit), polish(scheme, grown, lag, limit)]
        if not tried:
            tried = [best_coefficients(scheme, scheme.random(generator, 1, lag), lag, limit)]
        best = min(tried, key=lambda fit: fit.error)
        if fits and best.error > fits[-1].error - _WORTH:
            best = fits[-1]
        fits.append(best)
        if best.error <= goal or goal >= 1.0:
            break
    return fits


def _merged(scheme: Linear, given: Array, lag: int, heads: int, limit: float) -> dict[int, Fit]:
    """Fits of fewer and fewer slopes: of all neighbours the pair whose merging costs least becomes one slope."""
    fits: dict[int, Fit] = {}
    given = np.sort(given, axis=0)
    while len(given):
        fit = polish(scheme, given, lag, limit)
        if fit.error >= 1.0 - _CLOSE:
            fit = descend(scheme, given, lag, limit)
        if len(given) <= heads:
            fits[len(given)] = fit
        given = np.sort(fit.given, axis=0)
        tried = [np.vstack([given[:i], (given[i] + given[i + 1]) / 2, given[i + 2 :]]) for i in range(len(given) - 1)]
        if not tried:
            break
        given = min(tried, key=lambda one: best_coefficients(scheme, one, lag, limit, _HIT).error)
    return fits


def floor(scheme: Linear, lag: int, limit: float = LIMIT) -> Fit:
    """The least error of *any* number of linear-bias heads, with slopes that reach it.

    For multipliers y with |y_s| <= 1, every mixture has sum_s |mixture - spike| >= y . (spike - mixture) >=
    y_lag - C max_x |f(x)| with f(x) = y . a_x. The multipliers come from the programme over a set of slopes; slopes
    where |f| is larger than on the set are added to it until that bound meets the programme's value. ``error`` is the
    bound: f's maxima are found on a grid of 4,000 slopes, each then refined, which is not interval arithmetic.
    """
    check_lag(scheme, lag)
    if lag == 0:  # an infinite slope is the spike itself
        given = np.zeros((1, 1))
        return Fit(given, np.ones(1), 0.0, np.zeros(scheme.context))
    fine = 1.0 - np.concatenate([np.geomspace(1.0, 1e-5, 2000), np.linspace(0.0, 1.0, 2001)[:-1]])
    fine = np.unique(fine)[:, None]
    table = scheme.kernels(fine)
    given = fine[:: len(fine) // 150]
    for _ in range(_ROUNDS):
        fit = best_coefficients(scheme, given, lag, limit)
        multipliers = np.clip(fit.multipliers, -1.0, 1.0)
        peaks = _peaks(scheme, multipliers, fine, np.abs(table @ multipliers))
        largest = max(height for height, _ in peaks)
        bound = float(max(0.0, multipliers[lag] - limit * largest))
        if fit.error - bound < _CLOSE / 2:
            break
        used = given[np.abs(fit.coefficients) > 0] if fit.error < 1 - _CLOSE else given
        given = np.unique(np.vstack([given, used, [[x] for _, x in peaks]]), axis=0)
    active = np.abs(fit.coefficients) > 1e-9 * limit
    return Fit(given[active], fit.coefficients[active], bound, multipliers)


def _peaks(scheme: Linear, multipliers: Array, fine: Array, heights: Array) -> list[tuple[float, float]]:
    """(height, x) of the local maxima of |f| that are near the highest one."""
    inner = (heights[1:-1] >= heights[:-2]) & (heights[1:-1] >= heights[2:])
    found = [(float(heights[i]), float(fine[i, 0])) for i in (0, len(fine) - 1)]

    def down(x: float) -> float:
        return -float(np.abs(scheme.kernels(np.array([[x]])) @ multipliers)[0])

    for i in 1 + np.flatnonzero(inner):
        if heights[i] >= 0.5 * heights.max():
            bounds = (float(fine[i - 1, 0]), float(fine[i + 1, 0]))
            solved = minimize_scalar(down, bounds=bounds, method="bounded", options={"xatol": 1e-12})
            found.append((-float(solved.fun), float(solved.x)))
    return found
