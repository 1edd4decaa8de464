"""Slopes of linear biases, improved by sequential linear programming.

Slopes and coefficients are linearised together inside a trust region; a step is kept when the exact coefficients at the
new slopes have a smaller error. Solutions are vertices (few slopes, many residuals of 0), where this converges fast.
"""

from __future__ import annotations

from headcount.lags.kernels import LIMIT, Fit, Moves, best_coefficients, programme
from headcount.lags.schemes import Array, Linear

_STEPS, _FIRST, _LAST, _WORTH = 40, 0.1, 1e-9, 1e-9
"""Steps at most; the first and the last trust region; the promised gain below which a descent ends."""
_WEIGHTS = (30.0, 3.0)
"""How often the first descents count the lag itself."""


def polish(scheme: Linear, given: Array, lag: int, limit: float = LIMIT, weight: float = 1.0) -> Fit:
    """Go down from slopes (H, 1) to a local minimum; the error never rises."""
    fit = best_coefficients(scheme, given, lag, limit, weight)
    radius = _FIRST
    for _ in range(_STEPS):
        slopes = (scheme.jacobian(fit.given) * fit.coefficients[:, None, None])[:, :, 0].T
        low, high = (scheme.inside(fit.given + way) - fit.given for way in (-radius, radius))
        # In units of the region's radius, so that the solver sees numbers of one size.
        moves = Moves(slopes * radius, low.ravel() / radius, high.ravel() / radius)
        solved = programme(scheme.kernels(fit.given).T, lag, limit, weight, moves)
        promised = fit.error - solved.value
        if promised < _WORTH:
            break
        moved = scheme.inside(fit.given + radius * solved.moves[:, None])
        tried = best_coefficients(scheme, moved, lag, limit, weight)
        gain = (fit.error - tried.error) / promised
        if gain > 0:
            fit = tried
        radius = min(radius * 2, _FIRST) if gain > 0.5 else radius / 4 if gain < 0.1 else radius
        if radius < _LAST:
            break
    return fit


def descend(scheme: Linear, given: Array, lag: int, limit: float = LIMIT) -> Fit:
    """Polish with the lag counted often, then less, then for E_pos itself.

    Coefficients of 0, with an error of 1, are a local minimum for all slopes whose mixtures put less on the lag than on
    the other lags together; counting the lag more leads out of it.
    """
    for weight in _WEIGHTS:
        given = polish(scheme, given, lag, limit, weight).given
    return polish(scheme, given, lag, limit)
