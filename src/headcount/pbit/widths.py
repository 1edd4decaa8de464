"""The value width as a unit, and the number of bits of the exact sums of a p-bit softmax.

In the protocols, a party sends these sums for its tokens.

Softmax weights are integers in [0, 2^p - 1], values integers in [-2^(p-1), 2^(p-1) - 1].
"""

from __future__ import annotations

VALUE_WIDTH = "value width of a head (d_v)"
"""The unit of bounds on the number of entries that a head sums; the embedding dimension m may differ."""


def denominator_bits(tokens: int, precision_bits: int) -> int:
    """Bits of a sum of ``tokens`` weights, an integer in [0, tokens (2^p - 1)].

    >>> denominator_bits(1, 8), denominator_bits(3, 8)
    (8, 10)
    """
    if 0 < tokens.bit_length() <= precision_bits:
        # n 2^p - n lies in [(n-1) 2^p, n 2^p): so 2^p is not computed, however large p is.
        return precision_bits + (tokens - 1).bit_length()
    greatest: int = 2**precision_bits - 1
    return (tokens * greatest).bit_length()


def numerator_bits(tokens: int, precision_bits: int) -> int:
    """Bits of a sum of ``tokens`` products of weights and values, including the sign.

    >>> numerator_bits(1, 8)
    16
    """
    return denominator_bits(tokens, precision_bits) + (precision_bits if tokens else 1)
