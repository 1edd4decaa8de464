"""Lower bounds on E_pos: what no search can go below.

- ``floor``: linear biases, *any* number of heads, by linear-programming duality.
- ``ones``: linear biases, numbers of heads that cannot do better than no head at all.
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
"""Where the bound and the programme's value meet; rounds of adding slopes."""


def ones(lag: int, context: int) -> int:
    """The most heads with linear biases for which E_pos = 1 is proved here, whatever the coefficients.

    Multipliers y with |y_s| <= 1, y_lag = 1 and sum_s y_s x_h^s = 0 for every h give an error of at least
    y . (spike - mixture) = 1. Take the coefficients of a polynomial in t with the heads' x_h in [0, 1] as roots:

    - one head, lag >= 1: t^(lag - 1) (t - x).
    - two heads, lag >= 2: t^(lag - 2) times (t - x)(t - z) if x + z <= 1, else times t^2 - (x z t + t^3) / (x + z).
    - each head more: a factor t^n - x^n with n = 3, 6, 12, ... in turn. The two heads' powers span three neighbours and
      the factors' sums are different multiples of 3, so that no two products meet: 3 heads for lag >= 5, 4 for >= 11.

    >>> [ones(lag, 64) for lag in (0, 1, 2, 4, 5, 11, 32)]
    [0, 1, 2, 2, 3, 4, 5]
    """
    if lag < 2 or lag + 1 >= context:  # t^3 needs a lag beyond
        return min(lag, 1)
    return 1 + ((lag - 2) // 3 + 1).bit_length()


def floor(scheme: Linear, lag: int, limit: float = LIMIT) -> Fit:
    """The least error of *any* number of linear-bias heads, with slopes that reach it.

    For multipliers y with |y_s| <= 1, every mixture has sum_s |mixture - spike| >= y . (spike - mixture) >=
    y_lag - C max_x |f(x)| with f(x) = y . a_x. The multipliers come from the programme over a set of slopes; slopes
    where |f| is larger than on the set are added to it (column generation) until that bound meets the programme's
    value. ``error`` is the bound: f's maxima are found on a grid of 4,000 slopes, each then refined, which is not
    interval arithmetic.
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
        if fit.error - bound < _CLOSE:
            break
        used = given[np.abs(fit.coefficients) > 0] if fit.error < 1 - 2 * _CLOSE else given
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


def rotary_floor(scheme: Rope, given: Array, lag: int) -> float:
    """What no single rotary head with all pairs goes below, from the numbers (P,) of a good one.

    |1 - c a| + |c| (1 - a) >= min(1, (1 - a) / a) for every c, with a = a(lag), and (1 - a) / a = sum_{s != lag}
    e^(l_s - l_lag), whose logarithm f is convex in the numbers g. So f >= f(g) + f'(g) . (h - g) for every h, and with
    sum_i ||h_i|| <= budget the right side is at least f(g) - f'(g) . g - budget max_i ||f'(g)_i||. It is tight where g
    is optimal, and pairs that the search left out are 0 in g.
    """
    scheme = replace(scheme, pairs=None)
    used = given.reshape(2, -1)
    given = np.pad(used, ((0, 0), (0, scheme.dim // 2 - used.shape[1]))).ravel()
    apart = np.delete(scheme.features, lag, axis=0) - scheme.features[lag]
    logits = apart @ given
    weights = np.exp(logits - logits.max())
    value = math.log(weights.sum()) + float(logits.max())
    slope = weights @ apart / weights.sum()
    steepest = float(np.hypot(*slope.reshape(2, -1)).max())
    return min(1.0, math.exp(value - float(slope @ given) - scheme.budget * steepest))
