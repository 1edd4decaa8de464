"""p-bit layers for testing the bounds: random layers of any size, and layers that solve their task."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.pbit.layer import Codes, Embedding, PBitAttention, SetEmbedding, SymbolEmbedding, random_codes


def _random_layer(
    rng: np.random.Generator, embedding: Embedding, heads: int, width: int, out: int, bits: int
) -> PBitAttention:
    """A layer with uniform matrices, shifts that scale sums of ``width`` products to p bits, and logits in [-8, 8)."""
    shift = bits - 1 + width.bit_length() // 2
    return PBitAttention(
        embedding,
        random_codes(rng, (heads, width, width), bits),
        random_codes(rng, (heads, width, width), bits),
        random_codes(rng, (heads, width, out), bits),
        bits,
        project_shift=shift,
        value_shift=shift,
        logit_shift=shift,
        logit_fraction=bits - 4,
        value_fraction=bits - 1,
    )


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise HeadcountError(f"{name} is {value}", fix=f"choose {name} of at least 1")


def random_match3_layer(
    tokens: int,
    modulus: int,
    width: int,
    precision_bits: int,
    heads: int = 1,
    seed: int = 0,
    value_width: int | None = None,
) -> PBitAttention:
    """A layer with uniform codes; ``value_width`` defaults to the embedding width ``width``."""
    out = width if value_width is None else value_width
    _check_sizes(tokens=tokens, modulus=modulus, width=width, precision_bits=precision_bits, heads=heads)
    _check_sizes(value_width=out)
    rng = numpy_generator(seed, "bounds", "random match3 layer")
    half = max(1, precision_bits - 1)  # two summands, so that the sum rarely saturates
    embedding = SymbolEmbedding(
        random_codes(rng, (modulus, width), half), random_codes(rng, (tokens, width), half), precision_bits
    )
    return _random_layer(rng, embedding, heads, width, out, precision_bits)


def random_qsa_layer(
    tokens: int,
    sparsity: int,
    dim: int,
    width: int,
    precision_bits: int,
    heads: int = 1,
    seed: int = 0,
) -> PBitAttention:
    """A layer with uniform codes, embedding width ``width`` and value width d' = ``dim``."""
    _check_sizes(tokens=tokens, sparsity=sparsity, dim=dim, width=width, heads=heads)
    _check_sizes(precision_bits=precision_bits)
    rng = numpy_generator(seed, "bounds", "random qsa layer")
    embedding = SetEmbedding(
        random_codes(rng, (dim, width), precision_bits),
        random_codes(rng, (tokens, width), precision_bits),
        random_codes(rng, (tokens, width), max(1, precision_bits - 1)),
        precision_bits,
        fraction=precision_bits - 2,
        shift=1 + sparsity.bit_length() // 2,
    )
    return _random_layer(rng, embedding, heads, width, dim, precision_bits)


def histogram_layer(tokens: int, modulus: int, precision_bits: int) -> PBitAttention:
    """A layer whose output shows at every token which residues occur, so Match3 needs no further attention.

    One head, zero logits, one-hot embeddings of width M: the output is each residue's share of the tokens,
    times the largest code A = 2^(p-1) - 1. A residue that occurs once gives round(A/N), nonzero for 2A >=
    N.
    """
    _check_sizes(tokens=tokens, modulus=modulus, precision_bits=precision_bits)
    most = 2 ** (precision_bits - 1) - 1
    if 2 * most < tokens:
        raise HeadcountError(
            f"{precision_bits} bits do not show one token among {tokens}",
            fix=f"give at least {tokens.bit_length() + 1} bits",
        )
    one_hot = SymbolEmbedding(
        np.eye(modulus, dtype=np.int64), np.zeros((tokens, modulus), dtype=np.int64), precision_bits
    )
    nothing = np.zeros((1, modulus, 1), dtype=np.int64)
    values = most * np.eye(modulus, dtype=np.int64)[None]
    return PBitAttention(one_hot, nothing, nothing, values, precision_bits)


def match3_from_histogram(shares: Codes, symbol: int) -> bool:
    """The Match3 label of a token with residue ``symbol``, from its output of ``histogram_layer`` (M codes)."""
    modulus = len(shares)
    present = np.flatnonzero(shares)
    return bool(np.isin((-symbol - present) % modulus, present).any())


