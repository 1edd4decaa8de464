"""E_pos of rotary heads at each dimension: the search at d starts from the fits at the dimensions that divide d.

theta_i = base^(-2i/d): the frequencies of d dimensions are among those of k d, so kernels of d dimensions are kernels
of k d. A fit at d is a starting point at k d, and its error is an upper bound there. Dimensions that do not divide each
other have different frequencies, and the errors of one do not bound those of the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headcount.lags.floor import rotary_floor
from headcount.lags.kernels import Fit
from headcount.lags.newton import best_single
from headcount.lags.schemes import Array, Rope
from headcount.lags.search import embedded, search

HEADS, ENOUGH = 8, 1e-4
"""The search for a lag stops at this number of heads or at this error."""
_TURN, _PAIRS = 0.65, 16
_TRIES, _FEWEST, _MOST = 48, 4, 24
"""Random starts: ``_TRIES`` divided by the number of pairs, from ``_FEWEST`` to ``_MOST``. Few pairs have many local
minima."""


def searched(whole: Rope) -> Rope:
    """The scheme restricted to searched pairs: the 16 fastest, and all that rotate by at least 0.65 over the context.

    For 64 dimensions and 64 tokens these are 16 of 32 pairs, which is five times as fast as using all pairs.

    >>> [searched(Rope(64, 8.0, dim)).pairs for dim in (8, 32, 64, 128)]
    [4, 16, 16, 32]
    """
    turning = int((whole.frequencies * (whole.context - 1) >= _TURN).sum())
    return Rope(whole.context, whole.budget, whole.dim, whole.base, min(whole.dim // 2, max(_PAIRS, turning)))


def rotary_cells(
    schemes: Mapping[int, Rope], lag: int, heads: int, limit: float, seed: int = 0
) -> dict[int, tuple[list[float], list[float]]]:
    """Errors of 1, 2, ... heads and proved lower bounds, for each dimension.

    Args:
        schemes: by dimension; the fits of the dimensions that divide a dimension are used for it.
        lag: the lag to select.
        heads: maximum number of heads; the search uses at most ``HEADS``.
        limit: C.
        seed: seed of the random starting points, which do not depend on the other dimensions.
    """
    fits: dict[int, list[Fit]] = {}
    errors: dict[int, list[float]] = {}
    cells = {}
    for dim in sorted(schemes):
        scheme = schemes[dim]
        divisors = [part for part in fits if dim % part == 0]
        restarts = max(_FEWEST, min(_MOST, _TRIES // len(scheme.frequencies)))
        starts = _starts({part: fits[part] for part in divisors}, schemes, scheme)
        fits[dim] = search(scheme, lag, min(heads, HEADS), limit, seed, restarts, starts, ENOUGH)
        rows = [[fit.error for fit in fits[dim]], *(errors[part] for part in divisors)]
        reach = max(len(row) for row in rows)
        # The divisors' errors are also used directly: their kernels may use pairs that are not searched here.
        errors[dim] = np.min([row + row[-1:] * (reach - len(row)) for row in rows], axis=0).tolist()
        first = min(errors[dim][0], rotary_floor(scheme, best_single(scheme, lag), lag))
        cells[dim] = (errors[dim], [first, 0.0][:reach])
    return cells


def _starts(fits: Mapping[int, list[Fit]], schemes: Mapping[int, Rope], scheme: Rope) -> dict[int, list[Array]]:
    """The kernels fitted at the divisors of a dimension as parameters of ``scheme``, by number of heads."""
    starts: dict[int, list[Array]] = {}
    for part, fits_of_part in fits.items():
        if any(other != part and other % part == 0 for other in fits):
            continue  # its kernels were starting points at the other dimension
        for fit in fits_of_part:
            starts.setdefault(len(fit.given), []).append(embedded(fit.given, schemes[part], scheme))
    return starts
