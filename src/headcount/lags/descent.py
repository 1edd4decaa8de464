"""Optimisation of linear-bias slopes by sequential linear programming.

Slopes and coefficients are linearised together inside a trust region; a step is accepted if
the exact coefficients at the new slopes have a smaller error. Solutions are vertices (few slopes, many zero
residuals), where this converges fast.
"""

from __future__ import annotations

from headcount.lags.kernels import LIMIT, Fit, Moves, best_coefficients, programme
from headcount.lags.schemes import Array, Linear

_STEPS, _FIRST, _LAST, _WORTH = 40, 0.1, 1e-9, 1e-9
"""Maximum steps; initial and final trust-region radius; the predicted gain below which a descent stops."""
_WEIGHTS = (30.0, 3.0)
"""Weights of the lag itself in the first descents."""


def polish(scheme: Linear, numbers: Array, lag: int, limit: float = LIMIT, weight: float = 1.0) -> Fit:
    """Descend from slopes (H, 1) to a local minimum; the error never increases."""
    fit = best_coefficients(scheme, numbers, lag, limit, weight)
    radius = _FIRST
    for _ in range(_STEPS):
        slopes = (scheme.jacobian(fit.given) * fit.coefficients[:, None, None])[:, :, 0].T
        low, high = (scheme.inside(fit.given + way) - fit.given for way in (-radius, radius))
        # In units of the trust-region radius, so that the solver's variables have the same scale.
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


def descend(scheme: Linear, numbers: Array, lag: int, limit: float = LIMIT) -> Fit:
    """Polish with a high weight on the lag, then a lower weight, then for E_pos itself.

    Coefficients of 0, with an error of 1, are a local minimum for all slopes whose mixtures put less weight on the lag
    than on all other lags together; a higher weight on the lag escapes it.
    """
    for weight in _WEIGHTS:
        numbers = polish(scheme, numbers, lag, limit, weight).given
    return polish(scheme, numbers, lag, limit)
