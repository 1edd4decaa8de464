"""Converts (batch, heads, tokens, dim) with shared KV heads to the (groups, rows, dim) layout of the kernels.

A *group* is one batch entry and one KV head. The query heads that share it are stacked as additional rows, so
kernels do not handle heads, and the gradient of a shared key is summed without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headcount.attention.machinery import checks, masks


@dataclass(frozen=True)
class Layout:
    """The layout of one call's tensors; created by :func:`prepare`.

    ranges: (groups, key sets, 2, rows) int32, see :mod:`headcount.attention.machinery.masks`.
    order: (batch, tokens), the key order with padding last, or None without padding.
    """

    batch: int
    heads: int
    kv_heads: int
    queries: int
    ranges: Tensor
    order: Tensor | None
    scale: float

    def rows(self, tensor: Tensor) -> Tensor:
        """Queries (batch, heads, queries, dim) -> (groups, rows, dim)."""
        return tensor.reshape(self.batch * self.kv_heads, -1, tensor.shape[-1])

    def keys(self, tensor: Tensor) -> Tensor:
        """Keys or values (batch, kv_heads, tokens, dim) -> (groups, tokens, dim), padding last."""
        if self.order is not None:
            index = self.order[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            tensor = tensor.gather(2, index)
        return tensor.reshape(self.batch * self.kv_heads, tensor.shape[2], tensor.shape[3])

    def unfold(self, out: Tensor) -> Tensor:
        """(groups, rows, dim) -> (batch, heads, queries, dim)."""
        return out.reshape(self.batch, self.heads, self.queries, out.shape[-1])


def prepare(
    operator: str,
    queries: Mapping[str, Tensor],
    keys: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    *,
    scale: float | None,
    causal: bool,
    window: int | Sequence[int] | None,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    check_finite: bool,
    sides: int | None = None,
) -> Layout:
    """Validate a call and compute its layout. ``sides``: number of key sets with separate windows (default: all)."""
    checks.check_common(
        operator,
        {**queries, **keys, **values},
        axes=("batch", "heads", "tokens", "dim"),
        dropout_p=dropout_p,
        check_finite=check_finite,
    )
    checks.check_streams(operator, queries, keys, values)
    sides = len(keys) if sides is None else sides
    windows = checks.check_window(operator, window, sides)
    query, key = next(iter(queries.values())), next(iter(keys.values()))
    batch, heads, n_queries, dim = query.shape
    kv_heads, n_keys = key.shape[1], key.shape[2]
    masks.check_padding(operator, key_padding_mask, batch, n_keys)
    masks.check_order(operator, causal or windows is not None, n_queries, n_keys)
    positions = torch.arange(n_keys - n_queries, n_keys, device=query.device)
    ranges = masks.position_ranges(positions, n_keys, causal=causal, windows=windows, sides=sides)
    order = None
    if key_padding_mask is None:
        ranges = ranges.expand(batch, *ranges.shape)
    else:
        ranges, order = masks.padded_ranges(ranges, key_padding_mask)
    shared = heads // kv_heads
    ranges = ranges[:, None, :, :, None, :].expand(batch, kv_heads, sides, 2, shared, n_queries)
    return Layout(
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        queries=n_queries,
        ranges=ranges.reshape(batch * kv_heads, sides, 2, shared * n_queries),
        order=order,
        scale=dim**-0.5 if scale is None else float(scale),
    )
