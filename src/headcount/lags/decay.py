"""How fast E_pos falls with heads, and what the literature's rates say about it.

Wang and E (2024, arXiv 2402.00522) bound E_pos for every n by C(n) H^(-n) S^(n + 1), with S = sum_i e^(0.01 tau_i) for
linear biases and S = sum_i tau_i^1.01 for logarithmic ones, and unknown C(n). Two facts say where that can be compared
with computed values:

- Without a limit on coefficients E_pos of linear biases is 0 from H = tau + 1 heads on (see ``kernels``), so the rate
  binds for no H beyond that.
- With a limit C it falls to a positive floor, which finitely many heads reach: no rate in H holds to the end.

What is left is the fall from 1 to the floor. Its excess over the floor is fitted both as a power H^(-n) and as an
exponential e^(-k H), by least squares in logarithms; both are *fitted*, and neither is a bound. C(n) cancels in ratios,
so how the bound grows from one lag to another can be compared: ``bound_growth``.
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
"""The smallest excess over the floor that is fitted."""


@dataclass(frozen=True)
class Decay:
    """Fits of the excess over the floor: exponents, root-mean-square misfits in log(excess), and the points used."""

    power: float
    power_misfit: float
    rate: float
    rate_misfit: float
    heads: tuple[int, ...]


def decay(errors: Array, floor: float, smallest: float = SMALLEST) -> Decay | None:
    """Fit errors of 1, 2, ... heads; ``None`` where fewer than 3 lie between 1 and the floor.

    Args:
        errors: E_pos for 1, 2, ... heads; repeated values at the end count once.
        floor: the error of any number of heads.
        smallest: excesses below this are not fitted: the search is no more precise, or has ended there.

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
    return Decay(power, power_misfit, rate, rate_misfit, tuple(int(own) for own in heads))


def bound_growth(position: str, power: float, lag: int) -> float | None:
    """By what the literature's bound for n = ``power`` is larger at ``lag`` + 1 than at ``lag``; C(n) cancels.

    ``None`` for schemes that it does not treat.

    >>> round(bound_growth("alibi", 4.0, 1), 4), round(bound_growth("t5", 4.0, 1), 4), bound_growth("rope", 4.0, 1)
    (1.0513, 33.1285, None)
    """
    if position == "alibi":
        return math.exp(0.01 * (power + 1))
    if position == "t5" and lag > 0:
        return float(((lag + 1) / lag) ** (1.01 * (power + 1)))
    return None


class DecayRow(TypedDict):
    """A lag with its fits (see ``Decay``), and two growths from it to the next lag, ``None`` where there is none."""

    lag: int
    power: float
    power_misfit: float
    rate: float
    rate_misfit: float
    heads: list[int]
    growth: float | None
    bound_growth: float | None


class LagDecay(TypedDict):
    """The fall of the gain by a ``factor`` a lag, the fit's misfit in the logarithm, and the lags that it used."""

    factor: float
    misfit: float
    lags: list[int]


def decay_rows(table: Table, lags: Sequence[int], dim: int | None = None) -> list[DecayRow]:
    """The fits of those lags that have one, with two growths from the lag to the next: of the excess over the floor at
    the largest number of heads that both fits used, and of the literature's bound at the fitted power. ``dim``: of
    rotary heads, whose search ends at ``rotary.ENOUGH``."""
    smallest = rotary.ENOUGH if table.dims else SMALLEST
    fits = {lag: decay(table.errors(lag, dim=dim), float(table.lower(lag, dim=dim)[-1]), smallest) for lag in lags}
    rows: list[DecayRow] = []
    for lag, own in fits.items():
        if own is None:
            continue
        following = fits.get(lag + 1)
        common = sorted(set(own.heads) & set(following.heads)) if following else []
        grown = None
        if common:
            first, second = (table.errors(at, dim=dim) - table.lower(at, dim=dim)[-1] for at in (lag, lag + 1))
            grown = float(second[common[-1] - 1] / first[common[-1] - 1])
        bound = bound_growth(table.position, own.power, lag)
        rows.append(
            DecayRow(
                lag=lag,
                power=own.power,
                power_misfit=own.power_misfit,
                rate=own.rate,
                rate_misfit=own.rate_misfit,
                heads=list(own.heads),
                growth=grown,
                bound_growth=bound,
            )
        )
    return rows


def lag_decay(table: Table, lags: Sequence[int], smallest: float = 1e-7, dim: int | None = None) -> LagDecay | None:
    """How what any number of heads gains, 1 - E_pos, falls from lag to lag: the factor e^a of a fit e^(-a lag).

    Lags that gain all (an error of 0) or less than ``smallest`` are left out, and so are those before the gain falls
    below one half, where it is bounded by 1. ``None`` where fewer than 3 lags are left.
    """
    gains = np.array([1.0 - table.lower(lag, dim=dim)[-1] for lag in lags])
    used = (gains > smallest) & (gains < 0.5)
    if used.sum() < 3:
        return None
    along, height = np.asarray(lags, dtype=np.float64)[used], np.log(gains[used])
    slope, start = np.polyfit(along, height, 1)
    misfit = float(np.sqrt(np.mean((slope * along + start - height) ** 2)))
    return {"factor": float(np.exp(-slope)), "misfit": misfit, "lags": [int(lag) for lag in along]}
