"""An attention layer in p-bit integer arithmetic, used by protocols and witnesses.

All numbers are *codes*, integers in [-2^(p-1), 2^(p-1) - 1]; a fixed, public power of two gives the value of a
code. The steps and their rounding:

1. embedding phi(x_j): codes, as the embedding defines them; 2. queries, keys, values: exact integer products
with matrices of codes, divided by a power of two, rounded to a
   code (half up, saturating);
3. logits <q_i, k_j>: likewise;
4. softmax weights: round((2^p - 1) exp(s_ij - max_l s_il)), unsigned p-bit integers;
5. the sums of weights and of weighted values are exact integers (wider than p bits: ``widths``);
6. output: their quotient, rounded to a code; heads are added with saturation.

Because sums are exact, the result does not depend on the order of the tokens or on how they are split between
parties, so bit-for-bit comparison is meaningful. Floating point is used only in ``math.exp`` of step 4, one value at
a time.

Letters: N tokens, m embedding width, H heads, k query-key width, d value width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError

Tokens = Mapping[str, NDArray[Any]]
"""Columns of a token table with one row per token: ``position`` and the task's token fields."""

Codes = NDArray[np.int64]

SUM_BITS = 62
"""Maximum width of an exact sum: twice the sum must fit a signed 64-bit integer."""


def saturate(values: Codes, precision_bits: int) -> Codes:
    """Clip values to [-2^(p-1), 2^(p-1) - 1]."""
    return np.clip(values, -(2 ** (precision_bits - 1)), 2 ** (precision_bits - 1) - 1)


def shift_down(values: Codes, shift: int) -> Codes:
    """Divide by 2^shift, rounding halves up; a negative shift multiplies.

    >>> shift_down(np.array([3, 4, 5, -2, -3]), 2).tolist(), shift_down(np.array([3]), -2).tolist()
    ([1, 1, 1, 0, -1], [12])
    """
    if shift < 0:
        return values << -shift
    return (values + (1 << shift >> 1)) >> shift


def multiply(left: Codes, right: Codes) -> Codes:
    """The exact product of integer matrices, computed with floating-point BLAS if float64 does not round.

    No partial sum exceeds max|left| max|right| inner: below 2^53 float64 represents all of them exactly,
    in any order.
    """
    most = int(np.abs(left).max(initial=0)) * int(np.abs(right).max(initial=0)) * left.shape[-1]
    if most < 2**53:
        return (left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)
    return left @ right


class Embedding(Protocol):
    """phi: the map from tokens to the inputs of attention."""

    def __call__(self, tokens: Tokens) -> Codes:
        """Codes (n, m) of the tokens in a table of n rows; each row is embedded independently."""


