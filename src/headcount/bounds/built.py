"""Upper bounds: explicit weights whose dimension is compared with the lower bounds.

``qsa-polytope`` (THEORY section 4, after [A] Theorem 3) has keys t, t^2, ..., t^(2q) and, for the subset y,
the coefficients of -prod_{j in y} (t - t_j)^2 as its query: the logit is 0 on y and at most -1 at every
other integer, up to a constant that softmax drops. All numbers are integers, of up to 2q log2 N bits. Split
into digits of p bits, they form embeddings of p-bit numbers for *any* p, and the query and key matrices,
which recombine the digits with powers of two, are as unrestricted as in the bound ``qsa-bits``: the two
numbers bracket the same quantity, p-bit embeddings followed by exact arithmetic. (Rounding inside the
arithmetic is a separate question; ``headcount construct`` answers it by simulation.)

As in the bounds, m is the width of the wider of two vectors: the one that keys and values are computed from and
the one that queries are computed from. The value width d_v of a head is a separate size; it is set if the task has
a bound on it (Match3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from headcount.bounds.base import Sizes
from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject

DIGITS_LIMIT = 100_000
"""Largest sparsity for which the digits are counted one number at a time (half a second)."""


@dataclass(frozen=True)
class Built:
    """One construction at particular sizes."""

    id: str
    embedding_dim: int
    needs_bits: int
    """Bits of each embedding entry."""
    arithmetic: str
    """The arithmetic that the construction requires."""
    guarantee: str = "all inputs"
    value_width: int | None = None
    """d_v: the number of entries that a head sums; set if the task has a bound on it."""

    def as_dict(self) -> JsonObject:
        """The fields of the JSON answer."""
        return dict(vars(self))


@dataclass(frozen=True)
class LimbPolytope:
    """qSA with embeddings of p-bit integers, p >= 2, for every subset: within ``epsilon`` of the target.

    Positions are centred, |t| <= h = ceil((N-1)/2): |t^k| <= h^k, and the coefficient of t^k is at most
    C(2q, k) h^(2q-k). A number of b bits takes ceil(b / (p-1)) digits in (-2^(p-1), 2^(p-1)), each with its
    sign. Values are rounded to F fractional bits with sqrt(d') 2^-(F+1) <= epsilon/2, and the scale
    alpha of the logits leaves the mass (N-q)/q e^-alpha <= epsilon/4 off the subset, which costs at most
    twice that. If (N-q)/q is at most epsilon/4, uniform attention (alpha = 0) suffices.
    """

    tokens: int
    sparsity: int
    dim: int
    precision_bits: int
    epsilon: float

    def __post_init__(self) -> None:
        if self.precision_bits < 2:
            raise HeadcountError("digits with a sign need 2 bits", fix="choose precision_bits of at least 2")

    @property
    def middle(self) -> int:
        """The token at t = 0."""
        return (self.tokens - 1) // 2

    @property
    def fraction(self) -> int:
        """F: the number of fractional bits of a value."""
        return max(0, math.ceil(math.log2(self.dim) / 2 - math.log2(self.epsilon)))

    @property
    def alpha(self) -> float:
        """The scale of the logits; never negative, as in ``headcount.constructions.qsa.unit.depth_for``."""
        rest = self.tokens - self.sparsity
        return max(0.0, math.log(4 * rest / self.sparsity) - math.log(self.epsilon)) if rest else 0.0

    def limbs(self, bits: int) -> int:
        """The number of digits of a number with ``bits`` bits."""
        return -(-bits // (self.precision_bits - 1))

    @property
    def half(self) -> int:
        """h: the largest |t|, and at least 1."""
        return max(1, self.tokens - 1 - self.middle)

    def _bits_of_key(self, k: int) -> int:
        """Bits of t^k."""
        return _bits_below(k * math.log2(self.half))

    def _bits_of_query(self, k: int) -> int:
        """Bits of the coefficient of t^k."""
        degree = 2 * self.sparsity
        return _bits_below(_log2_binomial(degree, k) + (degree - k) * math.log2(self.half))

    @cached_property
    def _key_bits(self) -> list[int]:
        """Bits of t, t^2, ..., t^(2q)."""
        return [self._bits_of_key(k) for k in range(1, 2 * self.sparsity + 1)]

    @cached_property
    def _query_bits(self) -> list[int]:
        """Bits of the coefficients of t, ..., t^(2q)."""
        return [self._bits_of_query(k) for k in range(1, 2 * self.sparsity + 1)]

    @property
    def undivided_bits(self) -> int:
        """Bits, including the sign, of the longest number: with this many bits each number fits one digit.

        The longest power is t^(2q). C(2q, k) h^(2q-k) grows with k while (2q - k) / ((k + 1) h) >= 1, and then
        falls: the longest coefficient is at k ~ 2q / (h + 1).
        """
        degree = 2 * self.sparsity
        top = degree // (self.half + 1)
        near = {min(max(k, 1), degree) for k in range(top - 2, top + 3)}
        return 1 + max(self._bits_of_key(degree), self.fraction + 1, *map(self._bits_of_query, near))

    @property
    def embedding_dim(self) -> int:
        """m: the number of digits of the wider vector."""
        values = self.dim * self.limbs(self.fraction + 1)
        keys, queries = (sum(map(self.limbs, bits)) for bits in (self._key_bits, self._query_bits))
        return max(values + keys, queries)

    def _digits(self, number: int, count: int) -> list[int]:
        """Digits, least significant first, each with the sign of the number."""
        base, size, sign = 2 ** (self.precision_bits - 1), abs(number), 1 if number >= 0 else -1
        digits = []
        for _ in range(count):
            digits.append(sign * (size % base))
            size //= base
        assert size == 0, "the number is longer than its bound"
        return digits

    def _join(self, digits: Sequence[int]) -> int:
        """The sum of digits times powers of 2^(p-1), as computed by the query and key matrices."""
        return sum(digit << (self.precision_bits - 1) * place for place, digit in enumerate(digits))

    def key(self, token: int) -> list[list[int]]:
        """The p-bit digits of t, t^2, ..., t^(2q)."""
        t = token - self.middle
        return [self._digits(t**k, self.limbs(b)) for k, b in enumerate(self._key_bits, start=1)]

    def query(self, subset: Sequence[int]) -> list[list[int]]:
        """The p-bit digits of the coefficients 1..2q of -prod (t - t_j)^2."""
        coefficients = [-1]
        for j in subset:
            root = j - self.middle
            for _ in range(2):
                shifted = [0, *coefficients]
                coefficients = [a - root * b for a, b in zip(shifted, [*coefficients, 0], strict=True)]
        numbers = zip(coefficients[1:], self._query_bits, strict=True)
        return [self._digits(number, self.limbs(bits)) for number, bits in numbers]

    def logits(self, subset: Sequence[int]) -> list[int]:
        """<query, key> of every token, exact; scaled by ``alpha`` only in the softmax."""
        query = [self._join(digits) for digits in self.query(subset)]
        keys = ([self._join(digits) for digits in self.key(token)] for token in range(self.tokens))
        return [sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]

    def attend(self, z: Sequence[Sequence[float]], subset: Sequence[int]) -> list[float]:
        """The output at a token with this subset, (d',)."""
        logits = self.logits(subset)
        top = max(logits)
        # The exact gaps have hundreds of bits, more than float64 can hold; exp of anything below -750 is 0.
        weights = [math.exp(max(self.alpha * max(logit - top, -(2**1000)), -750)) for logit in logits]
        step = 2.0**-self.fraction
        values = [[step * self._join(self._value(entry)) for entry in row] for row in z]
        total = sum(weights)
        columns = range(self.dim)
        return [sum(w * v[c] for w, v in zip(weights, values, strict=True)) / total for c in columns]

    def _value(self, entry: float) -> list[int]:
        return self._digits(round(entry * 2**self.fraction), self.limbs(self.fraction + 1))


def _bits_below(log2: float) -> int:
    """Sufficient bits for every integer up to 2^log2; the slack covers the rounding of float64 logarithms."""
    return math.floor(log2 + 1e-9 * (1 + log2)) + 1


def _log2_binomial(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def built_qsa(sizes: Sizes) -> list[Built]:
    """Constructions that solve qSA at these sizes: the polytope, undivided and in p-bit digits, and one-hot keys.

    One-hot keys need at most 2 bits for keys and queries: key j is the j-th unit vector, the query is the
    indicator of the subset, and the logit is 1 on the subset and 0 elsewhere. Values are split into digits as for the
    polytope. The digit version of the polytope is omitted for q > ``DIGITS_LIMIT``.
    """
    n, q, dim = sizes.need("tokens"), sizes.need("sparsity"), sizes.need("dim")
    epsilon, p = sizes.epsilon or 1 / (4 * q), sizes.precision_bits
    whole = LimbPolytope(n, q, dim, 2, epsilon)
    exact = "exact arithmetic after the embedding"
    rows = [Built("qsa-polytope", dim + 2 * q, whole.undivided_bits, exact)]
    if p is not None and p >= 2:
        digits = LimbPolytope(n, q, dim, p, epsilon)
        if p < whole.undivided_bits and q <= DIGITS_LIMIT:
            rows.append(Built("qsa-polytope in digits", digits.embedding_dim, p, exact))
        rows.append(Built("one-hot keys", n + dim * digits.limbs(digits.fraction + 1), p, exact))
    return rows


def built_match3(sizes: Sizes) -> list[Built]:
    """One-layer constructions for Match3 with ordinary attention (``histogram_layer``, ``threshold_layer``)."""
    n, modulus = sizes.need("tokens"), sizes.need("modulus")
    bits = 1 + (-(-n // 2)).bit_length()  # 2^(p-1) - 1 >= N/2
    arithmetic = "the arithmetic of headcount.pbit.layer"
    return [
        Built("histogram", modulus, bits, arithmetic, value_width=modulus),
        Built("thresholds", 2, 1 + (max(2 * n, modulus) + 1).bit_length(), arithmetic, value_width=modulus + 1),
    ]


def smallest_built(rows: Sequence[Built], precision_bits: int | None) -> int | None:
    """The smallest embedding dimension that solves every input with p bits, or ``None``."""
    return min((row.embedding_dim for row in _usable(rows, precision_bits)), default=None)


def smallest_value_width(rows: Sequence[Built], precision_bits: int | None) -> int | None:
    """The smallest value width that solves every input with p bits, or ``None`` if no construction states one."""
    widths = (row.value_width for row in _usable(rows, precision_bits))
    return min((width for width in widths if width is not None), default=None)


def _usable(rows: Sequence[Built], precision_bits: int | None) -> list[Built]:
    return [
        row
        for row in rows
        if row.guarantee == "all inputs" and (precision_bits is None or row.needs_bits <= precision_bits)
    ]
