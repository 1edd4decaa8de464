"""E_pos: the error of H heads in selecting one lag, computed rather than bounded.

    E_pos(H, tau) = min over kernels a_1..a_H of a scheme and coefficients c with sum_h |c_h| <= C of
                    sum_{s < L} | sum_h c_h a_h(s) - [s = tau] |

(Wang and E 2024, arXiv 2402.00522, and Yu et al. 2025, arXiv 2510.03784, bound it up to unknown constants.)

**The limit C.** Without a limit the minimum is trivial for linear biases: it is 0 for H >= tau + 1 heads. Take
x_h = h eps: the coefficients that solve sum_h c_h x_h^s = [s = tau] for s <= tau (a Vandermonde system) leave an
error of O(eps) on later lags, and are of size eps^(-tau). So with a limit, E_pos(tau + 1, tau) <= K_tau C^(-1/tau).
The limit has an interpretation: weights that are stored with a relative error of u (2^-9 in bfloat16) change the
mixture by at most u C in the same norm, because every kernel has sum 1.

This module computes the best coefficients for fixed kernels with a linear programme (HiGHS); ``search`` finds kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from headcount.core.errors import HeadcountError
from headcount.lags.schemes import Array, Scheme

LIMIT = 64.0
"""The default C: bfloat16 weights then change the mixture by at most 64 * 2^-9 = 1/8."""
_TOLERANCES = (1e-10, 1e-9, 1e-7)
"""HiGHS's feasibility tolerances, tried in order: the tightest fails on mixtures that are nearly exact."""


@dataclass(frozen=True)
class Fit:
    """Kernel parameters (H, P), coefficients (H), the error, and the multipliers of the lags (L)."""

    given: Array
    coefficients: Array
    error: float
    multipliers: Array


class Solved(NamedTuple):
    """The solution of a linear programme."""

    coefficients: Array
    moves: Array
    value: float
    multipliers: Array


class Moves(NamedTuple):
    """Linearised moves x of kernels: their columns (L, X), and low <= x <= high."""

    columns: Array
    low: Array
    high: Array


def check_lag(scheme: Scheme, lag: int) -> None:
    """Raise if the lag is outside the context."""
    if not 0 <= lag < scheme.context:
        raise HeadcountError(
            f"lag {lag} is outside a context of {scheme.context} tokens", fix=f"use 0 to {scheme.context - 1}"
        )


def programme(columns: Array, lag: int, limit: float, weight: float = 1.0, moves: Moves | None = None) -> Solved:
    """min sum_s w_s |(columns c + moves.columns x - spike)(s)| with ||c||_1 <= limit and x within ``moves``.

    w is ``weight`` at the lag and 1 elsewhere. The variables are c / limit, so that the solver's
    tolerances on reduced costs are tolerances on the bound given by its multipliers.
    """
    lags, heads = columns.shape
    moves = moves or Moves(np.zeros((lags, 0)), np.zeros(0), np.zeros(0))
    eye = sparse.identity(lags, format="csr")
    scaled = columns * limit
    equal = sparse.hstack([sparse.csr_matrix(np.hstack([scaled, -scaled, moves.columns])), eye, -eye], format="csr")
    weights = np.ones(lags)
    weights[lag] = weight
    free = 2 * heads + len(moves.low)
    cost = np.concatenate([np.zeros(free), weights, weights])
    total = np.zeros((1, cost.size))
    total[0, : 2 * heads] = 1.0
    least = np.concatenate([np.zeros(2 * heads), moves.low, np.zeros(2 * lags)])
    most = np.concatenate([np.full(2 * heads, np.inf), moves.high, np.full(2 * lags, np.inf)])
    for tolerance in _TOLERANCES:
        solved = linprog(
            cost,
            A_ub=sparse.csr_matrix(total),
            b_ub=[1.0],
            A_eq=equal,
            b_eq=spike(lags, lag),
            bounds=np.stack([least, most], axis=1),
            method="highs",
            options={"primal_feasibility_tolerance": tolerance, "dual_feasibility_tolerance": tolerance},
        )
        if solved.status == 0:
            break
    else:  # the programme is feasible (c = x = 0) and bounded below by 0
        raise RuntimeError(f"HiGHS did not solve the programme of lag {lag}: {solved.message}")
    coefficients = (solved.x[:heads] - solved.x[heads : 2 * heads]) * limit
    return Solved(coefficients, solved.x[2 * heads : free], solved.fun, solved.eqlin.marginals)


def spike(lags: int, lag: int) -> Array:
    """[s = lag] for s < lags."""
    indicator = np.zeros(lags)
    indicator[lag] = 1.0
    return indicator


def best_coefficients(scheme: Scheme, numbers: Array, lag: int, limit: float = LIMIT, weight: float = 1.0) -> Fit:
    """The best coefficients for fixed kernels by a linear programme; the error is computed from the coefficients.

    ``weight`` is the relative weight of the error at the lag itself (in the choice of coefficients and in
    ``error``); 1 gives E_pos.

    >>> from headcount.lags.schemes import Linear
    >>> fit = best_coefficients(Linear(8), np.array([[0.0]]), lag=0)
    >>> fit.coefficients.tolist(), fit.error
    ([1.0], 0.0)
    """
    kernels = scheme.kernels(numbers)
    solved = programme(kernels.T, lag, limit, weight)
    weights = 1.0 + (weight - 1.0) * spike(scheme.context, lag)
    misses = np.abs(solved.coefficients @ kernels - spike(scheme.context, lag))
    return Fit(numbers, solved.coefficients, float(weights @ misses), solved.multipliers)