@dataclass(frozen=True, eq=False)
class PBitAttention:
    """One layer of H heads; ``layer(tokens)`` gives the output codes (N, d).

    ``query`` and ``key`` are (H, m, k) codes, ``value`` (H, m, d). A logit code s represents
    s / 2^logit_fraction, an output code o represents o / 2^value_fraction.
    """

    embedding: Embedding
    query: Codes
    key: Codes
    value: Codes
    precision_bits: int
    project_shift: int = 0
    value_shift: int = 0
    logit_shift: int = 0
    logit_fraction: int = 0
    value_fraction: int = 0

    def __post_init__(self) -> None:
        p, m = self.precision_bits, self.query.shape[1]
        if p < 1:
            raise HeadcountError(f"precision_bits is {p}", fix="choose at least 1")
        if 2 * p + max(m, self.query.shape[2]).bit_length() > SUM_BITS:
            raise HeadcountError(f"sums of {m} products of {p} bits do not fit", fix="choose fewer bits")
        if self.query.shape != self.key.shape or self.value.shape[:2] != self.query.shape[:2]:
            raise HeadcountError("query, key and value differ in heads or embedding width")
        for name in ("query", "key", "value"):
            matrix = getattr(self, name)
            if (saturate(matrix, p) != matrix).any():
                raise HeadcountError(f"{name} holds a number of more than {p} bits")

    @property
    def heads(self) -> int:
        """H."""
        return int(self.query.shape[0])

    @property
    def embedding_dim(self) -> int:
        """m."""
        return int(self.query.shape[1])

    @property
    def value_dim(self) -> int:
        """d."""
        return int(self.value.shape[2])

    # -- the steps, on any subset of the tokens ---------------------------------------------------------

    def embed(self, tokens: Tokens) -> Codes:
        """Step 1: (n, m)."""
        codes = self.embedding(tokens)
        assert (saturate(codes, self.precision_bits) == codes).all(), "the embedding gave more than p bits"
        return codes

    def queries(self, embedded: Codes) -> Codes:
        """Step 2: (H, n, k)."""
        return saturate(shift_down(multiply(embedded, self.query), self.project_shift), self.precision_bits)

    def keys(self, embedded: Codes) -> Codes:
        """Step 2: (H, n, k)."""
        return saturate(shift_down(multiply(embedded, self.key), self.project_shift), self.precision_bits)

    def values(self, embedded: Codes) -> Codes:
        """Step 2: (H, n, d)."""
        return saturate(shift_down(multiply(embedded, self.value), self.value_shift), self.precision_bits)

    def logits(self, queries: Codes, keys: Codes) -> Codes:
        """Step 3: (H, n_queries, n_keys)."""
        products = multiply(queries, keys.transpose(0, 2, 1))
        return saturate(shift_down(products, self.logit_shift), self.precision_bits)

    def weights(self, logits: Codes, largest: Codes) -> Codes:
        """Step 4: p-bit weights; ``largest`` (H, n_queries) is the maximum over *all* tokens."""
        gaps, place = np.unique(logits - largest[..., None], return_inverse=True)
        most = 2**self.precision_bits - 1
        table = [math.floor(most * math.exp(gap * 2.0**-self.logit_fraction) + 0.5) for gap in gaps.tolist()]
        return np.array(table, dtype=np.int64)[place].reshape(logits.shape)

    def sums(self, weights: Codes, values: Codes) -> tuple[Codes, Codes]:
        """Step 5: denominators (H, n_queries) and numerators (H, n_queries, d), exact."""
        if 2 * self.precision_bits + values.shape[1].bit_length() > SUM_BITS:
            raise HeadcountError(f"sums over {values.shape[1]} tokens do not fit", fix="choose fewer bits")
        return weights.sum(-1), multiply(weights, values)

    def finish(self, denominators: Codes, numerators: Codes) -> Codes:
        """Step 6: output codes (n_queries, d)."""
        bottom = denominators[..., None]
        heads = saturate((2 * numerators + bottom) // (2 * bottom), self.precision_bits)
        return saturate(heads.sum(0), self.precision_bits)

    def __call__(self, tokens: Tokens, queries: slice = slice(None)) -> Codes:
        """The outputs at the tokens ``queries``, (n, d)."""
        embedded = self.embed(tokens)
        logits = self.logits(self.queries(embedded[queries]), self.keys(embedded))
        weights = self.weights(logits, logits.max(-1))
        return self.finish(*self.sums(weights, self.values(embedded)))

    def read(self, codes: Codes) -> NDArray[np.float64]:
        """The real values of output codes."""
        return codes.astype(np.float64) / 2.0**self.value_fraction

    def outputs(self, tokens: Tokens) -> NDArray[np.float64]:
        """The outputs as real numbers, (N, d)."""
        return self.read(self(tokens))


@dataclass(frozen=True, eq=False)
class SymbolEmbedding:
    """phi(x, i) = table[x] + places[i], saturated: (M, m) and (N, m) codes."""

    table: Codes
    places: Codes
    precision_bits: int

    def __call__(self, tokens: Tokens) -> Codes:
        """Reads ``x`` and ``position``."""
        _require_fit("residues", tokens["x"], self.table)
        _require_fit("positions", tokens["position"], self.places)
        codes = self.table[tokens["x"]] + self.places[tokens["position"]]
        return saturate(codes, self.precision_bits)


@dataclass(frozen=True, eq=False)
class SetEmbedding:
    """phi(z; y; i) = (code(z) W + sum_{j in y} members[j]) / 2^shift + places[i], rounded and saturated.

    code(z) = z * 2^fraction, rounded to p bits; W is (d', m), members and places are (N, m).
    """

    vectors: Codes
    members: Codes
    places: Codes
    precision_bits: int
    fraction: int = 0
    shift: int = 0

    def __call__(self, tokens: Tokens) -> Codes:
        """Reads ``z``, ``y`` and ``position``."""
        _require_fit("sets", tokens["y"], self.members)
        _require_fit("positions", tokens["position"], self.places)
        if tokens["z"].shape[1] != len(self.vectors):
            raise HeadcountError(
                f"the layer reads vectors of {len(self.vectors)} numbers, not {tokens['z'].shape[1]}",
                fix="build it for this task",
            )
        z = np.floor(tokens["z"].astype(np.float64) * 2.0**self.fraction + 0.5).astype(np.int64)
        mixed = multiply(saturate(z, self.precision_bits), self.vectors) + self.members[tokens["y"]].sum(1)
        codes = shift_down(mixed, self.shift) + self.places[tokens["position"]]
        return saturate(codes, self.precision_bits)


def _require_fit(name: str, numbers: NDArray[np.int64], table: Codes) -> None:
    if numbers.size and numbers.max() >= len(table):
        raise HeadcountError(
            f"the layer knows {name} below {len(table)}, not {numbers.max()}", fix="build it for this task"
        )


def random_codes(rng: np.random.Generator, shape: Sequence[int], precision_bits: int) -> Codes:
    """Uniform codes."""
    half = 2 ** (precision_bits - 1)
    return rng.integers(-half, half, tuple(shape))
