"""Softmax attention over short contexts by plain matrix products, with an explicit backward pass.

Queries are processed in blocks of ``BLOCK``, each with the keys up to its last query. In bfloat16 on a CPU this takes
about half the time of torch's fused attention (LOG.md, 2026-11-22). The weights p are stored for the backward pass
instead of being recomputed: tokens x tokens / 2 numbers per head, hence only for short contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LONGEST = 1024
"""Maximum number of tokens: stored weights take at most 2 MiB per head and window."""
BLOCK = 128
"""Queries per block: few enough that scores stay in the cache, enough for matrix products at full speed."""


def is_short(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether ``short_attention`` is faster for this call: on a CPU, in bfloat16, no padding.

    Under autocast, the autocast dtype is decisive.
    """
    if q.device.type != "cpu":
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    sees_itself = mask is None or (mask.dtype == torch.bool and bool(mask.diagonal(dim1=-2, dim2=-1).all()))
    return dtype == torch.bfloat16 and q.shape[2] == k.shape[2] <= LONGEST and sees_itself


def short_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool, scaling: float
) -> torch.Tensor:
    """o_i = sum_j p_ij v_j with p = softmax(scaling q k'), in bfloat16; sums of products are float32 inside.

    Shapes: q (batch, n_heads, tokens, d), k (batch, n_kv_heads, tokens, d), v (batch, n_kv_heads, tokens, e), any float
    dtype; mask boolean (batch or 1, 1, tokens, tokens), True where visible, every token sees itself. Returns
    (batch, n_heads, tokens, e) in bfloat16.

    >>> q, k, v = torch.zeros(3, 1, 1, 2, 4); v[0, 0, 1] = 1.0
    >>> short_attention(q, k, v, None, True, 0.5)[0, 0, :, 0].tolist()
    [0.0, 0.5]
    """
    batch, n_heads, tokens, _ = q.shape
    pairs, groups = batch * k.shape[1], n_heads // k.shape[1]
    bias = None
    if mask is not None:
        hidden = mask[:, 0].logical_not()
        bias = torch.zeros(hidden.shape, dtype=torch.bfloat16, device=q.device).masked_fill_(hidden, -torch.inf)
        if len(bias) > 1:
            bias = bias.repeat_interleave(k.shape[1], dim=0)
    flat = q.bfloat16().reshape(pairs, groups, tokens, -1), *(x.bfloat16().reshape(pairs, tokens, -1) for x in (k, v))
    apply: Callable[..., torch.Tensor] = _ShortAttention.apply
    out = apply(*flat, bias, causal and mask is None, scaling)
    return out.view(batch, n_heads, tokens, v.shape[-1])


def _blocks(tokens: int, causal: bool) -> list[tuple[slice, slice]]:
    """(queries, their visible keys) for each block."""
    rows = [slice(start, min(start + BLOCK, tokens)) for start in range(0, tokens, BLOCK)]
    return [(queries, slice(0, queries.stop if causal else tokens)) for queries in rows]


class _ShortAttention(torch.autograd.Function):
    """With upstream u: dv = p' u, ds = p (u v' - <p, u v'>), dq = scaling ds k, dk = scaling ds' q."""

    # Autocast would make the softmax, and with it p, float32.
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, causal: bool,
        scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        with torch.autocast("cpu", enabled=False):
            pairs, groups, tokens, _ = q.shape
            out = q.new_empty(pairs, groups, tokens, v.shape[-1])
            weights = []
            later = q.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
            for rows, seen in _blocks(tokens, causal):
                scores = torch.bmm(q[:, :, rows].flatten(1, 2), k[:, seen].transpose(1, 2)).mul_(scaling)
                if causal:  # the heads of a group are stacked along the rows
                    size = rows.stop - rows.start
                    scores[..., rows] += later[:size, :size].repeat(groups, 1)
                elif bias is not None:
                    scores += bias[:, rows].repeat(1, groups, 1)
                p = scores.softmax(-1)
                out[:, :, rows] = (p @ v[:, seen]).unflatten(1, (groups, -1))
                if any(ctx.needs_input_grad):
                    weights.append(p)
            ctx.save_for_backward(q, k, v, *weights)
            ctx.causal, ctx.scaling = causal, scaling
            return out

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            q, k, v, *weights = ctx.saved_tensors
            groups = q.shape[1]
            dq = torch.empty_like(q)
            # Sums over blocks are float32: bfloat16 would lose the contributions of later blocks.
            dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
            for p, (rows, seen) in zip(weights, _blocks(q.shape[2], ctx.causal), strict=True):
                u, queries = upstream[0][:, :, rows].flatten(1, 2), q[:, :, rows].flatten(1, 2)
                dv[:, seen] += p.transpose(1, 2) @ u
                ds = torch.ops.aten._softmax_backward_data(u @ v[:, seen].transpose(1, 2), p, -1, p.dtype)
                ds.mul_(ctx.scaling)
                dq[:, :, rows] = (ds @ k[:, seen]).unflatten(1, (groups, -1))
                dk[:, seen] += ds.transpose(1, 2) @ queries
            return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None
