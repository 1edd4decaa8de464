"""Softmax attention over short contexts by plain matrix products, with its backward written out.

Queries go in blocks of ``BLOCK`` that see only the keys up to their last one. In bfloat16 on a CPU that takes about
half the time of torch's fused attention (LOG.md, 2026-11-22). The weights p are kept for the backward instead of being
made again: tokens x tokens / 2 numbers a head, hence only for short contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LONGEST = 1024
"""Tokens up to which the weights are kept: 2 MiB a head and window at most."""
BLOCK = 128
"""Queries of a block: few enough that scores stay in the cache, enough for matrix products at full speed."""


def is_short(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether ``short_attention`` is the better way for this call: on a CPU, in bfloat16, no padding.

    With autocast what counts is the dtype that products are made in.
    """
    if q.device.type != "cpu":
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    own = mask is None or (mask.dtype == torch.bool and bool(mask.diagonal(dim1=-2, dim2=-1).all()))
    return dtype == torch.bfloat16 and q.shape[2] == k.shape[2] <= LONGEST and own


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
    """(queries, the keys that they may see), block after block."""
    rows = [slice(start, min(start + BLOCK, tokens)) for start in range(0, tokens, BLOCK)]
    return [(own, slice(0, own.stop if causal else tokens)) for own in rows]


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
            kept = []
            later = q.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
            for rows, seen in _blocks(tokens, causal):
                scores = torch.bmm(q[:, :, rows].flatten(1, 2), k[:, seen].transpose(1, 2)).mul_(scaling)
                if causal:  # the heads of a group lie below each other
                    own = rows.stop - rows.start
                    scores[..., rows] += later[:own, :own].repeat(groups, 1)
                elif bias is not None:
                    scores += bias[:, rows].repeat(1, groups, 1)
                p = scores.softmax(-1)
                out[:, :, rows] = (p @ v[:, seen]).unflatten(1, (groups, -1))
                if any(ctx.needs_input_grad):
                    kept.append(p)
            ctx.save_for_backward(q, k, v, *kept)
            ctx.causal, ctx.scaling = causal, scaling
            return out

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            q, k, v, *kept = ctx.saved_tensors
            groups = q.shape[1]
            dq = torch.empty_like(q)
            # Over the blocks sums are float32: bfloat16 would lose what later blocks add.
            dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
            for p, (rows, seen) in zip(kept, _blocks(q.shape[2], ctx.causal), strict=True):
                u, own = upstream[0][:, :, rows].flatten(1, 2), q[:, :, rows].flatten(1, 2)
                dv[:, seen] += p.transpose(1, 2) @ u
                ds = torch.ops.aten._softmax_backward_data(u @ v[:, seen].transpose(1, 2), p, -1, p.dtype)
                ds.mul_(ctx.scaling)
                dq[:, :, rows] = (ds @ k[:, seen]).unflatten(1, (groups, -1))
                dk[:, seen] += ds.transpose(1, 2) @ own
            return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None
