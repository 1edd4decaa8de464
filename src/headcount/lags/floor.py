"""Lower bounds on E_pos, valid for any search.

- ``floor``: linear biases, *any* number of heads, by linear-programming duality.
- ``ones``: linear biases, numbers of heads that are no better than no heads.
- ``rotary_floor``: one rotary head, by convexity.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar

from headcount.lags.kernels import LIMIT, Fit, best_coefficients, check_lag
from headcount.lags.schemes import Array, Linear, Rope

_CLOSE, _ROUNDS = 5e-7, 12
"""The tolerance between the bound and the value of the programme; the maximum rounds of adding slopes."""


def ones(lag: int, context: int) -> int:
    """The largest number of linear-bias heads for which E_pos = 1 is proved here, for any coefficients.

    Multipliers y with |y_s| <= 1, y_lag = 1 and sum_s y_s x_h^s = 0 for every h give an error of at least
    y . (spike - mixture) = 1. Take the coefficients of a polynomial in t with the heads' x_h in [0, 1] as roots:

    - one head, lag >= 1: t^(lag - 1) (t - x).
    - two heads, lag >= 2: t^(lag - 2) times (t - x)(t - z) if x + z <= 1, else times t^2 - (x z t + t^3) / (x + z).
    - per added head: a factor t^n - x^n with n = 3, 6, 12, ... in turn. The two heads' powers span three neighbours and
      the factors' sums are different multiples of 3, so no two products meet: 3 heads for lag >= 5, 4 for >= 11.

    >>> [ones(lag, 64) for lag in (0, 1, 2, 4, 5, 11, 32)]
    [0, 1, 2, 2, 3, 4, 5]
    """
    if lag < 2 or lag + 1 >= context:  # t^3 needs one more lag
        return min(lag, 1)
    return 1 + ((lag - 2) // 3 + 1).bit_length()


def floor(scheme: Linear, lag: int, limit: float = LIMIT) -> Fit:
    """The minimum error of *any* number of linear-bias heads, with slopes that attain it.

    For multipliers y with |y_s| <= 1, every mixture has sum_s |mixture - spike| >= y . (spike - mixture) >=
    y_lag - C max_x |f(x)| with f(x) = y . a_x. The multipliers come from the programme over a set of slopes; slopes
    where |f| is larger than on the set are added to it (column generation) until the bound matches the programme's
    value. ``error`` is the bound: f's maxima are found on a grid of 4,000 slopes, each then refined, which is not
    interval arithmetic.
    """
    check_lag(scheme, lag)
    if lag == 0:  # an infinite slope is the spike itself
        candidates = np.zeros((1, 1))
        return Fit(candidates, np.ones(1), 0.0, np.zeros(scheme.context))
    fine = 1.0 - np.concatenate([np.geomspace(1.0, 1e-5, 2000), np.linspace(0.0, 1.0, 2001)[:-1]])
    fine = np.unique(fine)[:, None]
    table = scheme.kernels(fine)
    candidates = fine[:: len(fine) // 150]
    for _ in range(_ROUNDS):
        fit = best_coefficients(scheme, candidates, lag, limit)
        multipliers = np.clip(fit.multipliers, -1.0, 1.0)
        peaks = _peaks(scheme, multipliers, fine, np.abs(table @ multipliers))
        largest = max(height for height, _ in peaks)
        bound = float(max(0.0, multipliers[lag] - limit * largest))
        if fit.error - bound < _CLOSE:
            break
        used = candidates[np.abs(fit.coefficients) > 0] if fit.error < 1 - 2 * _CLOSE else candidates
        candidates = np.unique(np.vstack([candidates, used, [[x] for _, x in peaks]]), axis=0)
    active = np.abs(fit.coefficients) > 1e-9 * limit
    return Fit(candidates[active], fit.coefficients[active], bound, multipliers)


def _peaks(scheme: Linear, multipliers: Array, fine: Array, heights: Array) -> list[tuple[float, float]]:
    """(height, x) of the local maxima of |f| that are near the highest one."""
    inner = (heights[1:-1] >= heights[:-2]) & (heights[1:-1] >= heights[2:])
    peaks = [(float(heights[i]), float(fine[i, 0])) for i in (0, len(fine) - 1)]

    def down(x: float) -> float:
        return -float(np.abs(scheme.kernels(np.array([[x]])) @ multipliers)[0])

    for i in 1 + np.flatnonzero(inner):
        if heights[i] >= 0.5 * heights.max():
            bounds = (float(fine[i - 1, 0]), float(fine[i + 1, 0]))
            solved = minimize_scalar(down, bounds=bounds, method="bounded", options={"xatol": 1e-12})
            peaks.append((-float(solved.fun), float(solved.x)))
    return peaks


def rotary_floor(scheme: Rope, numbers: Array, lag: int) -> float:
    """A lower bound for a single rotary head with all pairs, from the parameters (P,) of a good head.

    |1 - c a| + |c| (1 - a) >= min(1, (1 - a) / a) for every c, with a = a(lag), and (1 - a) / a = sum_{s != lag}
    e^(l_s - l_lag), whose logarithm f is convex in the parameters g. So f >= f(g) + f'(g) . (h - g) for every h, and
    with sum_i ||h_i|| <= budget the right side is at least f(g) - f'(g) . g - budget max_i ||f'(g)_i||. It is tight if
    g is optimal; pairs that the search omits are 0 in g.
    """
    scheme = replace(scheme, pairs=None)
    used = numbers.reshape(2, -1)
    numbers = np.pad(used, ((0, 0), (0, scheme.dim // 2 - used.shape[1]))).ravel()
    apart = np.delete(scheme.features, lag, axis=0) - scheme.features[lag]
    logits = apart @ numbers
    weights = np.exp(logits - logits.max())
    value = math.log(weights.sum()) + float(logits.max())
    slope = weights @ apart / weights.sum()
    steepest = float(np.hypot(*slope.reshape(2, -1)).max())
    return min(1.0, math.exp(value - float(slope @ numbers) - scheme.budget * steepest))
