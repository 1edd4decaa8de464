"""The search for the kernels of E_pos: for 1, 2, ... heads the best fit found.

What is found is an upper bound; ``floor`` has lower ones. Every number of heads has several starts:

- linear biases: the optimal mixture of all slopes, whose nearest slopes are merged one by one; slopes 0, eps, 2 eps,
  ... (which make the spike without a limit); and the fit of one head less with the kernel that its multipliers ask for
  most;
- softmax schemes: that last one and random ones. All take a first look; the best is followed to its minimum.

A fit that is not better than the one before is replaced by it, so errors never rise.
"""

from __future__ import annotations

import numpy as np

from headcount.allocation.descent import descend, polish
from headcount.allocation.floor import floor
from headcount.allocation.kernels import LIMIT, Fit, best_coefficients, check_lag
from headcount.allocation.newton import COARSE, FINE, finish, settle
from headcount.allocation.schemes import Array, Linear, Scheme, Softmax
from headcount.errors import HeadcountError
from headcount.seeds import numpy_generator

RESOLUTION = 1e-6
"""Errors this near to the floor are at it."""
_WORTH = 1e-8
_HIT = 30.0
_SPREADS = (0.02, 0.04, 0.07, 0.1, 0.14)
_INSIDE, _LEAST = 0.8, 1e-2


def search(scheme: Scheme, lag: int, heads: int, limit: float = LIMIT, seed: int = 0, restarts: int = 3) -> list[Fit]:
    """The best fits found for 1, 2, ... heads: a list that ends where more heads cannot help.

    Args:
        scheme: a family of kernels.
        lag: the lag to single out.
        heads: numbers of heads up to this.
        limit: C.
        seed: of the random starts.
        restarts: random starts of each number of heads.

    Raises:
        HeadcountError: a lag outside of the context.
    """
    check_lag(scheme, lag)
    generator = numpy_generator(seed, "allocation", type(scheme).__name__, lag)
    if isinstance(scheme, Linear):
        return _search_linear(scheme, lag, heads, limit, generator)
    if isinstance(scheme, Softmax):
        return _search_softmax(scheme, lag, heads, limit, generator, restarts)
    raise HeadcountError(f"{type(scheme).__name__} has no search", fix="use a linear or a softmax scheme")


def _kept(fits: list[Fit], tried: list[Fit]) -> Fit:
    best = min(tried, key=lambda fit: fit.error)
    return fits[-1] if fits and best.error > fits[-1].error - _WORTH else best


def _grown(scheme: Scheme, fit: Fit, pool: Array) -> Array:
    """A fit's numbers with the kernel of ``pool`` that its multipliers ask for most."""
    wanted = pool[np.abs(scheme.kernels(pool) @ fit.multipliers).argmax()]
    return np.vstack([fit.given, wanted])


def _search_linear(scheme: Linear, lag: int, heads: int, limit: float, generator: np.random.Generator) -> list[Fit]:
    bottom = floor(scheme, lag, limit)
    merged = _merged(scheme, bottom.given, lag, limit) if bottom.error < 1.0 - RESOLUTION else {}
    fits: list[Fit] = []
    for count in range(1, heads + 1):
        tried = [merged[count]] if count in merged else []
        if merged and count > lag:
            starts = [np.minimum(eps * np.arange(count), 1.0)[:, None] for eps in _SPREADS]
            tried += [polish(scheme, start, lag, limit) for start in starts]
        if merged and fits:
            grown = _grown(scheme, fits[-1], np.linspace(0.0, 1.0, 400)[:, None])
            tried += [polish(scheme, grown, lag, limit)]
        if not tried:
            tried = [best_coefficients(scheme, scheme.random(generator, 1, lag), lag, limit)]
        fits.append(_kept(fits, tried))
        if fits[-1].error <= bottom.error + RESOLUTION:
            break
    return fits


def _merged(scheme: Linear, given: Array, lag: int, limit: float) -> dict[int, Fit]:
    """Fits of fewer and fewer slopes: of all neighbours the pair whose merging costs least becomes one slope."""
    fits: dict[int, Fit] = {}
    given = np.sort(given, axis=0)
    while len(given):
        fit = polish(scheme, given, lag, limit)
        if fit.error >= 1.0 - RESOLUTION:
            fit = descend(scheme, given, lag, limit)
        fits[len(given)] = fit
        given = np.sort(fit.given, axis=0)
        tried = [np.vstack([given[:i], (given[i] + given[i + 1]) / 2, given[i + 2 :]]) for i in range(len(given) - 1)]
        if not tried:
            break
        given = min(tried, key=lambda one: best_coefficients(scheme, one, lag, limit, _HIT).error)
    return fits


def _search_softmax(
    scheme: Softmax, lag: int, heads: int, limit: float, generator: np.random.Generator, restarts: int
) -> list[Fit]:
    fits: list[Fit] = []
    for count in range(1, heads + 1):
        starts = [scheme.random(generator, count, lag) for _ in range(restarts)]
        if fits:
            starts.append(_grown(scheme, fits[-1], scheme.random(generator, 64, lag)))
        looks = [settle(scheme, *_start(scheme, start, lag, limit), lag, limit, COARSE) for start in starts]
        best = min(looks, key=lambda look: finish(scheme, look[0], lag, limit).error)
        fits.append(_kept(fits, [finish(scheme, settle(scheme, *best, lag, limit, FINE)[0], lag, limit)]))
        if fits[-1].error <= RESOLUTION:
            break
    return fits


def _start(scheme: Softmax, given: Array, lag: int, limit: float) -> tuple[Array, Array]:
    """Numbers and coefficients well inside the limits, no coefficient at 0, where its head would have no slope."""
    given = scheme.inside(given) * _INSIDE
    coefficients = best_coefficients(scheme, given, lag, limit, _HIT).coefficients
    idle = np.abs(coefficients) < _LEAST / 10
    coefficients[idle] = _LEAST * (-1.0) ** np.flatnonzero(idle)
    return given, coefficients * min(1.0, limit / 2 / np.abs(coefficients).sum())
