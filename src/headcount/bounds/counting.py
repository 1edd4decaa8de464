"""Binomial coefficients for the bounds: exact if small enough, otherwise rounded only in the proved direction.

A lower bound states "at least this many bits", so every approximation here rounds down. There are two methods:

- exact integers, up to ``EXACT_BITS`` bits;
- beyond that, Robbins' bounds on the factorial,
  sqrt(2 pi n) (n/e)^n e^(1/(12n+1)) < n! < sqrt(2 pi n) (n/e)^n e^(1/(12n))
  (H. Robbins, "A remark on Stirling's formula", 1955), in 60-digit decimals. They differ by less than 1/(144 n^2),
  and the rounding of the decimals is below ``SLACK`` for every n up to 10^18.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

EXACT_BITS = 100_000
"""Binomials with more bits than this are bracketed instead of computed (a comparison then takes microseconds)."""

DIGITS = 60
SLACK = Decimal("1e-30")
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def bits_to_name(count: int) -> int:
    """The least b with 2^b >= ``count``: the number of bits needed to distinguish ``count`` values.

    >>> [bits_to_name(count) for count in (1, 2, 3, 4, 5)]
    [0, 1, 2, 2, 3]
    """
    return (count - 1).bit_length()


def _ln_factorial(n: int) -> tuple[Decimal, Decimal]:
    """Robbins' bracket of ln n!, for n >= 1."""
    size = Decimal(n)
    base = (size + Decimal("0.5")) * size.ln() - size + (2 * _PI).ln() / 2
    return base + 1 / (12 * size + 1), base + 1 / (12 * size)


def log2_binomial_bracket(n: int, k: int) -> tuple[Decimal, Decimal]:
    """Lower and upper bound of log2 C(n, k), for 0 <= k <= n.

    >>> low, high = log2_binomial_bracket(10**6, 10**5)
    >>> bool(low < high < low + Decimal("1e-9")), int(high)
    (True, 468986)
    """
    if k in (0, n):
        return Decimal(0), Decimal(0)
    with localcontext() as context:
        context.prec = DIGITS
        (top_low, top_high), (k_low, k_high) = _ln_factorial(n), _ln_factorial(k)
        rest_low, rest_high = _ln_factorial(n - k)
        two = Decimal(2).ln()
        low = (top_low - k_high - rest_high) / two - SLACK
        high = (top_high - k_low - rest_low) / two + SLACK
    return max(low, Decimal(0)), high


def is_exact(n: int, k: int) -> bool:
    """Whether C(n, k) is small enough to be computed exactly."""
    return min(k, n - k) <= 64 or log2_binomial_bracket(n, k)[1] <= EXACT_BITS


def binomial_bits(n: int, k: int) -> int:
    """The least b with 2^b >= C(n, k); for large binomials a proved lower bound on b that is at most 1 too small.

    >>> math.comb(1023, 8).bit_length(), binomial_bits(1023, 8)
    (65, 65)
    """
    if is_exact(n, k):
        return bits_to_name(math.comb(n, k))
    return math.ceil(log2_binomial_bracket(n, k)[0])


def least_sum_of_binomials(a: int, target_n: int, target_k: int) -> int:
    """The least m with 2 sum_{k<m} C(a, k) >= C(target_n, target_k); for large ones a proved lower bound.

    The large case compares logarithms and uses sum_{k<=r} C(a, k) <= C(a, r) (a - r + 1) / (a - 2r + 1) for
    2r <= a (each term is at most r / (a - r + 1) times the next one: a geometric series). Needs a >= 2
    target_k.
    """
    if is_exact(target_n, target_k):
        target = math.comb(target_n, target_k)
        total, term, m = 0, 1, 0
        while 2 * total < target:
            total += term
            term = term * (a - m) // (m + 1)
            m += 1
            if not term:  # the sum is already 2^a: further terms are 0
                break
        return m
    low, high = 1, target_k + 1
    needed = log2_binomial_bracket(target_n, target_k)[0]
    while low < high:
        m = (low + high) // 2
        if _log2_sum_upper(a, m - 1) >= needed:
            high = m
        else:
            low = m + 1
    return low


def _log2_sum_upper(a: int, r: int) -> Decimal:
    """An upper bound of log2(2 * sum_{k<=r} C(a, k)), for 2r <= a."""
    with localcontext() as context:
        context.prec = DIGITS
        factor = Decimal(a - r + 1) / Decimal(a - 2 * r + 1)
        return 1 + log2_binomial_bracket(a, r)[1] + factor.ln() / Decimal(2).ln() + SLACK


def power_bits(base: int, exponent: int) -> int:
    """The least b with 2^b >= base^exponent (base >= 1); for large powers a proved lower bound on b.

    >>> power_bits(10, 10), power_bits(4, 3)
    (34, 6)
    """
    if exponent * base.bit_length() <= EXACT_BITS:
        return bits_to_name(base**exponent)
    with localcontext() as context:
        context.prec = DIGITS
        return math.ceil(exponent * Decimal(base).ln() / Decimal(2).ln() - SLACK)
