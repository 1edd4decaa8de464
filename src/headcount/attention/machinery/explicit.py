"""Explicit attention over tuples: the softmax shared by all operators, and order-s attention based on it.

Used by the float64 reference and for second derivatives; it materialises all logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headcount.attention.machinery import masks
from headcount.attention.machinery.autograd import product

TUPLE = "jklmn"
"""Letters of the tuple axes in einsum formulas; b, h, i, c are batch, heads, queries and channels."""


def weighted_sum(logits: Tensor, allowed: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Softmax over the allowed tuples, applied to products of values.

    ``out_i = sum_T P_iT prod_s v_s[T_s]`` with ``P_iT = exp(logit_iT - lse_i)`` on tuples T with every T_s
    allowed. A query with no allowed tuple gives zeros and ``lse = -inf``, with zero gradients.

    logits: (b, h, i, n_1, .., n_S). allowed: S booleans (b or 1, i, n_s). values: S tensors (b, h, n_s, c).
    Returns (b, h, i, c) and (b, h, i).
    """
    sides = len(values)
    inside = torch.ones((), dtype=torch.bool, device=logits.device)
    for side, mask in enumerate(allowed):
        shape = (mask.shape[0], 1, mask.shape[1], *(mask.shape[2] if s == side else 1 for s in range(sides)))
        inside = inside & mask.reshape(shape)
    axes = tuple(range(3, 3 + sides))
    # Softmax is invariant to a common shift, so the maximum can be detached; -inf is replaced by 0 to avoid NaN
    # in forward and backward.
    top = logits.detach().masked_fill(~inside, -torch.inf).amax(axes)
    top = torch.where(top == -torch.inf, 0.0, top)
    shifted = torch.where(inside, logits - top.reshape(*top.shape, *(1 for _ in axes)), 0.0)
    terms = torch.where(inside, shifted.exp(), 0.0)
    total = terms.sum(axes)
    some = total > 0
    safe = torch.where(some, total, 1.0)
    lse = torch.where(some, safe.log() + top, -torch.inf)
    tuple_axes = TUPLE[:sides]
    factors = ",".join(f"bh{axis}c" for axis in tuple_axes)
    summed = torch.einsum(f"bhi{tuple_axes},{factors}->bhic", terms, *values)
    return summed / safe[..., None], lse


def explicit(*arguments: Any) -> tuple[Tensor, Tensor]:
    """(q, k_1, .., v_1, .., ranges, scale) -> (out, lse) with all logits materialised; differentiable."""
    *tensors, ranges, scale = arguments
    q, streams = tensors[0], tensors[1:]
    sides = len(streams) // 2
    ks, vs = [k[:, None] for k in streams[:sides]], [v[:, None] for v in streams[sides:]]
    axes = TUPLE[:sides]
    factors = ",".join(f"bh{axis}c" for axis in axes)
    logits = torch.einsum(f"bhic,{factors}->bhi{axes}", q[:, None], *ks) * scale
    inside = [masks.allowed(ranges[:, side], k.shape[2]) for side, k in enumerate(ks)]
    out, lse = weighted_sum(logits, inside, vs)
    return out[:, 0], lse[:, 0]


def count_logits(*tensors: Tensor) -> int:
    """Number of logits of one call: groups x rows x tuples of keys."""
    keys = tensors[1 : 1 + (len(tensors) - 1) // 2]
    return product([*tensors[0].shape[:2], *(k.shape[1] for k in keys)])
