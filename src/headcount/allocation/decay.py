"""How fast E_pos falls with heads, and what the literature's rates say about it.

Wang and E (2024, arXiv 2402.00522) bound E_pos for linear biases by C(n) H^(-n) (sum_i e^(0.01 tau_i))^(n + 1)
for every n, with unknown C(n): a rate at H -> infinity, without a limit on coefficients. Two facts say where that can
be compared with computed values:

- Without a limit E_pos is 0 from H = tau + 1 heads on (see ``kernels``), so the rate binds for no H beyond that.
- With a limit C it falls to a positive floor, which finitely many heads reach: no rate in H holds to the end.

What is left is the fall from 1 to the floor. Its excess over the floor is fitted both as a power H^(-n) and as an
exponential e^(-k H), by least squares in logarithms; both are *fitted*, and neither is a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Decay:
    """Fits of the excess over the floor: exponents, root-mean-square misfits in log(excess), and the points used."""

    power: float
    power_misfit: float
    rate: float
    rate_misfit: float
    heads: tuple[int, ...]


def decay(errors: Array, floor: float, smallest: float = 1e-5) -> Decay | None:
    """Fit errors of 1, 2, ... heads; ``None`` where fewer than 3 lie between 1 and the floor.

    Args:
        errors: E_pos for 1, 2, ... heads.
        floor: the error of any number of heads.
        smallest: excesses below this are the search's own precision and not fitted.

    >>> found = decay(0.1 + 0.5 * np.arange(1.0, 9.0) ** -3, floor=0.1)
    >>> round(found.power, 6), found.power_misfit < 1e-9 < found.rate_misfit
    (3.0, True)
    """
    excess = np.asarray(errors, dtype=np.float64) - floor
    falls = (np.asarray(errors) < 1 - smallest) & (excess > smallest)
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
