"""Number formats of p bits, and rounding of float64 tensors to them.

| name | significand bits | exponents | largest number | beyond it |
|---|---|---|---|---|
| fp64 | 53 | float64 | 1.8e308 | inf |
| fp32, tf32, bf16 | 24, 11, 8 | -126..127 | about 3.4e38 | inf |
| fp16 | 11 | -14..15 | 65504 | inf |
| e4m3 | 4 | -6..8 | 448 | NaN (the format has no infinity) |
| e5m2 | 3 | -14..15 | 57344 | inf |
| float:p | p | those of float64 | | |
| fixed:p | two's complement of p bits; one binary point for each tensor | | | saturates |

``wide:p`` (``headcount.constructions.qsa.wide``) is not a tensor format: it runs ``qsa-polytope`` on Python
integers.

Rounding is to nearest, ties to even, with gradual underflow. ``fixed:p`` places the binary point of a tensor
so that its largest magnitude just fits: each result has one scale and no per-entry exponents;
``float:p`` isolates the effect of the significand. float64 represents every number of every format, and rounding
the float64 result of +, -, *, / or a square root equals computing it directly in a format of at most 25
significand bits (2 * 25 + 2 <= 53).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headcount.core.errors import HeadcountError

FLOAT64_SIGNIFICAND = 53


@dataclass(frozen=True)
class Format:
    """A number format; ``round`` rounds a float64 tensor to it.

    ``significand`` counts the leading bit. ``bits`` is the word size, or ``None`` for ``float:p``, which
    has the exponents of float64.
    """

    name: str
    kind: Literal["float", "fixed"]
    significand: int
    bits: int | None
    least_exponent: int = -1022
    largest: float = math.inf
    overflow: float = math.inf
    """The replacement for magnitudes that round beyond ``largest``."""

    @property
    def is_float64(self) -> bool:
        """Whether rounding changes nothing."""
        return self.kind == "float" and self.significand == FLOAT64_SIGNIFICAND

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of a normal number (of the largest number of a tensor, for fixed point)."""
        return 2.0**-self.significand

    def round(self, x: Tensor) -> Tensor:
        """``x`` (float64, any shape) with every entry rounded to the format."""
        assert x.dtype == torch.float64
        if self.is_float64:
            return x
        if self.kind == "fixed":
            return _round_fixed(x, self.significand)
        return _round_float(x, self)


def _float(name: str, significand: int, bits: int, exponents: tuple[int, int]) -> Format:
    least, most = exponents
    largest = (2 - 2.0 ** (1 - significand)) * 2.0**most
    return Format(name, "float", significand, bits, least, largest)


_NAMED = {
    "fp64": Format("fp64", "float", FLOAT64_SIGNIFICAND, 64),
    "fp32": _float("fp32", 24, 32, (-126, 127)),
    "tf32": _float("tf32", 11, 19, (-126, 127)),
    "bf16": _float("bf16", 8, 16, (-126, 127)),
    "fp16": _float("fp16", 11, 16, (-14, 15)),
    # One code of the top binade is NaN, so the largest number is 1.75 * 2^8 and not 1.875 * 2^8.
    "e4m3": Format("e4m3", "float", 4, 8, -6, 448.0, math.nan),
    "e5m2": _float("e5m2", 3, 8, (-14, 15)),
}
_ALIASES = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "fp8-e4m3": "e4m3",
    "fp8-e5m2": "e5m2",
}
NAMES = (*_NAMED, "float:p", "fixed:p")


def get_format(name: str) -> Format:
    """The format with this name.

    >>> get_format("fixed:12").bits, get_format("fp8-e4m3").largest
    (12, 448.0)
    """
    plain = name.strip().lower().replace("_", "-")
    plain = _ALIASES.get(plain, plain)
    if plain in _NAMED:
        return _NAMED[plain]
    match = re.fullmatch(r"(fixed|float)[:-]?(\d+)", plain)
    if match is None:
        raise HeadcountError(f"precision {name!r} is unknown", fix=f"choose one of {', '.join(NAMES)}")
    kind, p = match[1], int(match[2])
    if not 2 <= p <= FLOAT64_SIGNIFICAND:
        raise HeadcountError(f"precision {name!r} has {p} bits", fix=f"choose p from 2 to {FLOAT64_SIGNIFICAND}")
    if kind == "fixed":
        return Format(f"fixed:{p}", "fixed", p, p)
    return Format(f"float:{p}", "float", p, None)


WIDEST = 4096


def wide_bits(name: str) -> int | None:
    """p of ``wide:p`` (``headcount.constructions.qsa.wide``), or ``None`` for a format that float64 can represent.

    Raises ``HeadcountError`` if the name is neither.

    >>> wide_bits("wide:200"), wide_bits("fp32")
    (200, None)
    """
    match = re.fullmatch(r"wide:(\d+)", name.strip().lower())
    if match is None:
        get_format(name)
        return None
    p = int(match[1])
    if not 2 <= p <= WIDEST:
        raise HeadcountError(f"precision {name!r} has {p} bits", fix=f"choose p from 2 to {WIDEST}")
    return p


def _round_float(x: Tensor, to: Format) -> Tensor:
    """Round the significand in the integer representation: add half a unit (less one if even), then truncate."""
    cut = FLOAT64_SIGNIFICAND - to.significand
    if cut == 0:
        rounded = x
    else:
        word = x.contiguous().view(torch.int64)
        half = (1 << (cut - 1)) - 1
        word = (word + half + ((word >> cut) & 1)) & (-1 << cut)
        rounded = torch.where(torch.isfinite(x), word.view(torch.float64), x)
    if to.least_exponent > -1022:
        # Below the least exponent the spacing stays that of the lowest binade.
        spacing = 2.0 ** (to.least_exponent - to.significand + 1)
        rounded = torch.where(x.abs() < 2.0**to.least_exponent, (x / spacing).round() * spacing, rounded)
    if to.largest < math.inf:
        rounded = torch.where(rounded.abs() > to.largest, torch.copysign(_full(x, to.overflow), x), rounded)
    return rounded


def _round_fixed(x: Tensor, p: int) -> Tensor:
    """Multiples of one power of two, at most 2^(p-1) of them in either direction."""
    largest = x.abs().amax() if x.numel() else x.new_zeros(())
    if not torch.isfinite(largest):
        return torch.full_like(x, math.nan)
    _, exponent = torch.frexp(largest)  # largest < 2^exponent
    spacing = torch.ldexp(x.new_ones(()), (exponent - (p - 1)).clamp(min=-1022))
    steps = 2.0 ** (p - 1)
    return (x / spacing).round().clamp(-steps, steps - 1) * spacing


def _full(like: Tensor, value: float) -> Tensor:
    return torch.full((), value, dtype=like.dtype, device=like.device)
