"""Exact convolution of functions on the residues mod M, used by the matching solvers.

A function on {0..M-1} with few non-zero values is stored as its support and its integer weights. Convolutions
are exact integers, computed by the cheaper of:

- direct: all pairs of the two supports;
- FFT of a power-of-two length n >= 2M - 1, rounded to integers. The rounding is provably exact: with
  unit roundoff u = 2^-53 the transform of length n = 2^k has relative error at most k eta in the 2-norm,
  eta = 6.7 u for radix-2 butterflies with twiddles good to u (Higham, Accuracy and Stability of Numerical
  Algorithms, Theorem 24.2); the larger radices of pocketfft replace several such stages by one with fewer
  roundings, and eta = 50 u is used here as a safety margin. The errors of the two forward transforms
  reach an entry of the result as at most k eta |a| |b| each (Cauchy-Schwarz over the spectrum), and that of the
  inverse one as at most k eta |c|, where |c|^2 <= max(c) sum(c) <= (|a| |b|) (|a|_1 |b|_1) for weights that
  are not negative. The sum of the three is computed for every call, and the FFT is used only if it is
  below 1/4; at a million tokens and M = 1,000,003 it is below 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError

Integers = NDArray[np.int64]

ROUNDING_PER_STAGE = 50 * 2.0**-53
FFT_LIMIT = 2**27
"""The longest transform, which needs about 3 GiB."""
DIRECT_LIMIT = 2**36
"""The largest number of pairs for the direct method, which takes minutes."""
_CHUNK = 2**22
_FFT_COST = 8  # an FFT of length n costs as much as about 8 n pairs


@dataclass(frozen=True)
class Residues:
    """A function on {0..M-1}: ``weights`` (positive integers) at the sorted ``support``, 0 elsewhere."""

    support: Integers
    weights: Integers
    modulus: int

    @classmethod
    def of(cls, values: Integers, modulus: int) -> Residues:
        """How often each residue occurs among ``values``."""
        support, counts = np.unique(values, return_counts=True)
        return cls(support, counts.astype(np.int64), modulus)

    def indicator(self) -> Residues:
        """1 on the support."""
        return Residues(self.support, np.ones_like(self.support), self.modulus)

    def at(self, points: Integers) -> Integers:
        """The values at ``points``, an array of any shape."""
        place = np.searchsorted(self.support, points)
        place[place == len(self.support)] = 0
        return np.where(self.support[place] == points, self.weights[place], 0)


def convolve(a: Residues, b: Residues) -> Residues:
    """(a * b)(t) = sum over r of a(r) b(t - r), as a function on the residues."""
    if _prefers_fft(a, b, len(a.support) * len(b.support)):
        dense = _fft(a, b)
        support = np.flatnonzero(dense)
        return Residues(support, dense[support], a.modulus)
    _check_pairs(a, len(a.support) * len(b.support))
    sums = np.empty(0, dtype=np.int64)
    weights = np.empty(0, dtype=np.int64)
    rows = max(1, _CHUNK // len(b.support))
    for start in range(0, len(a.support), rows):
        block = (a.support[start : start + rows, None] + b.support) % a.modulus
        product = a.weights[start : start + rows, None] * b.weights
        sums, owner = np.unique(np.concatenate([sums, block.ravel()]), return_inverse=True)
        total = np.zeros(len(sums), dtype=np.int64)
        np.add.at(total, owner, np.concatenate([weights, product.ravel()]))
        weights = total
    return Residues(sums, weights, a.modulus)


def convolve_at(a: Residues, b: Residues, points: Integers) -> Integers:
    """(a * b) at ``points`` (one axis), without computing it elsewhere if that is cheaper."""
    distinct, owner = np.unique(points, return_inverse=True)
    if len(a.support) > len(b.support):
        a, b = b, a
    if _prefers_fft(a, b, len(a.support) * len(distinct)):
        return _fft(a, b)[points]
    _check_pairs(a, len(a.support) * len(distinct))
    values_at = _lookup(b)
    result = np.empty(len(distinct), dtype=np.int64)
    rows = max(1, _CHUNK // len(a.support))
    for start in range(0, len(distinct), rows):
        rest = distinct[start : start + rows, None] - a.support
        rest += np.where(rest < 0, a.modulus, 0)
        result[start : start + rows] = values_at(rest) @ a.weights
    return result[owner]


def _lookup(function: Residues) -> Callable[[Integers], Integers]:
    """A fast evaluator of the function at many points: a table lookup if the residues are dense.

    If they are sparse, a table of their low bits, small enough for the CPU cache, first excludes points that cannot
    be in the support; only the remaining points are searched for.
    """
    size = 1 << (16 * len(function.support)).bit_length()
    if function.modulus <= size:
        table = np.zeros(function.modulus, dtype=np.int64)
        table[function.support] = function.weights
        return table.__getitem__
    possible = np.zeros(size, dtype=bool)
    possible[function.support & (size - 1)] = True

    def search(points: Integers) -> Integers:
        result = np.zeros(points.shape, dtype=np.int64)
        hits = np.nonzero(possible[points & (size - 1)])
        result[hits] = function.at(points[hits])
        return result

    return search


def rounding_bound(a: Residues, b: Residues, length: int) -> float:
    """An upper bound on the error of an entry of the FFT convolution (derived in the module docstring)."""
    norms = [float(np.sqrt(np.square(f.weights, dtype=np.float64).sum())) for f in (a, b)]
    sums = [float(f.weights.sum(dtype=np.float64)) for f in (a, b)]
    product = norms[0] * norms[1]
    result_norm = np.sqrt(product * sums[0] * sums[1])
    stages = length.bit_length() - 1
    return float(stages * ROUNDING_PER_STAGE * (2 * product + result_norm))


def _length(modulus: int) -> int:
    return int(1 << (2 * modulus - 2).bit_length()) if modulus > 1 else 1


def _prefers_fft(a: Residues, b: Residues, pairs: int) -> bool:
    length = _length(a.modulus)
    return length <= FFT_LIMIT and pairs > _FFT_COST * length and rounding_bound(a, b, length) < 0.25


def _check_pairs(a: Residues, pairs: int) -> None:
    if pairs > DIRECT_LIMIT:
        raise HeadcountError(
            f"{pairs:.1e} pairs of residues mod {a.modulus} are too many to try, and the modulus is too "
            "large for an exact FFT",
            fix=f"use fewer tokens, or a modulus below {FFT_LIMIT // 2}",
        )


def _fft(a: Residues, b: Residues) -> Integers:
    """The convolution at all residues."""
    modulus, length = a.modulus, _length(a.modulus)
    dense = np.zeros(length)
    dense[a.support] = a.weights
    spectrum = np.fft.rfft(dense)
    if a is b:
        spectrum *= spectrum
    else:
        dense[a.support] = 0
        dense[b.support] = b.weights
        spectrum *= np.fft.rfft(dense)
    linear = np.rint(np.fft.irfft(spectrum, length)).astype(np.int64)
    linear[: modulus - 1] += linear[modulus : 2 * modulus - 1]
    return linear[:modulus]


def tuples_to_zero(values: Integers, modulus: int, order: int, distinct: bool = False) -> NDArray[np.bool_]:
    """For each i: is there a tuple j_2..j_s with values_i + values_j2 + ... + values_js = 0 mod M?

    Indices may repeat; with ``distinct`` i, j_2, ..., j_s must differ. O(M log M + N) for order 3.
    """
    if distinct:
        return _distinct_tuples(values, modulus, order)
    single = Residues.of(values, modulus).indicator()
    opposite = (-values) % modulus
    if order == 2:
        return single.at(opposite) > 0
    reached = single
    for _ in range(order - 3):
        reached = convolve(reached, single).indicator()
    return convolve_at(reached, single, opposite) > 0


ROWS_LIMIT = 2**16
"""Table entries that ``triples_to_zero`` processes at once, so that they fit into the CPU cache."""


def triples_to_zero(rows: Integers, modulus: int) -> NDArray[np.bool_]:
    """``tuples_to_zero`` of order 3 for many short sequences at once, (count, N) -> (count, N).

    O(N^2 + M) per sequence, without a Python loop over sequences, since training draws thousands per second.
    """
    count, n = rows.shape
    result = np.empty((count, n), dtype=bool)
    step = max(1, ROWS_LIMIT // max(n * n, modulus))
    for start in range(0, count, step):
        x = rows[start : start + step]
        offset = np.arange(len(x))[:, None] * modulus
        sums = x[:, :, None] + x[:, None, :]
        sums[sums >= modulus] -= modulus
        sums += offset[:, :, None]
        reached = np.zeros(len(x) * modulus, dtype=bool)
        reached[sums.ravel()] = True
        result[start : start + step] = reached[np.where(x > 0, modulus - x, 0) + offset]
    return result


def _distinct_tuples(values: Integers, modulus: int, order: int) -> NDArray[np.bool_]:
    """Count tuples of distinct indices by Moebius inversion over the partitions of the s positions.

    Positions in one block share an index; a block of size b adds b x_j. With mu = prod (-1)^(b-1) (b-1)!,
    count(i) = sum over partitions of mu * (f_b2 * ... * f_br)(-b_1 x_i), where b_1 is the size of the block
    that holds position 1 (the token i itself) and f_b(v) = number of j with b x_j = v. More than s copies of
    one residue never matter, so copies beyond s are dropped and the counts stay small.
    """
    support, counts = np.unique(values, return_counts=True)
    copies = np.repeat(support, np.minimum(counts, order))
    total = np.zeros(len(values), dtype=np.int64)
    if float(len(copies)) ** (order - 1) >= 2.0**60:
        raise HeadcountError(
            f"counting distinct tuples of order {order} over {len(values)} tokens overflows 64 bits",
            fix="use fewer tokens or a smaller order",
        )
    multiples = {b: Residues.of(b * copies % modulus, modulus) for b in range(1, order)}
    for first_size, others, weight in _block_sizes(order):
        points = (-first_size * values) % modulus
        if not others:
            tuple_counts = (points == 0).astype(np.int64)
        elif len(others) == 1:
            tuple_counts = multiples[others[0]].at(points)
        else:
            front = multiples[others[0]]
            for size in others[1:-1]:
                front = convolve(front, multiples[size])
            tuple_counts = convolve_at(front, multiples[others[-1]], points)
        total += weight * tuple_counts
    return total > 0


def _block_sizes(order: int) -> list[tuple[int, tuple[int, ...], int]]:
    """(size of the first position's block, sizes of the others, summed weight), over all partitions."""
    partitions: list[list[int]] = [[1]]  # sizes in order of first appearance; grown one position at a time
    for _ in range(order - 1):
        grown = []
        for sizes in partitions:
            grown.append([*sizes, 1])
            grown += [[size + (k == block) for k, size in enumerate(sizes)] for block in range(len(sizes))]
        partitions = grown
    weights: dict[tuple[int, tuple[int, ...]], int] = {}
    for sizes in partitions:
        weight = 1
        for size in sizes:
            for factor in range(1, size):
                weight *= -factor
        key = (sizes[0], tuple(sorted(sizes[1:])))
        weights[key] = weights.get(key, 0) + weight
    return [(first_size, others, weight) for (first_size, others), weight in weights.items()]
