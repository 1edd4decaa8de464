"""Where "later" layers begin: a rule that may also say that they begin nowhere.

Given a number y_l for each of L layers, three descriptions are compared by their Bayesian information criterion,
BIC = L ln(SSE / L) + p ln L:

    constant    y_l = a                             p = 1
    line        y_l = a + b l                       p = 2
    step        y_l = a before layer t, b from t    p = 3 (two levels and t), at least ``SHORTEST`` layers a side

t is the step of smallest squared error. There is a *boundary* at t when the step's BIC is below both others' by at
least ``MARGIN`` (on the scale of Kass and Raftery, 1995, 2 is where evidence becomes positive), and when that is so in
at least ``SHARE`` of resamples of the measurement. A plain drift over the layers is thus no boundary, and neither is
one that some heads alone carry. The interval is that of t over the resamples, from the 2.5th to the 97.5th percentile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

MARGIN = 2.0
SHARE = 0.9
SHORTEST = 2
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Step:
    """The best step through one series, and its BIC less that of the better of constant and line."""

    layer: int
    before: float
    after: float
    advantage: float
    """BIC(better of constant and line) - BIC(step): positive where the step describes better."""


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Boundary:
    """A series' boundary layer, or ``layer`` is ``None``: there is none.

    ``candidate``: the best step in any case; ``low``, ``high``: its interval; ``share``: resamples with a boundary.
    """

    layer: int | None
    candidate: int
    low: int
    high: int
    before: float
    after: float
    advantage: float
    share: float


def best_step(series: np.ndarray) -> Step:
    """The best step through y (L,), L >= 5.

    >>> best_step(np.array([9.0, 9.1, 8.9, 9.0, 2.0, 2.1, 1.9, 2.0])).layer
    4
    >>> best_step(np.arange(12.0)).advantage < 0
    True
    """
    count = len(series)
    # Errors are seen down to a millionth of the scale only: exact data must not send logarithms to infinity.
    least = 1e-12 * max(float(np.mean(np.square(series))), np.finfo(float).tiny) * count
    sums, squares = np.cumsum(series), np.cumsum(np.square(series))
    at = np.arange(SHORTEST, count - SHORTEST + 1)
    left = squares[at - 1] - sums[at - 1] ** 2 / at
    right = squares[-1] - squares[at - 1] - (sums[-1] - sums[at - 1]) ** 2 / (count - at)
    best = int(np.argmin(left + right))
    layer = int(at[best])
    x = np.arange(count) - (count - 1) / 2
    centred = series - series.mean()
    constant = float(centred @ centred)
    line = constant - float(x @ centred) ** 2 / float(x @ x)

    def bic(error: float, parameters: int) -> float:
        return float(count * np.log(max(error, least) / count) + parameters * np.log(count))

    advantage = min(bic(constant, 1), bic(line, 2)) - bic(float(left[best] + right[best]), 3)
    return Step(layer, float(series[:layer].mean()), float(series[layer:].mean()), advantage)


def find_boundary(series: np.ndarray, resamples: np.ndarray) -> Boundary | None:
    """The boundary of y (L,) with its resamples (B, L); ``None`` of fewer than 5 layers, which have none to find."""
    if len(series) < 2 * SHORTEST + 1:
        return None
    own = best_step(series)
    steps = [best_step(row) for row in resamples]
    low, high = np.percentile([step.layer for step in steps], INTERVAL)
    share = float(np.mean([step.advantage >= MARGIN for step in steps]))
    found = own.advantage >= MARGIN and share >= SHARE
    return Boundary(
        own.layer if found else None,
        own.layer,
        int(np.floor(low)),
        int(np.ceil(high)),
        own.before,
        own.after,
        own.advantage,
        share,
    )
