"""The N^3 part of factorised Strassen attention: one interface, implemented in torch and in compiled code.

With e1 (g, r, j), e2 (g, r, l), e12 (g, j, l) the scaled exponentials of a chunk of rows (:mod:`factorised`)
and

    inner_ijc = sum_l e12_jl e2_il v2_lc,   inner'_ilc = sum_j e12_jl e1_ij v1_jc,

``forward`` returns sum_j e1_ij v1_jc inner_ijc, and ``backward`` computes from the rows' cotangent pull_ic all sums
that the gradients need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headcount.attention.kernels import build, native

CHUNK_NUMBERS = 2**20
"""Entries of the matrix of e2 v2 for one chunk of rows in torch: 4 MiB in float32."""

ROWS = 256
"""Maximum number of rows per chunk; a chunk spans the union of its rows' ranges, so narrow ranges use fewer rows."""


@dataclass(frozen=True)
class Exponentials:
    """Scaled exponentials of one chunk, and the rows' ranges (g, 4, r) as j0, j1, l0, l1 relative to the chunk."""

    e1: Tensor
    e2: Tensor
    e12: Tensor
    ranges: Tensor
    prepared: list[list[Tensor]]
    """The result of ``Contraction.prepare`` for e12."""


@dataclass(frozen=True)
class Pulled:
    """The result of ``backward`` for a cotangent ``pull`` (g, r, e)."""

    first: Tensor
    """sum_c pull_ic v1_jc inner_ijc: (g, r, j)."""
    second: Tensor
    """sum_c pull_ic v2_lc inner'_ilc: (g, r, l)."""
    cross: Tensor
    """sum_ic e1_ij v1_jc pull_ic e2_il v2_lc: (g, j, l)."""
    dv1: Tensor
    """sum_i e1_ij pull_ic inner_ijc: (g, j, e)."""
    dv2: Tensor
    """sum_i e2_il pull_ic inner'_ilc: (g, l, e)."""


class Contraction(Protocol):
    """The interface of both implementations."""

    def row_step(self, tokens: int, v_dim: int, widest: int) -> int:
        """Number of rows per chunk, where ``widest`` is the longest range of a row."""

    def prepare(self, e12: Tensor, *, backward: bool) -> list[list[Tensor]]:
        """For each group, the representations of e12 that are used more than once."""

    def forward(self, exponentials: Exponentials, v1: Tensor, v2: Tensor) -> Tensor:
        """sum_j e1_ij v1_jc inner_ijc: (g, r, e)."""

    def backward(self, exponentials: Exponentials, v1: Tensor, v2: Tensor, pull: Tensor) -> Pulled:
        """The sums that the gradients need."""


