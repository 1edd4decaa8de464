"""How many bits the exact sums of a p-bit softmax take: what one party of a protocol sends for its tokens.

Softmax weights are integers in [0, 2^p - 1], values integers in [-2^(p-1), 2^(p-1) - 1].
"""

from __future__ import annotations


def denominator_bits(tokens: int, precision_bits: int) -> int:
    """Bits of a sum of ``tokens`` weights, an integer in [0, tokens (2^p - 1)].

    >>> denominator_bits(1, 8), denominator_bits(3, 8)
    (8, 10)
    """
    return (tokens * (2**precision_bits - 1)).bit_length()


def numerator_bits(tokens: int, precision_bits: int) -> int:
    """Bits of a sum of ``tokens`` weights times values, sign included.

    >>> numerator_bits(1, 8)
    16
    """
    return (tokens * (2**precision_bits - 1) * 2 ** (precision_bits - 1)).bit_length() + 1
