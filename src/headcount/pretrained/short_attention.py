"""Softmax attention over short contexts by plain matrix products, with its backward written out.

In bfloat16 on a CPU it takes about half the time of torch's fused attention, forward and backward together (LOG.md,
2026-11-22), and keeps the weights p for the backward instead of making them again: tokens x tokens numbers a head,
hence only for short contexts. Everywhere else the fused one is better.
"""

from __future__ import annotations

from typing import Any, cast

import torch

LONGEST = 1024
"""Tokens up to which the weights are kept: 2 MiB a head and window at most."""


def is_short(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether ``short_attention`` is the better way for this call: gradients, on a CPU, in bfloat16, no padding.

    With autocast what counts is the dtype that products are made in.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled() or not (q.requires_grad or k.requires_grad):
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
    groups = n_heads // k.shape[1]
    visible = mask
    if mask is None and causal:
        visible = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    bias = torch.zeros(1, dtype=torch.bfloat16, device=q.device)
    if visible is not None:
        bias = torch.zeros(visible.shape, dtype=torch.bfloat16, device=q.device).masked_fill_(~visible, -torch.inf)
        # Heads of a group lie below each other: (batch * n_kv_heads, groups * tokens, tokens).
        bias = bias.reshape(-1, tokens, tokens).repeat(1, groups, 1)
        if len(bias) > 1:
            bias = bias.repeat_interleave(k.shape[1], dim=0)
    flat = [part.bfloat16().reshape(batch * k.shape[1], -1, part.shape[-1]) for part in (q, k, v)]
    out = cast(torch.Tensor, _ShortAttention.apply(*flat, bias, scaling))
    return out.view(batch, n_heads, tokens, v.shape[-1])


class _ShortAttention(torch.autograd.Function):
    """With upstream u: dv = p' u, ds = p (u v' - <p, u v'>), dq = scaling ds k, dk = scaling ds' q."""

    # Autocast would make the softmax, and with it p, float32.
    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        size = (len(q), q.shape[1], k.shape[1])
        p = torch.baddbmm(bias.expand(size), q, k.transpose(1, 2), alpha=scaling).softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        ctx.scaling = scaling
        return p @ v

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        (u,) = upstream
        dv = p.transpose(1, 2) @ u
        ds = torch.ops.aten._softmax_backward_data(u @ v.transpose(1, 2), p, -1, p.dtype).mul_(ctx.scaling)
        return ds @ k, ds.transpose(1, 2) @ q, dv, None, None
