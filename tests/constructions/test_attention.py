"""The attention unit against PyTorch's attention and against explicit sums."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from headcount.constructions import attention
from headcount.constructions.attention import AttentionUnit


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_order_two_is_ordinary_attention() -> None:
    """The same weights in scaled_dot_product_attention with scale 1: equal to float64 rounding."""
    unit = AttentionUnit(draw(3, 6, 4), draw(3, 1, 6, 4, seed=1), draw(3, 1, 6, 2, seed=2))
    x = draw(2, 9, 6, seed=3)
    heads = [
        F.scaled_dot_product_attention(x @ unit.w_q[h], x @ unit.w_k[h, 0], x @ unit.w_v[h, 0], scale=1.0)
        for h in range(3)
    ]
    assert unit.order == 2 and unit.heads == 3
    torch.testing.assert_close(unit(x, x), sum(heads), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [3, 4])
def test_higher_orders_equal_sums_over_tuples(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK", 40)  # several blocks of rows
    slots = order - 1
    unit = AttentionUnit(draw(1, 3, 2), draw(1, slots, 3, 2, seed=1), draw(1, slots, 3, 2, seed=2))
    queries, tokens = draw(1, 4, 3, seed=3), draw(1, 3, 3, seed=4)
    got = unit(queries, tokens)[0].detach()
    unit.requires_grad_(False)
    for i in range(4):
        q = queries[0, i] @ unit.w_q[0]
        weights, values = [], []
        for js in itertools.product(range(3), repeat=slots):
            keys = [tokens[0, j] @ unit.w_k[0, t] for t, j in enumerate(js)]
            vectors = [tokens[0, j] @ unit.w_v[0, t] for t, j in enumerate(js)]
            weights.append(math.exp(float((q * math.prod(keys)).sum())))
            values.append(math.prod(vectors))
        want = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        torch.testing.assert_close(got[i], want, rtol=1e-12, atol=1e-12)
