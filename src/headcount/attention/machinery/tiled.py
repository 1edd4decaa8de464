"""Order-s attention in plain torch, forward and backward, without storing all logits; for any device and any s.

``out_i = sum_T softmax_T(scale sum_c q_ic prod_s k_s[T_s, c]) prod_s v_s[T_s]`` with T over tuples of s - 1
keys.

A *tile* consists of some rows, some tuples of the leading keys (all sets but the last) and a range of the last
set's keys. With the products of the leading keys as rows, a tile's logits are one matrix product with the last
keys, and its contribution is another with the last values. Tiles are merged by online softmax; the backward
recomputes each tile from the saved log-sum-exp. Pairwise attention is the case without leading keys, third
order the case with a single leading set.

Shapes: G groups, R rows, n_s tokens of set s, T leading tuples, L last keys, d and e the dims of keys and
values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headcount.attention.machinery.autograd import accumulation_dtype

TILE_LOGITS = 2**18
"""Logits of one tile: 1 MiB in float32, about the size of a core's second-level cache."""

MASKED_ROWS = 16
"""Maximum number of rows per tile if their ranges differ, since a tile spans the union of the ranges."""


def forward(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], bias: Tensor | None, ranges: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """q (G, R, d); ks, vs: lists of (G, n_s, d), (G, n_s, e); bias (G, n_last) on the last keys.

    Returns out (G, R, e) and lse (G, R), in float32 for bfloat16.
    """
    wide = accumulation_dtype(q.dtype)
    out = q.new_zeros((*q.shape[:2], vs[-1].shape[-1]), dtype=wide)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=wide, device=q.device)
    q, ks, vs = q.to(wide) * scale, [k.to(wide) for k in ks], [v.to(wide) for v in vs]
    for block in _blocks(q, ks, vs, ranges):
        top = torch.full((block.groups, block.rows), -torch.inf, dtype=wide, device=q.device)
        total = torch.zeros_like(top)
        summed = torch.zeros(block.groups, block.rows, vs[-1].shape[-1], dtype=wide, device=q.device)
        for tile in block.tiles():
            weights = tile.logits(q, ks, bias)
            new_top = torch.maximum(top, weights.amax((2, 3)))
            finite_top = torch.where(new_top == -torch.inf, 0.0, new_top)
            weights.sub_(finite_top[:, :, None, None]).exp_()
            shrink = (top - finite_top).exp_()
            total = total * shrink + weights.sum((2, 3))
            mixed = (weights.flatten(1, 2) @ vs[-1][tile.last_index]).unflatten(1, weights.shape[1:3])
            lead = tile.lead_product(vs)
            mixed = mixed.sum(2) if lead is None else (mixed * lead[:, None]).sum(2)
            summed = summed * shrink[..., None] + mixed
            top = new_top
        some = total > 0
        total = torch.where(some, total, 1.0)
        out[block.g, block.r] = summed / total[..., None]
        lse[block.g, block.r] = torch.where(some, total.log() + top, -torch.inf)
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    scale: float,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor | None]:
    """Gradients of q, each key set, each value set and the bias, recomputing the weights tile by tile.

    With P the weights and dP_T = <grad_out_i, prod_s v_s[T_s]>, the logits' gradient is
    dS = P (dP - <grad_out_i, out_i> + grad_lse_i).
    """
    dtypes = [tensor.dtype for tensor in (q, *ks, *vs)]
    wide = accumulation_dtype(q.dtype)
    q, ks, vs = q.to(wide), [k.to(wide) for k in ks], [v.to(wide) for v in vs]
    grad = grad_out.to(wide)
    offset = (grad * out.to(wide)).sum(-1) - grad_lse.to(wide)
    # An empty row has lse = -inf and no weights; replacing lse by any finite number gives zero gradients.
    lse = torch.where(lse == -torch.inf, 0.0, lse)
    dq = torch.zeros_like(q)
    dks, dvs = [torch.zeros_like(k) for k in ks], [torch.zeros_like(v) for v in vs]
    dbias = None if bias is None else torch.zeros_like(bias, dtype=wide)
    scaled = q * scale
    for block in _blocks(q, ks, vs, ranges):
        g, r = block.g, block.r
        for tile in block.tiles():
            last = tile.last_index
            weights = tile.logits(scaled, ks, bias).sub_(lse[g, r, None, None]).exp_()
            v_lead = tile.lead_product(vs)
            cotangent = grad[g, r, None, :] if v_lead is None else grad[g, r, None, :] * v_lead[:, None]
            cotangent = cotangent.flatten(1, 2)
            d_logits = (cotangent @ vs[-1][last].mT).view_as(weights)
            d_logits.sub_(offset[g, r, None, None]).mul_(weights)
            if dbias is not None:
                dbias[last] += d_logits.sum((1, 2))
            weights, flat = weights.flatten(1, 2), d_logits.flatten(1, 2)
            dvs[-1][last] += weights.mT @ cotangent
            dks[-1][last] += flat.mT @ tile.left(scaled, ks)
            d_left = (flat @ ks[-1][last]).unflatten(1, d_logits.shape[1:3]).mul_(scale)
            k_lead = tile.lead_product(ks)
            if k_lead is None or v_lead is None:
                dq[g, r] += d_left.sum(2)
                continue
            dq[g, r] += (d_left * k_lead[:, None]).sum(2)
            mixed = (weights @ vs[-1][last]).unflatten(1, d_logits.shape[1:3])
            tile.add_lead(dks, ks, (d_left * q[g, r, None, :]).sum(1))
            tile.add_lead(dvs, vs, (mixed * grad[g, r, None, :]).sum(1))
    bias_gradient = None if dbias is None or bias is None else dbias.to(bias.dtype)
    return (
        dq.to(dtypes[0]),
        [dk.to(dtype) for dk, dtype in zip(dks, dtypes[1:], strict=False)],
        [dv.to(dtype) for dv, dtype in zip(dvs, dtypes[1 + len(dks) :], strict=True)],
        bias_gradient,
    )


