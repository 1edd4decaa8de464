"""Attention over short contexts against float64 softmax attention by autograd, with every mask it takes."""

from __future__ import annotations

import pytest
import torch

from headcount.pretrained.running import short_attention as short_attention_module
from headcount.pretrained.running.short_attention import LONGEST, is_short, short_attention


def band(batch: int, tokens: int, width: int) -> torch.Tensor:
    """A sliding window of its own width for every row of the batch."""
    i = torch.arange(tokens)
    return torch.stack([(i[:, None] >= i) & (i[:, None] - i < width + b) for b in range(batch)])[:, None]


@pytest.mark.parametrize(
    ("mask", "causal"),
    [(None, True), (None, False), (band(2, 17, 5), False), (band(1, 17, 3), False)],
    ids=["causal", "full", "window by row", "one window"],
)
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("block", [128, 8], ids=["one block", "three blocks"])
def test_values_and_gradients(
    mask: torch.Tensor | None, causal: bool, n_kv_heads: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within bfloat16: inputs are rounded to it beforehand, so 2^-8 of the size is the error of p and of ds."""
    monkeypatch.setattr(short_attention_module, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int, dim: int) -> torch.Tensor:
        return torch.randn(2, heads, 17, dim, generator=generator).bfloat16()

    q, k, v, u = draw(4, 8), draw(n_kv_heads, 8), draw(n_kv_heads, 6), draw(4, 6)
    given = [part.clone().requires_grad_() for part in (q, k, v)]
    found = short_attention(*given, mask, causal, 0.3)
    exact = [part.double().requires_grad_() for part in (q, k, v)]
    groups = 4 // n_kv_heads
    logits = 0.3 * exact[0] @ exact[1].repeat_interleave(groups, 1).transpose(-1, -2)
    visible = torch.ones(17, 17, dtype=torch.bool).tril() if causal else mask
    if visible is not None:
        logits = logits.masked_fill(~visible, -torch.inf)
    wanted = logits.softmax(-1) @ exact[2].repeat_interleave(groups, 1)
    pairs = [(found, wanted)]
    pairs += zip(torch.autograd.grad(found, given, u), torch.autograd.grad(wanted, exact, u.double()), strict=True)
    for own, true in pairs:
        assert own.dtype == torch.bfloat16 and own.shape == true.shape
        assert (own.double() - true).norm() <= 2**-7 * true.norm()


def test_when_it_is_chosen() -> None:
    q = torch.zeros(1, 1, 4, 2, dtype=torch.bfloat16, requires_grad=True)
    assert is_short(q, q, None) and is_short(q, q, band(1, 4, 2))
    assert not is_short(q.float().detach(), q.float().detach(), None)
    assert not is_short(q, q, band(1, 4, 2).float()), "an additive mask"
    assert not is_short(q, q, torch.zeros(1, 1, 4, 4, dtype=torch.bool)), "a row that sees nothing"
    assert not is_short(q, q[:, :, :3], None), "a cache"
    long = torch.zeros(1, 1, LONGEST + 1, 2, dtype=torch.bfloat16, requires_grad=True)
    assert not is_short(long, long, None)
    single = torch.zeros(1, 1, 4, 2, requires_grad=True)
    assert not is_short(single, single, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert is_short(single, single, None)
