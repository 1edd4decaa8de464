"""Masks as ranges: after padding is moved to the end, every query attends to one contiguous range of keys.

With causal, windowed and padded attention, each query and key set has a *contiguous* range of allowed non-padding
keys. So padded keys are moved behind the others (a stable permutation for each batch entry) and every operator
receives integers ``[low, high)`` instead of a mask: no array of the size of the logits is stored, and work outside
the range is skipped, not masked.

Queries are the *last* positions of the sequence if there are fewer queries than keys, as in decoding with a
cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headcount.core.errors import HeadcountError


def check_padding(operator: str, padding: Tensor | None, batch: int, tokens: int) -> None:
    """Check that ``key_padding_mask`` is boolean, (batch, tokens); True marks padding tokens."""
    if padding is None:
        return
    if padding.dtype != torch.bool or tuple(padding.shape) != (batch, tokens):
        raise HeadcountError(
            f"{operator}: key_padding_mask is {padding.dtype}, {tuple(padding.shape)}",
            fix=f"pass a bool tensor of shape ({batch}, {tokens}), True where a token is padding",
        )


def check_order(operator: str, ordered: bool, queries: int, keys: int) -> None:
    """Check that every query has a position in the sequence, as causal and windowed attention require."""
    if ordered and queries > keys:
        raise HeadcountError(
            f"{operator}: {queries} queries have no place among {keys} keys",
            fix="with causal or window, queries are the last positions of the keys' sequence: pass at most as many",
        )


def position_ranges(
    positions: Tensor, n_keys: int, *, causal: bool, windows: Sequence[int] | None, sides: int
) -> Tensor:
    """Ranges before padding, (sides, 2, queries), int32: key set s may be used in [s, 0] <= key < [s, 1].

    A window of w at position p means p - w + 1 .. p, so a window implies causal.
    """
    ordered = causal or windows is not None
    high = positions + 1 if ordered else torch.full_like(positions, n_keys)
    rows = []
    for side in range(sides):
        low = torch.zeros_like(positions) if windows is None else (positions + 1 - windows[side]).clamp(min=0)
        rows.append(torch.stack([low, high]))
    return torch.stack(rows).to(torch.int32)


def padded_ranges(ranges: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges among the non-padding keys, (batch, sides, 2, queries), and the key order with those first.

    The number of real keys before position p is the exclusive running count, so a range [low, high) of
    positions becomes [count(low), count(high)).
    """
    real = ~padding
    counts = torch.nn.functional.pad(real.cumsum(-1), (1, 0))
    moved = counts[:, ranges.long().flatten()].reshape(padding.shape[0], *ranges.shape).to(torch.int32)
    order = torch.argsort(padding.to(torch.int8), dim=-1, stable=True)
    return moved, order


def allowed(ranges: Tensor, n_keys: int) -> Tensor:
    """Ranges (..., 2, queries) as a boolean mask (..., queries, keys), for the explicit sums."""
    place = torch.arange(n_keys, device=ranges.device)
    return (place >= ranges[..., 0, :, None]) & (place < ranges[..., 1, :, None])