@dataclass
class _Block:
    """Some rows of some groups, whose tiles share one softmax state."""

    g: slice
    r: slice
    low: np.ndarray
    high: np.ndarray
    ranges: Tensor
    lead_tuples: int
    last_keys: int
    uniform: bool
    """Whether all rows have the same ranges."""

    @property
    def groups(self) -> int:
        return int(self.g.stop - self.g.start)

    @property
    def rows(self) -> int:
        return int(self.r.stop - self.r.start)

    def tiles(self) -> Iterator[_Tile]:
        """Every tile that contains an allowed tuple; the outer loop is over leading tuples."""
        spans = self.high - self.low
        if (spans <= 0).any():
            return
        lead_count = math.prod(int(span) for span in spans[:-1])
        for start in range(0, lead_count, self.lead_tuples):
            lead = self._lead(start, min(start + self.lead_tuples, lead_count))
            for first in range(int(self.low[-1]), int(self.high[-1]), self.last_keys):
                yield _Tile(self, lead, slice(first, min(first + self.last_keys, int(self.high[-1]))))

    def _lead(self, start: int, stop: int) -> list[slice | Tensor]:
        """Tokens of each leading set in tuples start..stop: a slice if there is one set, else index tensors."""
        if len(self.low) == 1:
            return []
        if len(self.low) == 2:
            return [slice(int(self.low[0]) + start, int(self.low[0]) + stop)]
        spans = [int(high - low) for low, high in zip(self.low[:-1], self.high[:-1], strict=True)]
        place = np.unravel_index(np.arange(start, stop), spans)
        device = self.ranges.device
        return [torch.from_numpy(index + int(low)).to(device) for index, low in zip(place, self.low[:-1], strict=True)]


