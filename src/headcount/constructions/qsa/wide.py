"""The polytope construction at more bits than float64 provides: fixed point on integers.

``wide:p`` stores keys and query coefficients as multiples of 2^-p, and their inner products are exact. The difference
of each inner product from that of a token in the set is rounded to float64, scaled by depth / gap, and passed to a
float64 softmax, which depends only on such differences. This tests that p bits of the embedding suffice, as required
by Theorem 3 of Sanford et al. 2023.

The inner products are computed digit by digit: numbers are split into signed digits of 16 bits, products of digit
matrices are exact in float64 (2^30 times 2q times the number of digits stays far below 2^53), and carries are
passed on in int64.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from headcount.constructions.qsa.curve import curve_gap
from headcount.constructions.qsa.unit import LEAST_GAP
from headcount.core.extras import optional_imports

_DIGIT = 16
_ROWS = 64  # queries whose logits are in memory at once

Wide = NDArray[np.object_]


def polytope_outputs(z: NDArray[np.float64], y: NDArray[np.int64], depth: float, bits: int) -> NDArray[np.float64]:
    """The outputs of ``qsa-polytope`` for one sequence: z (N, d') and y (N, q) to (N, d')."""
    tokens, sparsity = y.shape
    cosine, sine = _circle(tokens, bits)
    turns = np.outer(np.arange(tokens), np.arange(1, sparsity + 1)) % tokens
    keys = _digits(np.concatenate([cosine[turns], sine[turns]], axis=1))
    queries = _digits(_queries(y, cosine, sine, bits))
    gaps = curve_gap(torch.from_numpy(y), tokens).clamp(min=LEAST_GAP).numpy()
    outputs = np.empty_like(z)
    for start in range(0, tokens, _ROWS):
        rows = slice(start, start + _ROWS)
        with np.errstate(over="ignore"):  # a very negative logit becomes -inf with weight 0
            logits = _differences(queries[:, rows], keys, y[rows, 0], bits) * (depth / gaps[rows, None])
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        outputs[rows] = (weights / weights.sum(axis=1, keepdims=True)) @ z
    return outputs


def _digits(values: Wide) -> NDArray[np.float64]:
    """Signed digits of 16 bits, lowest first: (digits, *shape), each in [-2^15, 2^15)."""
    half = 1 << (_DIGIT - 1)
    digits: list[NDArray[np.float64]] = []
    while not digits or (values != 0).any():
        digit = (values + half) % (2 * half) - half
        digits.append(digit.astype(np.float64))
        values = (values - digit) >> _DIGIT
    return np.stack(digits)


def _differences(
    queries: NDArray[np.float64], keys: NDArray[np.float64], token: NDArray[np.int64], bits: int
) -> NDArray[np.float64]:
    """<w_r, u_t> - <w_r, u_token(r)> for all t, from digits of multiples of 2^-bits: (rows, N), nearly rounded."""
    places = len(queries) + len(keys) - 1
    sums = np.zeros((places, queries.shape[1], keys.shape[1]))
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            sums[i + j] += query @ key.T
    exact = sums.astype(np.int64)
    exact -= exact[:, np.arange(len(token)), token][..., None]
    half = 1 << (_DIGIT - 1)
    carry = np.zeros_like(exact[0])
    digits = []
    for column in exact:
        total = column + carry
        carry = (total + half) >> _DIGIT
        digits.append(total - (carry << _DIGIT))
    digits.append(carry)
    # Signed digits: all digits after the leading one sum to at most half of its place value, so nothing cancels.
    value = np.zeros(exact.shape[1:])
    for place in reversed(range(len(digits))):
        value += np.ldexp(digits[place].astype(np.float64), _DIGIT * place - 2 * bits)
    return value


def _circle(tokens: int, bits: int) -> tuple[Wide, Wide]:
    """cos and sin of 2 pi t/N for t = 0..N-1 as integers of 2^-bits."""
    with optional_imports():
        import mpmath
    with mpmath.workprec(bits + 32):
        angles = [2 * mpmath.pi * t / tokens for t in range(tokens)]
        pairs = [(int(mpmath.nint(mpmath.cos(a) * 2**bits)), int(mpmath.nint(mpmath.sin(a) * 2**bits))) for a in angles]
    return np.array([c for c, _ in pairs], dtype=object), np.array([s for _, s in pairs], dtype=object)


def _queries(y: NDArray[np.int64], cosine: Wide, sine: Wide, bits: int) -> Wide:
    """``curve.curve_query`` on integers: (N, 2q) multiples of 2^-bits."""
    rows, q = y.shape
    real = np.zeros((rows, 2 * q + 1), dtype=object)
    imaginary = np.zeros((rows, 2 * q + 1), dtype=object)
    real[:, q] = 1 << bits
    for j in range(q):
        # e^{-i theta_j} / 2, and its conjugate for the terms that go down.
        c, s = cosine[y[:, j], None], -sine[y[:, j], None]
        up_real = _shift(c * real - s * imaginary, bits + 1)
        up_imaginary = _shift(c * imaginary + s * real, bits + 1)
        down_real = _shift(c * real + s * imaginary, bits + 1)
        down_imaginary = _shift(c * imaginary - s * real, bits + 1)
        real[:, 1:] -= up_real[:, :-1]
        imaginary[:, 1:] -= up_imaginary[:, :-1]
        real[:, :-1] -= down_real[:, 1:]
        imaginary[:, :-1] -= down_imaginary[:, 1:]
    return np.concatenate([-2 * real[:, q + 1 :], 2 * imaginary[:, q + 1 :]], axis=1)


def _shift(values: Wide, bits: int) -> Wide:
    """Divide by 2^bits, rounded to the nearest integer."""
    shifted: Wide = (values + (1 << (bits - 1))) >> bits
    return shifted
