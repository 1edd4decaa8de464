"""The polytope construction in more bits than float64 has: fixed point on Python's integers.

``wide:p`` holds keys and query coefficients as multiples of 2^-p; an inner product is exact and rounded once.
The softmax is float64: it sees the differences of the logits, which need no more. So what is tested is that p
bits of the embedding suffice, which is what Theorem 3 of Sanford et al. 2023 asks for.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import torch
from numpy.typing import NDArray

from headcount.constructions.qsa import LEAST_GAP
from headcount.constructions.qsa_polytope import curve_gap

_SCALE_BITS = 60  # fraction bits of the factor depth / gap
_NOTHING = 1000  # exp(-1000) is 0 in float64
_ROWS = 64  # queries whose logits are held at once

Wide = NDArray[np.object_]


def polytope_outputs(z: NDArray[np.float64], y: NDArray[np.int64], depth: float, bits: int) -> NDArray[np.float64]:
    """The outputs of ``qsa-polytope`` for one sequence: z (N, d') and y (N, q) to (N, d')."""
    tokens, sparsity = y.shape
    cosine, sine = _circle(tokens, bits)
    turns = np.outer(np.arange(tokens), np.arange(1, sparsity + 1)) % tokens
    keys = np.concatenate([cosine[turns], sine[turns]], axis=1)
    queries = _queries(y, cosine, sine, bits)
    gaps = curve_gap(torch.from_numpy(y), tokens).clamp(min=LEAST_GAP).numpy()
    outputs = np.empty_like(z)
    for start in range(0, tokens, _ROWS):
        rows = slice(start, start + _ROWS)
        scale = np.array([int(Fraction(depth / gap) * 2**_SCALE_BITS) for gap in gaps[rows]], dtype=object)
        logits = (queries[rows] @ keys.T) * scale[:, None]  # 2 p + _SCALE_BITS fraction bits
        below = logits - logits.max(axis=1, keepdims=True)
        # The rounding of the logits themselves: to p fraction bits.
        rounded = np.maximum(_shift(below, bits + _SCALE_BITS), -_NOTHING << bits)
        weights = np.exp((rounded / 2**bits).astype(np.float64))
        outputs[rows] = (weights / weights.sum(axis=1, keepdims=True)) @ z
    return outputs


def _circle(tokens: int, bits: int) -> tuple[Wide, Wide]:
    """cos and sin of 2 pi t/N for t = 0..N-1 as integers of 2^-bits."""
    with mpmath.workprec(bits + 32):
        angles = [2 * mpmath.pi * t / tokens for t in range(tokens)]
        pairs = [(int(mpmath.nint(mpmath.cos(a) * 2**bits)), int(mpmath.nint(mpmath.sin(a) * 2**bits))) for a in angles]
    return np.array([c for c, _ in pairs], dtype=object), np.array([s for _, s in pairs], dtype=object)


def _queries(y: NDArray[np.int64], cosine: Wide, sine: Wide, bits: int) -> Wide:
    """``qsa_polytope.curve_query`` on integers: (N, 2q) multiples of 2^-bits."""
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
    return (values + (1 << (bits - 1))) >> bits
