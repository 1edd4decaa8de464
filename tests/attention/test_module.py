"""The layer: the same numbers as PyTorch's own where it has them, and errors for what it does not offer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headcount.attention import SelfAttention
from headcount.attention.machinery import reference
from headcount.core.errors import HeadcountError


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def twins(**options: object) -> tuple[SelfAttention, nn.MultiheadAttention]:
    """Our pairwise layer and PyTorch's, with the same weights."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    ours = SelfAttention(12, 3, "pairwise", bias=True, dtype=torch.float64, **options)
    with torch.no_grad():
        nn.init.normal_(theirs.in_proj_bias)
        for index, layer in enumerate((ours.q_proj, ours.k_proj, ours.v_proj)):
            layer.weight.copy_(theirs.in_proj_weight[12 * index : 12 * index + 12])
            layer.bias.copy_(theirs.in_proj_bias[12 * index : 12 * index + 12])
        ours.out_proj.load_state_dict(theirs.out_proj.state_dict())
    return ours, theirs


def test_pairwise_is_multihead_attention() -> None:
    ours, theirs = twins()
    x = tokens(2, 5, 12)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    for options in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": mask, "is_causal": True},
    ):
        torch.testing.assert_close(
            ours(x, x, x, need_weights=False, **options)[0], theirs(x, x, x, need_weights=False, **options)[0]
        )


@pytest.mark.parametrize("training", [True, False])
def test_takes_the_place_of_self_attn(training: bool) -> None:
    ours, theirs = twins()
    block = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    block.self_attn = theirs
    block.train(training)
    x, padding = tokens(2, 5, 12), torch.tensor([[False] * 5, [False, False, False, True, True]])
    wanted = block(x, src_key_padding_mask=padding)
    block.self_attn = ours
    found = block(x, src_key_padding_mask=padding)
    # PyTorch's fused evaluation path writes zeros at padded queries; compare the others.
    torch.testing.assert_close(found[~padding], wanted[~padding])


def test_third_order_streams_are_the_projections() -> None:
    layer = SelfAttention(8, 4, "third_order", kv_heads=2, head_dim=3, v_dim=5, window=(3, 2), dtype=torch.float64)
    x = tokens(2, 6, 8)
    q = layer.q_proj(x).view(2, 6, 4, 3).transpose(1, 2)
    k = layer.k_proj(x).view(2, 6, 2, 2, 3).permute(2, 0, 3, 1, 4)
    v = layer.v_proj(x).view(2, 6, 2, 2, 5).permute(2, 0, 3, 1, 4)
    wanted = layer.out_proj(reference.third_order(q, *k, *v, window=(3, 2)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x)[0], wanted)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("pairwise", {}),
        ("third_order", {"causal": True}),
        ("order_s", {"order": 4}),
        ("strassen", {"window": (2, 3)}),
        ("tree", {"parents": (0, 1, 0)}),
        ("triangular", {"causal": True}),
    ],
)
def test_every_kind_learns(kind: str, options: dict) -> None:
    """A few gradient steps lower a loss, through every projection."""
    torch.manual_seed(1)
    layer = SelfAttention(8, 2, kind, kv_heads=1, dtype=torch.float64, **options)
    x = tokens(2, 4, 4, 8) if kind == "triangular" else tokens(2, 4, 8)
    target = tokens(*x.shape, seed=1)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.2)
    losses = []
    for _ in range(8):
        loss = (layer(x)[0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(bool(parameter.grad.any()) for parameter in layer.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)


def test_causal_outputs_do_not_see_later_tokens() -> None:
    x = tokens(1, 6, 8)
    changed = x.clone()
    changed[:, 4:] += 1.0
    for kind, options in (
        ("third_order", {}),
        ("strassen", {}),
        ("tree", {"parents": (0, 1)}),
        ("pairwise", {}),
    ):
        layer = SelfAttention(8, 2, kind, causal=True, dtype=torch.float64, **options)
        torch.testing.assert_close(layer(changed)[0][:, :4], layer(x)[0][:, :4], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8, 2, "quadratic"), {}), "no operator is called quadratic"),
        (((8, 2, "order_s"), {}), "give order to order_s"),
        (((8, 2, "pairwise"), {"parents": (0,)}), "give order to order_s and parents to tree"),
        (((8, 2, "order_s"), {"order": 6}), "order 6; use 2 to 5"),
        (((8, 4), {"kv_heads": 3}), "4 heads are not a multiple of 3 key-value heads"),
        (((9, 2), {}), "embed_dim 9 does not divide into 2 heads"),
    ],
)
def test_sizes_that_do_not_fit(arguments: tuple, message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        SelfAttention(*arguments[0], **arguments[1])


def test_calls_that_are_not_offered() -> None:
    layer, x = SelfAttention(8, 2), torch.zeros(1, 3, 8)
    for options, message in (
        ({"key": x.clone()}, "key or value is not the query"),
        ({"need_weights": True}, "attention weights are never formed"),
        ({"attn_mask": torch.zeros(3, 3)}, r"attn_mask \(3, 3\) is not offered"),
        ({"key_padding_mask": torch.full((1, 3), 0.5)}, "numbers other than 0 and -inf"),
    ):
        with pytest.raises(HeadcountError, match=message):
            layer(x, **options)


def test_repr_names_what_it_is() -> None:
    assert "num_heads=2, kind=third_order, kv_heads=2" in repr(SelfAttention(8, 2))
