"""Softmax saturation: bounds with explicit constants on the change of a head's output when its logits change.

Letters: s, s' rows of L logits; p, p' their softmax; delta is half the range (largest minus smallest) of s' - s,
which is invariant to a constant added to a row; b bounds logits; S is the covariance of the values.

**Shift-invariant perturbation.** TV(p, p') = (1/2) sum_j |p_j - p'_j| <= tanh(delta / 2).
With u = s' - s in [m, M], p'_j = p_j e^(u_j) / Z. On J = {j : p'_j > p_j}, of p-weight w and p'-weight w', the odds
w' / (1 - w') are those of w times a ratio of means of e^u, on J over off J, which is at most e^(M - m) = e^(2 delta).
So TV = w' - w <= max over w of w e^(2 delta) / (1 - w + w e^(2 delta)) - w. The maximum is at w = 1 / (1 + e^delta)
and is (e^delta - 1) / (e^delta + 1) = tanh(delta / 2). It is attained by u = M on tokens of that p-weight, m elsewhere.

**Long context.** If all logits of both rows lie in [-b, b], every weight is at most e^(2b) / L, for e^s <= e^b and the
normaliser is at least L e^(-b). Hence
||p - p'||_2^2 <= max_j |p_j - p'_j| * sum_j |p_j - p'_j| <= (e^(2b) / L) * 2 tanh(delta / 2).
The ratio p'_j / p_j = e^(u_j) / Z is between e^(-2 delta) and e^(2 delta), so max_j |p_j - p'_j| is also at most
(1 - e^(-2 delta)) e^(2b) / L: the *sharper* form, which scales as delta squared, like the exact value.
For values independent of the logits and of each other, with mean zero and covariance S,
E||o - o'||^2 = tr(S) ||p - p'||_2^2. Neither bound is informative once b grows like log(L) / 2: measure b.

**Absolute output error.** Weights sum to 1, so o - o' = sum_j (p_j - p'_j) (v_j - c) for every c, and for all values
||o - o'|| <= 2 TV(p, p') max_j ||v_j - c|| <= 2 tanh(delta / 2) max_j ||v_j - c||, without assumptions on them.
All of these bound the absolute error, not the error relative to ||o||, since ||o|| also shrinks as L grows.
(Yu et al. 2025, arXiv 2510.03784, assume b bounded; these explicit forms are proved here.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError

Array = NDArray[np.float64]
LARGEST_EXPONENT = 700.0
"""Limit on 2b in e^(2b): float64 overflows soon above. The bound is then far above 2, the largest squared distance."""


def half_range(logits: Array, moved: Array) -> float:
    """delta: half the range of ``moved`` - ``logits`` (finite rows of equal length).

    >>> half_range(np.zeros(3), np.array([5.0, 6.0, 5.5]))
    0.5
    """
    first, second = _rows(logits, moved)
    change = second - first
    return float(change.max() - change.min()) / 2


def total_variation_bound(delta: float) -> float:
    """TV(softmax s, softmax s') <= tanh(delta / 2), for rows of any length. The bound is tight.

    Raises:
        HeadcountError: a delta that is negative or not finite.

    >>> round(total_variation_bound(1.0), 4)
    0.4621
    """
    return float(_total_variation(np.asarray(_at_least_0(delta, "a half-range"))))


def worst_case(delta: float, tokens: int) -> tuple[Array, Array]:
    """Two rows of logits with half-range delta whose softmaxes differ by tanh(delta / 2) in total variation.

    The first token has weight 1 / (1 + e^delta) and the others share the rest; then delta is added to the first logit
    and subtracted from the others.

    >>> before, after = worst_case(1.0, 5)
    >>> half_range(before, after)
    1.0
    """
    _at_least_0(delta, "a half-range")
    if tokens < 2:
        raise HeadcountError(f"a row of {tokens} tokens has one softmax", fix="use 2 tokens or more")
    before = np.zeros(tokens)
    before[0] = math.log(tokens - 1) - delta
    after = before - delta
    after[0] += 2 * delta
    return before, after


def long_context_bound(delta: float, logit_bound: float, tokens: int) -> float:
    """||p - p'||_2^2 <= 2 tanh(delta / 2) e^(2b) / L for logits of both rows in [-b, b].

    Args:
        delta: half the range of the change, at most 2b because both rows are in [-b, b].
        logit_bound: b.
        tokens: L.

    Raises:
        HeadcountError: a negative delta or b, no tokens, or a delta impossible for logits in [-b, b].

    >>> round(long_context_bound(0.1, 1.0, 1024), 6)
    0.000721
    """
    _at_least_0(delta, "a half-range")
    _at_least_0(logit_bound, "a bound on logits")
    if tokens < 1:
        raise HeadcountError(f"a row of {tokens} tokens is empty", fix="use 1 token or more")
    if delta > 2 * logit_bound * (1 + 1e-12):
        raise HeadcountError(
            f"logits within {logit_bound:g} of 0 cannot change by a half-range of {delta:g}",
            fix=f"use a delta of at most {2 * logit_bound:g}, or measure the bound on both rows",
        )
    return float(_squared_distance(np.asarray(delta), np.asarray(logit_bound), np.asarray(tokens)))


def sharper_long_context_bound(delta: float, logit_bound: float, tokens: int) -> float:
    """||p - p'||_2^2 <= 2 tanh(delta / 2) (1 - e^(-2 delta)) e^(2b) / L, under the same hypotheses.

    >>> round(sharper_long_context_bound(0.1, 1.0, 1024), 6)
    0.000131
    """
    return long_context_bound(delta, logit_bound, tokens) * float(_sharpening(np.asarray(delta)))


def output_error_bound(delta: float, logit_bound: float, tokens: int, value_trace: float) -> float:
    """E||o - o'||^2 <= tr(S) * 2 tanh(delta / 2) e^(2b) / L.

    In addition to the hypotheses of ``long_context_bound``, values must be independent of the logits and of each other,
    with mean zero and covariance of trace ``value_trace``; this cannot be checked from these numbers.

    >>> round(output_error_bound(0.1, 1.0, 1024, 64.0), 4)
    0.0461
    """
    return _at_least_0(value_trace, "a trace of a covariance") * long_context_bound(delta, logit_bound, tokens)


@dataclass(frozen=True)
class RowBounds:
    """The bounds for many rows; arrays of equal shape."""

    total_variation: Array
    """tanh(delta / 2)."""
    squared_distance: Array
    """2 tanh(delta / 2) e^(2b) / L."""
    sharper: Array
    """``squared_distance`` times 1 - e^(-2 delta)."""


def bounds_of_rows(delta: Array, logit_bound: Array, tokens: Array) -> RowBounds:
    """``total_variation_bound``, ``long_context_bound`` and ``sharper_long_context_bound`` for measured rows.

    Args:
        delta: measured half-range of the change of each row.
        logit_bound: b of each row, half the larger range of its two rows of logits.
        tokens: L of each row.

    >>> bounds_of_rows(np.array([0.1]), np.array([1.0]), np.array([1024])).squared_distance.round(6).tolist()
    [0.000721]
    """
    squared = _squared_distance(delta, logit_bound, tokens)
    return RowBounds(_total_variation(delta), squared, squared * _sharpening(delta))


def _total_variation(delta: Array) -> Array:
    return np.tanh(delta / 2)


def _squared_distance(delta: Array, logit_bound: Array, tokens: Array) -> Array:
    return 2 * _total_variation(delta) * np.exp(np.minimum(2 * logit_bound, LARGEST_EXPONENT)) / tokens


def _sharpening(delta: Array) -> Array:
    return -np.expm1(-2 * delta)


def row_bounds(logits: Array, moved: Array) -> dict[str, float]:
    """The bounds and the bounded quantities for two given rows, with delta and b measured from them.

    b is minimised over constants added to each row: it is half the larger of the two ranges.

    >>> found = row_bounds(np.zeros(4), np.array([0.2, 0.0, 0.0, 0.0]))
    >>> round(found["total_variation"], 3), round(found["total_variation_bound"], 3)
    (0.039, 0.05)
    """
    first, second = _rows(logits, moved)
    delta = half_range(first, second)
    bound = max(float(np.ptp(first)), float(np.ptp(second))) / 2
    apart = _softmax(first) - _softmax(second)
    return {
        "half_range": delta,
        "logit_bound": bound,
        "total_variation": float(np.abs(apart).sum()) / 2,
        "total_variation_bound": total_variation_bound(delta),
        "squared_distance": float(apart @ apart),
        "squared_bound": long_context_bound(delta, bound, first.size),
        "sharper_bound": sharper_long_context_bound(delta, bound, first.size),
    }


def _softmax(row: Array) -> Array:
    powers: Array = np.exp(row - row.max())
    weights: Array = powers / powers.sum()
    return weights


def _rows(logits: Array, moved: Array) -> tuple[Array, Array]:
    first, second = np.asarray(logits, dtype=np.float64), np.asarray(moved, dtype=np.float64)
    if first.ndim != 1 or first.size == 0 or first.shape != second.shape:
        raise HeadcountError(
            f"rows of logits have shapes {first.shape} and {second.shape}", fix="give two rows of one length"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise HeadcountError("a logit is not finite", fix="leave masked tokens out of both rows")
    return first, second


def _at_least_0(value: float, name: str) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise HeadcountError(f"{name} of {value} is not possible", fix="use a finite number of 0 or more")
    return value
