"""Ranges are masks: what they allow is what the boolean definition allows."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.attention.machinery import masks


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 9),
    missing=st.integers(0, 8),
    causal=st.booleans(),
    windows=st.one_of(st.none(), st.tuples(st.integers(1, 12), st.integers(1, 12))),
    seed=st.integers(0, 1000),
)
def test_padded_ranges_allow_the_same_keys(tokens, missing, causal, windows, seed) -> None:
    queries = max(1, tokens - missing)
    padding = torch.rand(3, tokens, generator=torch.Generator().manual_seed(seed)) < 0.4
    positions = torch.arange(tokens - queries, tokens)
    ranges = masks.position_ranges(positions, tokens, causal=causal, windows=windows, sides=2)
    moved, order = masks.padded_ranges(ranges, padding)
    assert moved.dtype == torch.int32
    for side in range(2):
        distance = positions[:, None] - torch.arange(tokens)
        wanted = torch.ones_like(distance, dtype=torch.bool)
        if causal or windows is not None:
            wanted &= distance >= 0
        if windows is not None:
            wanted &= distance < windows[side]
        assert torch.equal(masks.allowed(ranges[side], tokens), wanted)
        sorted_mask = masks.allowed(moved[:, side], tokens)
        back = torch.zeros_like(sorted_mask).scatter(2, order[:, None].expand_as(sorted_mask), sorted_mask)
        assert torch.equal(back, wanted & ~padding[:, None])


def test_order_keeps_real_tokens_in_sequence() -> None:
    padding = torch.tensor([[True, False, True, False, False]])
    _, order = masks.padded_ranges(torch.zeros(1, 2, 5, dtype=torch.int32), padding)
    assert order.tolist() == [[1, 3, 4, 0, 2]]
