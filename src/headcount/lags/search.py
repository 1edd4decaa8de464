"""Search for the kernels of E_pos: the best fit found for each number of heads 1, 2, ...

The results are upper bounds; ``floor`` has lower bounds. Each number of heads has several starting points:

- linear biases: the optimal mixture of all slopes, whose nearest slopes are merged one by one; slopes 0, eps, 2 eps,
  ... (which give the exact spike without a limit); and the fit with one head fewer, extended by the kernel with the
  largest reduced cost;
- softmax schemes: the same extended fit, random points, for one rotary head the optimum (a convex problem), and fits
  supplied by the caller, such as those of a smaller rotary dimension. All points get a coarse optimisation, alternately
  from the first or a later smoothing on; the best are then optimised fully.

A fit that is not better than the previous one is replaced by it, so errors never increase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.lags.descent import descend, polish
from headcount.lags.floor import floor
from headcount.lags.kernels import LIMIT, Fit, best_coefficients, check_lag
from headcount.lags.newton import COARSE, FINE, LATE, best_single, finish, settle
from headcount.lags.schemes import Array, Linear, Rope, Scheme, Softmax

RESOLUTION = 1e-6
"""Errors within this distance of the floor count as equal to it."""
_WORTH = 1e-8
_HIT = 30.0
_SPREADS = (0.02, 0.04, 0.07, 0.1, 0.14)
_INSIDE, _LEAST = 0.8, 1e-2
_FOLLOWED = 2
"""Number of coarse solutions that are optimised fully."""


def search(
    scheme: Scheme,
    lag: int,
    heads: int,
    limit: float = LIMIT,
    seed: int = 0,
    restarts: int = 3,
    known: Mapping[int, Sequence[Array]] | None = None,
    enough: float = RESOLUTION,
) -> list[Fit]:
    """The best fits found for 1, 2, ... heads; the list ends when more heads cannot help.

    Args:
        scheme: a family of kernels.
        lag: the lag to select.
        heads: maximum number of heads.
        limit: C.
        seed: seed of the random starting points.
        restarts: random starting points per number of heads.
        known: softmax schemes: parameters (H, P) of good kernels by number of heads. The fit of H heads is at least as
            good as each of them.
        enough: softmax schemes: the error at which the search stops adding heads.

    Raises:
        HeadcountError: if the lag is outside the context.
    """
    check_lag(scheme, lag)
    generator = numpy_generator(seed, "allocation", type(scheme).__name__, lag)
    if isinstance(scheme, Linear):
        return _search_linear(scheme, lag, heads, limit, generator)
    if isinstance(scheme, Softmax):
        return _search_softmax(scheme, lag, heads, limit, generator, restarts, known or {}, enough)
    raise HeadcountError(f"{type(scheme).__name__} has no search", fix="use a linear or a softmax scheme")


def _best_fit(fits: list[Fit], tried: list[Fit]) -> Fit:
    best = min(tried, key=lambda fit: fit.error)
    return fits[-1] if fits and best.error > fits[-1].error - _WORTH else best


def _grown(scheme: Scheme, fit: Fit, pool: Array) -> Array:
    """The parameters of a fit, extended by the kernel of ``pool`` with the largest reduced cost."""
    best_numbers = pool[np.abs(scheme.kernels(pool) @ fit.multipliers).argmax()]
    return np.vstack([fit.given, best_numbers])


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
        fits.append(_best_fit(fits, tried))
        if fits[-1].error <= bottom.error + RESOLUTION:
            break
    return fits


def _merged(scheme: Linear, numbers: Array, lag: int, limit: float) -> dict[int, Fit]:
    """Fits with successively fewer slopes: at each step, the adjacent pair that is cheapest to merge is merged."""
    fits: dict[int, Fit] = {}
    numbers = np.sort(numbers, axis=0)
    while len(numbers):
        fit = polish(scheme, numbers, lag, limit)
        if fit.error >= 1.0 - RESOLUTION:
            fit = descend(scheme, numbers, lag, limit)
        fits[len(numbers)] = fit
        numbers = np.sort(fit.given, axis=0)
        tried = [
            np.vstack([numbers[:i], (numbers[i] + numbers[i + 1]) / 2, numbers[i + 2 :]])
            for i in range(len(numbers) - 1)
        ]
        if not tried:
            break
        numbers = min(tried, key=lambda one: best_coefficients(scheme, one, lag, limit, _HIT).error)
    return fits


def _search_softmax(
    scheme: Softmax,
    lag: int,
    heads: int,
    limit: float,
    generator: np.random.Generator,
    restarts: int,
    known: Mapping[int, Sequence[Array]],
    enough: float,
) -> list[Fit]:
    fits: list[Fit] = []
    for count in range(1, heads + 1):
        starts = [scheme.random(generator, count, lag) for _ in range(restarts)]
        if fits:
            starts.append(_grown(scheme, fits[-1], scheme.random(generator, 64, lag)))
        if count == 1 and isinstance(scheme, Rope):
            starts = [best_single(scheme, lag)[None]]
        looks = [
            settle(scheme, *_start(scheme, start, lag, limit), lag, limit, (COARSE, LATE)[number % 2])
            for number, start in enumerate([*starts, *known.get(count, ())])
        ]
        looks.sort(key=lambda look: finish(scheme, look[0], lag, limit).error)
        ended = [settle(scheme, *look, lag, limit, FINE)[0] for look in looks[:_FOLLOWED]]
        if count == 1:
            ended += starts
        fits.append(_best_fit(fits, [finish(scheme, end, lag, limit) for end in [*ended, *known.get(count, ())]]))
        if fits[-1].error <= enough:
            break
    return fits


def embedded(numbers: Array, part: Rope, whole: Rope) -> Array:
    """Embed parameters (H, P) of a rotary dimension in a multiple of that dimension; the other pairs are 0.

    theta_i = base^(-2i/d): pair i of d dimensions is pair k i of k d. The kernels are unchanged except for pairs that
    ``whole`` omits.

    >>> embedded(np.array([[1.0, 2.0, 3.0, 4.0]]), Rope(dim=4), Rope(dim=8)).tolist()
    [[1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0]]
    """
    times, rest = divmod(whole.dim, part.dim)
    if rest or part.base != whole.base:
        raise HeadcountError(
            f"frequencies of {part.dim} rotary dimensions are none of {whole.dim}", fix=f"use a multiple of {part.dim}"
        )
    places = times * np.arange(part.width // 2)
    inside = places < whole.width // 2
    padded = np.zeros((len(numbers), 2, whole.width // 2))
    padded[:, :, places[inside]] = numbers.reshape(len(numbers), 2, -1)[:, :, inside]
    return padded.reshape(len(numbers), -1)


def _start(scheme: Softmax, numbers: Array, lag: int, limit: float) -> tuple[Array, Array]:
    """Parameters and coefficients well inside the limits; no coefficient is 0, where its head has no gradient."""
    numbers = scheme.inside(numbers) * _INSIDE
    coefficients = best_coefficients(scheme, numbers, lag, limit, _HIT).coefficients
    idle = np.abs(coefficients) < _LEAST / 10
    coefficients[idle] = _LEAST * (-1.0) ** np.flatnonzero(idle)
    return numbers, coefficients * min(1.0, limit / 2 / np.abs(coefficients).sum())
