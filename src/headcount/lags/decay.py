"""The decay of E_pos with the number of heads, compared with rates from the literature.

Wang and E (2024, arXiv 2402.00522) bound E_pos for every n by C(n) H^(-n) S^(n + 1), with S = sum_i e^(0.01 tau_i) for
linear biases and S = sum_i tau_i^1.01 for logarithmic ones, and unknown C(n). Two facts determine where that can be
compared with computed values:

- Without a limit on coefficients, E_pos of linear biases is 0 for H >= tau + 1 heads (see ``kernels``), so the rate
  is not binding for such H.
- With a limit C it decreases to a positive floor, attained by finitely many heads: no rate in H holds asymptotically.

This leaves the decrease from 1 to the floor. The excess over the floor is fitted both as a power H^(-n) and as an
exponential e^(-k H), by least squares in logarithms; both are *fits*, and neither is a bound. C(n) cancels in ratios,
so the growth of the bound from one lag to the next can be compared: ``bound_growth``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from headcount.lags import rotary
from headcount.lags.schemes import Array
from headcount.lags.table import Table

SMALLEST = 1e-5
"""The smallest excess over the floor that is included in fits."""


@dataclass(frozen=True)
class Decay:
    """Fits of the excess over the floor: exponents, root-mean-square misfits in log(excess), and the points used."""

    power: float
    power_misfit: float
    rate: float
    rate_misfit: float
    heads: tuple[int, ...]


def decay(errors: Array, floor: float, smallest: float = SMALLEST) -> Decay | None:
    """Fit errors of 1, 2, ... heads; ``None`` if fewer than 3 lie between 1 and the floor.

    Args:
        errors: E_pos for 1, 2, ... heads; repeated values at the end count once.
        floor: the error with arbitrarily many heads.
        smallest: smaller excesses are excluded: the search is not more precise, or stopped there.

    >>> found = decay(0.1 + 0.5 * np.arange(1.0, 9.0) ** -3, floor=0.1)
    >>> round(found.power, 6), found.power_misfit < 1e-9 < found.rate_misfit
    (3.0, True)
    """
    errors = np.asarray(errors, dtype=np.float64)
    excess = errors - floor
    falls = (errors < 1 - smallest) & (excess > smallest)
    falls[1:] &= np.diff(errors) < 0
    heads = 1 + np.flatnonzero(falls)
    if len(heads) < 3:
        return None
    height = np.log(excess[falls])

    def line(along: Array) -> tuple[float, float]:
        slope, start = np.polyfit(along, height, 1)
        return -float(slope), float(np.sqrt(np.mean((slope * along + start - height) ** 2)))

    power, power_misfit = line(np.log(heads))
    rate, rate_misfit = line(heads.astype(np.float64))
    return Decay(power, power_misfit, rate, rate_misfit, tuple(int(count) for count in heads))


def bound_growth(position: str, power: float, lag: int) -> float | None:
    """The ratio of the literature bound for n = ``power`` at ``lag`` + 1 to that at ``lag``; C(n) cancels.

    ``None`` for schemes that the bound does not cover.

    >>> round(bound_growth("alibi", 4.0, 1), 4), round(bound_growth("t5", 4.0, 1), 4), bound_growth("rope", 4.0, 1)
    (1.0513, 33.1285, None)
    """
    if position == "alibi":
        return math.exp(0.01 * (power + 1))
    if position == "t5" and lag > 0:
        return float(((lag + 1) / lag) ** (1.01 * (power + 1)))
    return None


class DecayRow(TypedDict):
    """A lag with its fits (see ``Decay``), and two growth factors to the next lag, ``None`` if unavailable."""

    lag: int
    power: float
    power_misfit: float
    rate: float
    rate_misfit: float
    heads: list[int]
    growth: float | None
    bound_growth: float | None


class LagDecay(TypedDict):
    """The decay ``factor`` of the gain per lag, the misfit in the logarithm, and the lags used in the fit."""

    factor: float
    misfit: float
    lags: list[int]


def decay_rows(table: Table, lags: Sequence[int], dim: int | None = None) -> list[DecayRow]:
    """The fits of all lags that have one, with two growth factors to the next lag: of the excess over the floor at
    the largest number of heads used in both fits, and of the literature bound at the fitted power. ``dim``: dimension
    of rotary heads, whose search stops at ``rotary.ENOUGH``."""
    smallest = rotary.ENOUGH if table.dims else SMALLEST
    fits = {lag: decay(table.errors(lag, dim=dim), float(table.lower(lag, dim=dim)[-1]), smallest) for lag in lags}
    rows: list[DecayRow] = []
    for lag, fit in fits.items():
        if fit is None:
            continue
        following = fits.get(lag + 1)
        common = sorted(set(fit.heads) & set(following.heads)) if following else []
        grown = None
        if common:
            first, second = (table.errors(at, dim=dim) - table.lower(at, dim=dim)[-1] for at in (lag, lag + 1))
            grown = float(second[common[-1] - 1] / first[common[-1] - 1])
        bound = bound_growth(table.position, fit.power, lag)
        rows.append(
            DecayRow(
                lag=lag,
                power=fit.power,
                power_misfit=fit.power_misfit,
                rate=fit.rate,
                rate_misfit=fit.rate_misfit,
                heads=list(fit.heads),
                growth=grown,
                bound_growth=bound,
            )
        )
    return rows


def lag_decay(table: Table, lags: Sequence[int], smallest: float = 1e-7, dim: int | None = None) -> LagDecay | None:
    """Decay over lags of the gain 1 - E_pos with any number of heads: the factor e^a of a fit e^(-a lag).

    Lags with a gain of at most ``smallest`` are excluded, and so are lags with a gain of at least one half, where the
    upper limit of 1 affects the fit. ``None`` if fewer than 3 lags remain.
    """
    gains = np.array([1.0 - table.lower(lag, dim=dim)[-1] for lag in lags])
    used = (gains > smallest) & (gains < 0.5)
    if used.sum() < 3:
        return None
    along, height = np.asarray(lags, dtype=np.float64)[used], np.log(gains[used])
    slope, start = np.polyfit(along, height, 1)
    misfit = float(np.sqrt(np.mean((slope * along + start - height) ** 2)))
    return {"factor": float(np.exp(-slope)), "misfit": misfit, "lags": [int(lag) for lag in along]}