def threshold_layer(tokens: int, modulus: int, precision_bits: int) -> PBitAttention:
    """A layer of embedding width 2 and value width M + 1 whose output shows at every token which residues occur.

    The embedding is (x, A) with A = 2^(p-1) - 1, the value map of entry j = -1, ..., M-1 is (A, -j): the
    value 2 A (x - j), saturated, is -A - 1, 0 or A for x below, at or above j. With zero logits the output is
    the mean over tokens. The means at j and j + 1 differ by ((A + 1) c_j + A c_(j+1)) / N, where c_j counts
    the tokens at j; c_(-1) = 0, so the counts can be computed one by one (``match3_from_thresholds``). Each mean is
    rounded to a code, so a count is off by at most N/A before rounding, and N < A/2 makes it exact.

    The layer shows that ``match3-protocol`` bounds the value width and not the embedding dimension.
    """
    _check_sizes(tokens=tokens, modulus=modulus, precision_bits=precision_bits)
    most = 2 ** (precision_bits - 1) - 1
    if most <= max(2 * tokens, modulus):
        raise HeadcountError(
            f"{precision_bits} bits do not count {tokens} tokens of {modulus} residues",
            fix=f"give at least {threshold_bits(tokens, modulus)} bits",
        )
    table = np.stack([np.arange(modulus), np.full(modulus, most)], axis=1)
    embedding = SymbolEmbedding(table, np.zeros((tokens, 2), dtype=np.int64), precision_bits)
    nothing = np.zeros((1, 2, 1), dtype=np.int64)
    values = np.stack([np.full(modulus + 1, most), -np.arange(-1, modulus)])[None]
    return PBitAttention(embedding, nothing, nothing, values, precision_bits, value_shift=-1)


def threshold_bits(tokens: int, modulus: int) -> int:
    """The minimum number of bits p for ``threshold_layer``: 2^(p-1) - 1 > max(2N, M).

    >>> threshold_bits(1025, 1026)
    13
    """
    return 1 + (max(2 * tokens, modulus) + 1).bit_length()


def match3_from_thresholds(means: Codes, symbol: int, tokens: int, precision_bits: int) -> bool:
    """The Match3 label of a token with residue ``symbol``, from its output of ``threshold_layer`` (M + 1 codes)."""
    most, counts = 2 ** (precision_bits - 1) - 1, [0]
    for step in (means[:-1] - means[1:]).tolist():
        counts.append(round((step * tokens - (most + 1) * counts[-1]) / most))
    return match3_from_histogram(np.array(counts[1:]), symbol)


def sign_key_layer(
    tokens: int, sparsity: int, dim: int, precision_bits: int, keys: int | None = None, seed: int = 0
) -> PBitAttention:
    """A layer that solves qSA for almost every subset: random sign keys u_j, query sum_{j in y} u_j.

    Embedding (z; u_i; sum_{j in y} u_j), m = d' + 2k with k = ``keys``. On y the logit is k plus noise of
    size sqrt(q k), off y the noise alone. With k = 64 q ln(N+1) the noise of one logit exceeds k/4 with
    probability below 2/N^2 (Hoeffding). Logits saturate at a threshold between 3k/8 and 3k/4, so those of y
    are equal; the gap to the others is a factor of e^16 in the weights. Needs q < 2^(p-1) and p >= 3.
    """
    _check_sizes(tokens=tokens, sparsity=sparsity, dim=dim, precision_bits=precision_bits)
    most = 2 ** (precision_bits - 1) - 1
    if precision_bits < 3 or sparsity > most:
        raise HeadcountError(
            f"the sum of {sparsity} signs does not fit {precision_bits} bits",
            fix=f"give at least {max(3, sparsity.bit_length() + 1)} bits",
        )
    k = math.ceil(64 * sparsity * math.log(tokens + 1)) if keys is None else keys
    _check_sizes(keys=k)
    signs = 2 * numpy_generator(seed, "bounds", "sign keys").integers(0, 2, (tokens, k)) - 1
    none, width = np.zeros_like(signs), dim + 2 * k
    embedding = SetEmbedding(
        np.eye(dim, width, dtype=np.int64),
        np.hstack([np.zeros((tokens, dim), dtype=np.int64), none, signs]),
        np.hstack([np.zeros((tokens, dim), dtype=np.int64), signs, none]),
        precision_bits,
        fraction=precision_bits - 2,
    )
    logit_shift = math.floor(math.log2(0.75 * k / most))
    gap = most - math.ceil(0.25 * k / 2.0**logit_shift)
    return PBitAttention(
        embedding,
        _pick(width, dim + k, k),
        _pick(width, dim, k),
        _pick(width, 0, dim),
        precision_bits,
        logit_shift=logit_shift,
        logit_fraction=math.floor(math.log2(max(gap, 1) / 16)),
        value_fraction=precision_bits - 2,
    )


def _pick(width: int, start: int, count: int) -> NDArray[np.int64]:
    """The (1, width, count) matrix that selects coordinates start .. start + count - 1."""
    return np.eye(width, count, -start, dtype=np.int64)[None]
