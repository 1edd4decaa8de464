"""E_pos of learned biases, in closed form: one for each lag (``Learned``) or for each bucket of lags (``Buckets``).

With logits in a range of beta and L lags, r = e^beta:

- A lag that shares its bucket with n - 1 >= 1 other lags of the context: every mixture has the same value v on all n,
  so its error is at least |v - 1| + (n - 1) |v| >= 1, which c = 0 attains. E_pos = 1 for any number of heads.
- A lag alone in its bucket, one head: |1 - c a| + c (1 - a) with a = a(lag) decreases in a while c a <= 1, and
  a <= r / (L - 1 + r). So E_pos = min(1, (L - 1) / r) if C >= 1 + (L - 1) / r.
- A lag alone in its bucket, two heads, one with a high and one with a low bias: both are constant off the lag, so
  c_1 / (L - 1 + r) + c_2 / (L - 1 + 1/r) = 0 cancels them, and E_pos = 0 if
  C >= |c_1| + |c_2| = (2 (L - 1) + r + 1/r) / (r - 1/r).
"""

from __future__ import annotations

import math

import numpy as np

from headcount.lags.kernels import LIMIT, best_coefficients, check_lag
from headcount.lags.schemes import Array, Learned


def needed_limit(scheme: Learned) -> float:
    """The smallest C at which two heads represent the spike exactly.

    >>> round(needed_limit(Learned(64, budget=16.0)), 6)
    1.000014
    """
    up = math.exp(scheme.budget)
    return (2 * (scheme.context - 1) + up + 1 / up) / (up - 1 / up)


def pair(scheme: Learned, lag: int) -> Array:
    """The parameters of the two kernels: a high bias for the lag and low biases elsewhere, and the reverse."""
    indicator = scheme.features[lag]
    return np.stack([indicator - 0.5, 0.5 - indicator]) * scheme.budget


def bias_errors(scheme: Learned, lag: int, heads: int, limit: float = LIMIT) -> Array:
    """E_pos for 1..heads heads.

    With a limit between those for one and two heads, the value for two heads is that of the best mixture of ``pair``,
    an upper bound.

    >>> bias_errors(Learned(64, budget=8.0), 5, 3).round(6).tolist()
    [0.021134, 0.0, 0.0]
    """
    check_lag(scheme, lag)
    if scheme.features[:, scheme.features[lag] > 0].sum() > 1:
        return np.ones(heads)
    up = math.exp(scheme.budget)
    hit = up / (scheme.context - 1 + up)
    share = min(limit, 1 / hit)
    one = min(1.0, (1 - share * hit) + share * (1 - hit)) if share > 0 else 1.0
    two = (
        0.0
        if limit >= needed_limit(scheme)
        else min(one, best_coefficients(scheme, pair(scheme, lag), lag, limit).error)
    )
    return np.array([one] + [two] * (heads - 1))
