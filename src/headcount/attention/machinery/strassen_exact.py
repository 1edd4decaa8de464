"""Strassen attention for rows that the factorised path cannot certify, by log-sum-exp over all their pairs.

The three parts of the logit are computed in float64 and added before the maximum is subtracted, so the result is
accurate for logits of any size; the exponentials, of numbers at most 0, are in the accumulation dtype. The cost is
O(N^2) exponentials per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from headcount.attention.machinery.autograd import accumulation_dtype

TILE_LOGITS = 2**18


def _parts(
    rows: Tensor, q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, ranges: Tensor, scale: float
) -> Iterator[tuple[int, int, slice, slice, Tensor, Tensor, Tensor]]:
    """(group, row, j, l, a_j, b_jl, c_l) for every row that is marked in ``rows`` (G, R) and has a pair."""
    for group in torch.nonzero(rows.any(1)).flatten().tolist():
        key1, key2 = k1[group].double() * scale, k2[group].double()
        between = key1 @ key2.mT
        for row in torch.nonzero(rows[group]).flatten().tolist():
            (j_low, j_high), (l_low, l_high) = ranges[group, :, :, row].tolist()
            j, l = slice(j_low, j_high), slice(l_low, l_high)
            a = key1[j] @ q1[group, row].double()
            c = key2[l] @ (q2[group, row].double() * scale)
            yield group, row, j, l, a, between[j, l], c


def _tiles(a: Tensor, b: Tensor, c: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of j and the float64 logits (j, l) of each."""
    step = max(1, TILE_LOGITS // c.shape[0])
    for start in range(0, a.shape[0], step):
        run = slice(start, min(start + step, a.shape[0]))
        yield run, a[run, None] + b[run] + c


def forward(
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    q1: Tensor,
    q2: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    ranges: Tensor,
    scale: float,
) -> None:
    """Write the marked rows of out (G, R, e) and lse (G, R)."""
    if not bool(rows.any()):
        return
    wide = accumulation_dtype(q1.dtype)
    value1, value2 = v1.to(wide), v2.to(wide)
    for group, row, j, l, a, b, c in _parts(rows, q1, q2, k1, k2, ranges, scale):
        top = torch.stack([logits.amax() for _, logits in _tiles(a, b, c)]).amax()
        total = torch.zeros((), dtype=torch.float64, device=q1.device)
        summed = torch.zeros(v1.shape[-1], dtype=wide, device=q1.device)
        for run, logits in _tiles(a, b, c):
            weights = (logits - top).to(wide).exp_()
            total += weights.sum()
            summed += ((weights @ value2[group, l]) * value1[group, j][run]).sum(0)
        out[group, row] = summed / total.to(wide)
        lse[group, row] = top + total.log()


def backward(
    grads: Sequence[Tensor],
    rows: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    q1: Tensor,
    q2: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    scale: float,
) -> None:
    """Add the contribution of the marked rows to the gradients (dq1, dq2, dk1, dk2, dv1, dv2)."""
    if not bool(rows.any()):
        return
    wide = accumulation_dtype(q1.dtype)
    dq1, dq2, dk1, dk2, dv1, dv2 = grads
    tensors = [tensor.to(wide) for tensor in (q1, q2, k1, k2, v1, v2)]
    for group, row, j, l, a, b, c in _parts(rows, q1, q2, k1, k2, ranges, scale):
        query1, query2 = tensors[0][group, row], tensors[1][group, row]
        key1, key2, value1, value2 = (
            tensor[group, part] for tensor, part in zip(tensors[2:], (j, l, j, l), strict=True)
        )
        grad = grad_out[group, row].to(wide)
        offset = (grad * out[group, row].to(wide)).sum() - grad_lse[group, row].to(wide)
        # lse is rounded to the accumulation dtype, which is too coarse for logits of size 1e4, so the maximum
        # and the sum are recomputed.
        top = torch.stack([logits.amax() for _, logits in _tiles(a, b, c)]).amax()
        total = sum((logits - top).exp_().sum() for _, logits in _tiles(a, b, c))
        dc = torch.zeros_like(key2[:, 0])
        for run, logits in _tiles(a, b, c):
            weights = ((logits - top).exp_() / total).to(wide)
            carried = grad * value1[run]
            d_logits = weights * (carried @ value2.mT - offset) * scale
            mixed = weights @ value2
            dv1[group, j][run] += mixed * grad
            dv2[group, l] += weights.mT @ carried
            da = d_logits.sum(1)
            dc += d_logits.sum(0)
            dq1[group, row] += da @ key1[run]
            dk1[group, j][run] += da[:, None] * query1 + d_logits @ key2
            dk2[group, l] += d_logits.mT @ key1[run]
        dq2[group, row] += dc @ key2
        dk2[group, l] += dc[:, None] * query2
