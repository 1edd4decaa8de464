"""Detection of the layer at which "later" layers begin, if there is one.

Given a number y_l for each of L layers, three models are compared by their Bayesian information criterion,
BIC = L ln(SSE / L) + p ln L:

    constant    y_l = a                             p = 1
    line        y_l = a + b l                       p = 2
    step        y_l = a before layer t, b from t    p = 3 (two levels and t), at least ``SHORTEST`` layers per side

t minimises the squared error. There is a *boundary* at t when the BIC of the step is below both others by at
least ``MARGIN`` (on the scale of Kass and Raftery, 1995, evidence is positive from 2 on), and when this holds in at
least ``SHARE`` of the resamples of the measurement. A gradual drift over the layers is thus not a boundary, and neither
is a step caused by a few heads. The interval spans the 2.5th to the 97.5th percentile of t over the resamples.
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
    """The best-fitting step of one series, and its BIC advantage over the better of constant and line."""

    layer: int
    before: float
    after: float
    advantage: float
    """BIC(better of constant and line) - BIC(step): positive if the step fits better."""


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Boundary:
    """The boundary layer of a series; ``layer`` is ``None`` if there is none.

    ``candidate``: the best step, whether or not it is a boundary; ``low``, ``high``: its interval; ``share``: share of
    resamples with a boundary.
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
    """The best-fitting step of y (L,), L >= 5.

    >>> best_step(np.array([9.0, 9.1, 8.9, 9.0, 2.0, 2.1, 1.9, 2.0])).layer
    4
    >>> best_step(np.arange(12.0)).advantage < 0
    True
    """
    count = len(series)
    # Errors are clamped at a millionth of the scale so that logarithms stay finite for exact data.
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
    """The boundary of y (L,) given its resamples (B, L); ``None`` for fewer than 5 layers."""
    if len(series) < 2 * SHORTEST + 1:
        return None
    best = best_step(series)
    steps = [best_step(row) for row in resamples]
    low, high = np.percentile([step.layer for step in steps], INTERVAL)
    share = float(np.mean([step.advantage >= MARGIN for step in steps]))
    has_boundary = best.advantage >= MARGIN and share >= SHARE
    return Boundary(
        best.layer if has_boundary else None,
        best.layer,
        int(np.floor(low)),
        int(np.ceil(high)),
        best.before,
        best.after,
        best.advantage,
        share,
    )