@dataclass
class _Tile:
    block: _Block
    lead: list[slice | Tensor]
    last: slice

    @property
    def last_index(self) -> tuple[slice, slice]:
        return self.block.g, self.last

    def lead_product(self, sets: Sequence[Tensor], skip: int | None = None) -> Tensor | None:
        """prod_s sets[s][T_s] over the leading sets except ``skip``: (groups, T, dim); None if there are none."""
        result = None
        for index, (tensor, tokens) in enumerate(zip(sets, self.lead, strict=False)):
            if index != skip:
                part = tensor[self.block.g, tokens]
                result = part if result is None else result * part
        return result

    def left(self, q: Tensor, ks: Sequence[Tensor]) -> Tensor:
        """Rows of the matrix product: queries times leading keys, (groups, rows * T, d)."""
        rows = q[self.block.g, self.block.r]
        lead = self.lead_product(ks)
        return rows if lead is None else (rows[:, :, None] * lead[:, None]).flatten(1, 2)

    def logits(self, scaled: Tensor, ks: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """(groups, rows, T, L), -inf where a key is outside a row's ranges."""
        block = self.block
        last = self.last_index
        logits: Tensor = (self.left(scaled, ks) @ ks[-1][last].mT).unflatten(1, (block.rows, -1))
        if bias is not None:
            logits += bias[last][:, None, None, :]
        outside = self._outside()
        return logits if outside is None else logits.masked_fill_(outside, -torch.inf)

    def _outside(self) -> Tensor | None:
        """Mask of the keys in the union of the rows' ranges but outside a row's range; None if there are none."""
        block = self.block
        if block.uniform:
            return None
        ranges = block.ranges[block.g, :, :, block.r]
        result = None
        for side, tokens in enumerate([*self.lead, self.last]):
            low, high = ranges[:, side, 0, :, None], ranges[:, side, 1, :, None]
            if isinstance(tokens, slice):
                place = torch.arange(tokens.start, tokens.stop, device=ranges.device)
            else:
                place = tokens
            out_of_range = (place < low) | (place >= high)
            out_of_range = out_of_range[..., None, :] if side == len(self.lead) else out_of_range[..., :, None]
            result = out_of_range if result is None else result | out_of_range
        return result

    def add_lead(self, into: Sequence[Tensor], sets: Sequence[Tensor], grad: Tensor) -> None:
        """Distribute the gradient of the leading product, (groups, T, dim), to the leading sets."""
        for index, tokens in enumerate(self.lead):
            others = self.lead_product(sets, skip=index)
            part = grad if others is None else grad * others
            if isinstance(tokens, slice):
                into[index][self.block.g, tokens] += part
            else:
                into[index][self.block.g].index_add_(1, tokens, part)


def _blocks(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], ranges: Tensor) -> Iterator[_Block]:
    """Split rows and groups so that a tile has about TILE_LOGITS logits and its other products are no larger."""
    groups, rows = q.shape[:2]
    bounds = ranges.cpu().numpy()  # (groups, sides, 2, rows)
    widest = (bounds[:, :, 1] - bounds[:, :, 0]).max(axis=(0, 2)).clip(min=1)
    last_keys = int(min(widest[-1], TILE_LOGITS))
    width = max(last_keys, q.shape[-1], vs[-1].shape[-1])
    lead_tuples = int(min(math.prod(int(w) for w in widest[:-1]), max(1, TILE_LOGITS // width)))
    row_step = max(1, TILE_LOGITS // (width * lead_tuples))
    if (bounds != bounds[..., :1]).any():
        row_step = min(row_step, MASKED_ROWS)
    row_step = min(row_step, rows)
    group_step = max(1, TILE_LOGITS // (width * lead_tuples * row_step))
    for g in range(0, groups, group_step):
        for r in range(0, rows, row_step):
            g_slice, r_slice = slice(g, min(g + group_step, groups)), slice(r, min(r + row_step, rows))
            part = bounds[g_slice, :, :, r_slice]
            # Rows with an empty range in any key set attend to nothing, so they are excluded from the union.
            empty = (part[:, :, 1] <= part[:, :, 0]).any(axis=1, keepdims=True)
            low = np.where(empty, np.iinfo(np.int32).max, part[:, :, 0]).min(axis=(0, 2))
            high = np.where(empty, 0, part[:, :, 1]).max(axis=(0, 2))
            uniform = bool((part == part[:1, :, :, :1]).all())
            yield _Block(g_slice, r_slice, low, high, ranges, lead_tuples, last_keys, uniform)
