"""Triangular attention (edge transformers): states belong to pairs of tokens; a pair attends to its paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headcount.attention.machinery import checks, masks
from headcount.attention.machinery.autograd import accumulation_dtype, operator, product
from headcount.core.errors import HeadcountError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

TILE_LOGITS = 2**19


def _mask(ranges: Tensor, tokens: int, rows: slice) -> Tensor | None:
    """(groups, rows, columns, middles), True where the middle token is not allowed; None if all are allowed.

    ranges: (groups, 1, 2, tokens), indexed by the position of the pair, max(i, j).
    """
    low, high = ranges[:, 0, 0], ranges[:, 0, 1]
    if not bool((low > 0).any()) and bool((high == tokens).all()):
        return None
    place = torch.arange(tokens, device=ranges.device)
    pair = torch.maximum(place[rows, None], place[None, :])
    return ~masks.allowed(torch.stack([low[:, pair], high[:, pair]], dim=-2), tokens)


def _logits(q: Tensor, k: Tensor, ranges: Tensor, scale: float, rows: slice) -> Tensor:
    """Logits of pairs (i in rows, j) through every middle token l: (groups, rows, columns, middles)."""
    by_middle = (q[:, rows].transpose(1, 2) * scale) @ k.mT  # (groups, middles, rows, columns)
    logits = by_middle.permute(0, 2, 3, 1)
    outside = _mask(ranges, q.shape[1], rows)
    return logits if outside is None else logits.masked_fill(outside, -torch.inf)


def _steps(q: Tensor) -> list[tuple[slice, slice]]:
    """Groups and rows of each tile: about TILE_LOGITS logits, at least one row of one group."""
    groups, tokens = q.shape[:2]
    row_step = max(1, min(tokens, TILE_LOGITS // tokens**2))
    group_step = max(1, min(groups, TILE_LOGITS // (tokens**2 * row_step)))
    return [
        (slice(g, min(g + group_step, groups)), slice(r, min(r + row_step, tokens)))
        for g in range(0, groups, group_step)
        for r in range(0, tokens, row_step)
    ]


def _forward(q: Tensor, k: Tensor, v1: Tensor, v2: Tensor, ranges: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(q.dtype)
    out = q.new_empty((*q.shape[:3], v1.shape[-1]), dtype=wide)
    lse = torch.empty(q.shape[:3], dtype=wide, device=q.device)
    q, k, v1 = q.to(wide), k.to(wide), v1.to(wide)
    by_column = v2.to(wide).transpose(1, 2).contiguous()  # contiguous reads for each pair: 2.5 times faster
    for g, rows in _steps(q):
        logits = _logits(q[g], k[g], ranges[g], scale, rows)
        top = logits.amax(-1, keepdim=True)
        top = torch.where(top == -torch.inf, 0.0, top)
        terms = (logits - top).exp()
        total = terms.sum(-1)
        some = total > 0
        total = torch.where(some, total, 1.0)
        lse[g, rows] = torch.where(some, total.log() + top[..., 0], -torch.inf)
        weights = (terms / total[..., None]).contiguous()
        paths = torch.empty_like(by_column[g])  # (groups, columns, middles, v_dim), one array for all rows
        for row in range(rows.start, rows.stop):
            torch.mul(v1[g, row, None], by_column[g], out=paths)
            out[g, row] = (weights[:, row - rows.start, :, None] @ paths)[:, :, 0]
    return out, lse


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v1: Tensor,
    v2: Tensor,
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    dtype, wide = q.dtype, accumulation_dtype(q.dtype)
    q, k, v1, v2 = q.to(wide), k.to(wide), v1.to(wide), v2.to(wide)
    grad = grad_out.to(wide)
    offset = (grad * out.to(wide)).sum(-1) - grad_lse.to(wide)
    lse = torch.where(lse == -torch.inf, 0.0, lse)
    dq, dk = torch.zeros_like(q), torch.zeros_like(k)
    dv1, dv2 = torch.zeros_like(v1), torch.zeros_like(v2)
    for g, rows in _steps(q):
        weights = (_logits(q[g], k[g], ranges[g], scale, rows) - lse[g, rows, :, None]).exp()
        d_logits = torch.empty_like(weights)
        carried = torch.empty_like(v2[g])  # (groups, middles, columns, v_dim), one array for all rows
        for row in range(rows.start, rows.stop):
            place = row - rows.start
            torch.mul(grad[g, row, None], v2[g], out=carried)
            by_middle = weights[:, place].mT  # (groups, middles, columns)
            d_weights = (carried @ v1[g, row, :, :, None])[..., 0]
            d_logits[:, place] = (by_middle * (d_weights - offset[g, row, None])).mT
            dv1[g, row] = (by_middle[:, :, None] @ carried)[:, :, 0]
            torch.mul(grad[g, row, None], v1[g, row, :, None], out=carried)
            dv2[g].addcmul_(carried, by_middle[..., None])
        d_by_middle = d_logits.permute(0, 3, 1, 2) * scale  # (groups, middles, rows, columns)
        dq[g, rows] = (d_by_middle @ k[g]).transpose(1, 2)
        dk[g] += d_by_middle.mT @ q[g, rows].transpose(1, 2)
    return dq.to(dtype), dk.to(dtype), dv1.to(dtype), dv2.to(dtype)


def _explicit(q: Tensor, k: Tensor, v1: Tensor, v2: Tensor, ranges: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits = torch.einsum("gilc,gljc->gijl", q, k) * scale
    place = torch.arange(q.shape[1], device=q.device)
    pair = torch.maximum(place[:, None], place[None, :])
    inside = (place >= ranges[:, 0, 0, pair][..., None]) & (place < ranges[:, 0, 1, pair][..., None])
    top = logits.detach().masked_fill(~inside, -torch.inf).amax(-1)
    top = torch.where(top == -torch.inf, 0.0, top)
    terms = torch.where(inside, torch.where(inside, logits - top[..., None], 0.0).exp(), 0.0)
    total = terms.sum(-1)
    some = total > 0
    safe = torch.where(some, total, 1.0)
    lse = torch.where(some, safe.log() + top, -torch.inf)
    return torch.einsum("gijl,gilc,gljc->gijc", terms / safe[..., None], v1, v2), lse


_triangular = operator(
    "triangular",
    ("q", "k", "v1", "v2"),
    forward=_forward,
    backward=_backward,
    explicit=_explicit,
    logits=lambda q, *_: product([q.shape[0], q.shape[1], q.shape[1], q.shape[1]]),
)


def triangular(
    q: Float[Tensor, "batch heads tokens tokens dim"],
    k: Float[Tensor, "batch kv_heads tokens tokens dim"],
    v1: Float[Tensor, "batch kv_heads tokens tokens v_dim"],
    v2: Float[Tensor, "batch kv_heads tokens tokens v_dim"],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | Sequence[int] | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    dropout_p: float = 0.0,
    check_finite: bool = False,
) -> Float[Tensor, "batch heads tokens tokens v_dim"]:
    """Triangular attention over pairs, ``out_ij = sum_l softmax_l(scale <q_il, k_lj>) v1_il * v2_lj``.

    Bergen, O'Donnell, Bahdanau 2021 (edge transformers). Tensors are (batch, heads, tokens, tokens, dim).
    O(N^3 dim) work, O(N^2 dim) memory, the size of the states.

    scale: 1/sqrt(dim) when None. A pair's position is max(i, j), the later of its tokens. causal: the middle
    token l is no later than it. window: among the last w up to it; implies causal. key_padding_mask:
    (batch, tokens), True for tokens that may not be the middle token. A pair with nothing to attend to gives
    zeros.

    Raises HeadcountError for shapes, dtypes or a window that do not fit, and for dropout_p other than 0.

    >>> import torch
    >>> state = torch.ones(1, 1, 3, 3, 2)
    >>> triangular(state, state, 2 * state, 3 * state)[0, 0, 0, 0]
    tensor([6., 6.])
    """
    tensors = {"q": q, "k": k, "v1": v1, "v2": v2}
    checks.check_common(
        "triangular",
        tensors,
        axes=("batch", "heads", "tokens", "tokens", "dim"),
        dropout_p=dropout_p,
        check_finite=check_finite,
    )
    # A pair of tokens counts as one position in the shape checks.
    checks.check_streams(
        "triangular",
        {"q": q.flatten(2, 3)},
        {"k": k.flatten(2, 3)},
        {"v1": v1.flatten(2, 3), "v2": v2.flatten(2, 3)},
        shown=tensors,
    )
    batch, heads, tokens, columns, dim = q.shape
    if any(t.shape[2:4] != (tokens, tokens) for t in tensors.values()) or tokens != columns:
        raise HeadcountError(
            f"triangular: the states are not square: {checks.sizes(tensors)}",
            fix="pass (batch, heads, tokens, tokens, dim) for every tensor",
        )
    windows = checks.check_window("triangular", window, 1)
    masks.check_padding("triangular", key_padding_mask, batch, tokens)
    place = torch.arange(tokens, device=q.device)
    ranges = masks.position_ranges(place, tokens, causal=causal, windows=windows, sides=1)
    if key_padding_mask is None:
        ranges = ranges.expand(batch, *ranges.shape)
    else:
        ranges, order = masks.padded_ranges(ranges, key_padding_mask)
        # The middle token is the second token of the pairs of q and v1 and the first of those of k and v2.
        q, v1 = (_reorder(tensor, order, 3) for tensor in (q, v1))
        k, v2 = (_reorder(tensor, order, 2) for tensor in (k, v2))
    shared = heads // k.shape[1]
    k, v1, v2 = (tensor.repeat_interleave(shared, 1) for tensor in (k, v1, v2))
    ranges = ranges[:, None].expand(batch, heads, 1, 2, tokens).reshape(batch * heads, 1, 2, tokens)
    folded = (tensor.flatten(0, 1) for tensor in (q, k, v1, v2))
    out, _ = _triangular(*folded, ranges, dim**-0.5 if scale is None else float(scale))
    unfolded: Tensor = out.unflatten(0, (batch, heads)).to(q.dtype)
    return unfolded


def _reorder(tensor: Tensor, order: Tensor, axis: int) -> Tensor:
    shape = [1] * 5
    shape[0], shape[axis] = order.shape
    return tensor.gather(axis, order.reshape(shape).expand(*tensor.shape))