class InTorch:
    """One matrix product of e12 with the e2 v2 of all rows and channels of the chunk."""

    def row_step(self, tokens: int, v_dim: int, widest: int) -> int:
        """The number of rows for which the right factor has about CHUNK_NUMBERS entries."""
        return max(1, min(ROWS, widest // 4, CHUNK_NUMBERS // (min(tokens, 2 * widest) * v_dim)))

    def prepare(self, e12: Tensor, *, backward: bool) -> list[list[Tensor]]:
        """Nothing, since the matrix product packs its own operands."""
        return []

    def forward(self, exponentials: Exponentials, v1: Tensor, v2: Tensor) -> Tensor:
        """See :class:`Contraction`."""
        inner = _product(exponentials.e12, _spread(exponentials.e2, v2))
        return (inner.mul_(v1[:, :, None]) * exponentials.e1.mT[..., None]).sum(1)

    def backward(self, exponentials: Exponentials, v1: Tensor, v2: Tensor, pull: Tensor) -> Pulled:
        """See :class:`Contraction`."""
        left, right = _spread(exponentials.e1, v1), _spread(exponentials.e2, v2)
        inner = _product(exponentials.e12, right).mul_(pull[:, None])
        first = (inner * v1[:, :, None]).sum(-1).mT
        dv1 = (inner * exponentials.e1.mT[..., None]).sum(2)
        inner = _product(exponentials.e12.mT, left).mul_(pull[:, None])
        second = (inner * v2[:, :, None]).sum(-1).mT
        dv2 = (inner * exponentials.e2.mT[..., None]).sum(2)
        cross = left.mul_(pull[:, None]).flatten(2) @ right.flatten(2).mT
        return Pulled(first, second, cross, dv1, dv2)


def _spread(exponentials: Tensor, values: Tensor) -> Tensor:
    """e_il v_lc: (g, l, r, e)."""
    return values[:, :, None] * exponentials.mT[..., None]


def _product(e12: Tensor, right: Tensor) -> Tensor:
    """sum_l e12_jl right_l..: (g, j, r, e)."""
    sums: Tensor = (e12 @ right.flatten(2)).unflatten(2, right.shape[2:])
    return sums


@dataclass(frozen=True)
class Compiled:
    """The fused kernels, called per group; no array of size rows x keys x channels is stored."""

    kernels: native.Strassen

    def row_step(self, tokens: int, v_dim: int, widest: int) -> int:
        """As many rows as possible, since only e1 and e2 grow with the chunk."""
        return max(1, min(ROWS, widest if widest == tokens else widest // 4))

    def prepare(self, e12: Tensor, *, backward: bool) -> list[list[Tensor]]:
        """E12 in the kernel's memory layout, and its transpose for the backward pass."""
        sides = (False, True) if backward else (False,)
        return [[self.kernels.packed(group.contiguous(), swapped=side) for side in sides] for group in e12]

    def forward(self, exponentials: Exponentials, v1: Tensor, v2: Tensor) -> Tensor:
        """See :class:`Contraction`."""
        padded1, padded2 = self.kernels.padded(v1), self.kernels.padded(v2)
        ranges = exponentials.ranges.mT.to(torch.int32).contiguous()
        parts = []
        for g in range(v1.shape[0]):
            e1, e2 = exponentials.e1[g].contiguous(), exponentials.e2[g].contiguous()
            packed = exponentials.prepared[g][0]
            parts.append(self.kernels.forward(e1, e2, packed, padded1[g], padded2[g], ranges[g]))
        return torch.stack(parts)[..., : v1.shape[-1]]

    def backward(self, exponentials: Exponentials, v1: Tensor, v2: Tensor, pull: Tensor) -> Pulled:
        """See :class:`Contraction`."""
        dim = v1.shape[-1]
        padded1, padded2, padded_pull = (self.kernels.padded(tensor) for tensor in (v1, v2, pull))
        ranges = exponentials.ranges.mT.to(torch.int32).contiguous()
        pulled_groups = []
        for g in range(v1.shape[0]):
            e1, e2 = exponentials.e1[g].contiguous(), exponentials.e2[g].contiguous()
            packed, transposed = exponentials.prepared[g]
            value1, value2, pulled = padded1[g], padded2[g], padded_pull[g]
            first, dv1 = self.kernels.inner_backward(e1, e2, packed, value1, value2, pulled, ranges[g], swapped=False)
            second, dv2 = self.kernels.inner_backward(
                e2, e1, transposed, value2, value1, pulled, ranges[g], swapped=True
            )
            cross = self.kernels.cross(e1, e2, value1, value2, pulled)
            pulled_groups.append((first, second, cross, dv1[:, :dim], dv2[:, :dim]))
        return Pulled(*map(torch.stack, zip(*pulled_groups, strict=True)))


def choose(operator: str, tensor: Tensor) -> Contraction:
    """The compiled implementation if available; notes the choice for :mod:`headcount.attention.kernels.build`."""
    kernels = native.strassen(tensor)
    build.note(operator, "torch" if kernels is None else "compiled")
    return InTorch() if kernels is None else Compiled(kernels)
