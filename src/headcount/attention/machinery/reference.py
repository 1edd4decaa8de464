"""Reference implementations: every operator by its definition, in float64, with explicit sums; slow but simple.

The tests compare every other implementation with these. All return float64 and are differentiable. They
materialise all logits and reject more than 2**26 of them. ``positions`` gives the position of each query in the
sequence; by default queries are the last positions. Masks: ``causal`` allows positions up to the query's,
``window`` w the last w of those, ``key_padding_mask`` (batch, tokens) excludes the tokens where it is True.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headcount.attention.machinery.checks import check_limit
from headcount.attention.machinery.explicit import TUPLE, weighted_sum

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Int

LIMIT = 2**26


def _heads(tensor: Tensor, heads: int) -> Tensor:
    """float64, each KV head repeated for the query heads that share it."""
    return tensor.double().repeat_interleave(heads // tensor.shape[1], dim=1)


def _allowed(
    queries: int,
    keys: int,
    causal: bool,
    window: int | None,
    padding: Tensor | None,
    positions: Tensor | None,
    device: torch.device,
) -> Tensor:
    """(batch or 1, queries, keys): whether query i may use key j."""
    place = torch.arange(keys - queries, keys, device=device) if positions is None else positions
    distance = place[:, None] - torch.arange(keys, device=device)[None, :]
    mask = torch.ones_like(distance, dtype=torch.bool)
    if causal or window is not None:
        mask &= distance >= 0
    if window is not None:
        mask &= distance < window
    if padding is None:
        return mask[None]
    return mask[None] & ~padding[:, None, :]


def _check(name: str, shape: tuple[int, ...]) -> None:
    count = 1
    for size in shape:
        count *= size
    check_limit(
        f"reference.{name}",
        count,
        LIMIT,
        f"(batch, heads, queries, tuples..) = {shape}",
        "pass fewer queries, with their positions, or use the operator itself",
    )


def pairwise(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads tokens dim"],
    v: Float[Tensor, "batch kv_heads tokens v_dim"],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    positions: Int[Tensor, " queries"] | None = None,
) -> Float64[Tensor, "batch heads queries v_dim"]:
    """``out_i = sum_j softmax_j(scale <q_i, k_j>) v_j``."""
    return order_s(
        q,
        [k],
        [v],
        scale=scale,
        causal=causal,
        window=None if window is None else (window,),
        key_padding_mask=key_padding_mask,
        positions=positions,
    )


def third_order(
    q: Float[Tensor, "batch heads queries dim"],
    k1: Float[Tensor, "batch kv_heads tokens dim"],
    k2: Float[Tensor, "batch kv_heads tokens dim"],
    v1: Float[Tensor, "batch kv_heads tokens v_dim"],
    v2: Float[Tensor, "batch kv_heads tokens v_dim"],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    positions: Int[Tensor, " queries"] | None = None,
) -> Float64[Tensor, "batch heads queries v_dim"]:
    """``out_i = sum_jl softmax_jl(scale sum_c q_ic k1_jc k2_lc) v1_j * v2_l``."""
    return order_s(
        q,
        [k1, k2],
        [v1, v2],
        scale=scale,
        causal=causal,
        window=window,
        key_padding_mask=key_padding_mask,
        positions=positions,
    )


def order_s(
    q: Float[Tensor, "batch heads queries dim"],
    ks: Sequence[Float[Tensor, "batch kv_heads tokens dim"]],
    vs: Sequence[Float[Tensor, "batch kv_heads tokens v_dim"]],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    positions: Int[Tensor, " queries"] | None = None,
) -> Float64[Tensor, "batch heads queries v_dim"]:
    """``out_i = sum_T softmax_T(scale sum_c q_ic prod_s ks[s][T_s, c]) prod_s vs[s][T_s]``, T over tuples."""
    batch, heads, queries, dim = q.shape
    tokens = ks[0].shape[2]
    _check("order_s", (batch, heads, queries, *(tokens for _ in ks)))
    axes = TUPLE[: len(ks)]
    factors = ",".join(f"bh{axis}c" for axis in axes)
    logits = torch.einsum(f"bhic,{factors}->bhi{axes}", q.double(), *(_heads(k, heads) for k in ks))
    logits = logits * (dim**-0.5 if scale is None else scale)
    windows = [None] * len(ks) if window is None else list(window)
    allowed = [_allowed(queries, tokens, causal, w, key_padding_mask, positions, q.device) for w in windows]
    return weighted_sum(logits, allowed, [_heads(v, heads) for v in vs])[0]


def strassen(
    q1: Float[Tensor, "batch heads queries dim"],
    q2: Float[Tensor, "batch heads queries dim"],
    k1: Float[Tensor, "batch kv_heads tokens dim"],
    k2: Float[Tensor, "batch kv_heads tokens dim"],
    v1: Float[Tensor, "batch kv_heads tokens v_dim"],
    v2: Float[Tensor, "batch kv_heads tokens v_dim"],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    positions: Int[Tensor, " queries"] | None = None,
) -> Float64[Tensor, "batch heads queries v_dim"]:
    """``out_i = sum_jl softmax_jl(scale (<q1_i,k1_j> + <k1_j,k2_l> + <k2_l,q2_i>)) v1_j * v2_l``."""
    batch, heads, queries, dim = q1.shape
    tokens = k1.shape[2]
    _check("strassen", (batch, heads, queries, tokens, tokens))
    key1, key2 = _heads(k1, heads), _heads(k2, heads)
    first = torch.einsum("bhic,bhjc->bhij", q1.double(), key1)
    between = torch.einsum("bhjc,bhkc->bhjk", key1, key2)
    second = torch.einsum("bhic,bhkc->bhik", q2.double(), key2)
    logits = first[..., :, None] + between[..., None, :, :] + second[..., None, :]
    logits = logits * (dim**-0.5 if scale is None else scale)
    windows = (None, None) if window is None else window
    allowed = [_allowed(queries, tokens, causal, w, key_padding_mask, positions, q1.device) for w in windows]
    return weighted_sum(logits, allowed, [_heads(v1, heads), _heads(v2, heads)])[0]


def triangular(
    q: Float[Tensor, "batch heads tokens tokens dim"],
    k: Float[Tensor, "batch kv_heads tokens tokens dim"],
    v1: Float[Tensor, "batch kv_heads tokens tokens v_dim"],
    v2: Float[Tensor, "batch kv_heads tokens tokens v_dim"],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float64[Tensor, "batch heads tokens tokens v_dim"]:
    """``out_ij = sum_l softmax_l(scale <q_il, k_lj>) v1_il * v2_lj``; the position of a pair is max(i, j)."""
    batch, heads, tokens, _, dim = q.shape
    _check("triangular", (batch, heads, tokens, tokens, tokens))
    logits = torch.einsum("bhilc,bhljc->bhijl", q.double(), _heads(k, heads))
    logits = logits * (dim**-0.5 if scale is None else scale)
    place = torch.arange(tokens, device=q.device)
    pair_place = torch.maximum(place[:, None], place[None, :]).flatten()
    allowed = _allowed(tokens**2, tokens, causal, window, key_padding_mask, pair_place, q.device)
    # Pairs act as queries, but their values depend on the pair, so `weighted_sum` does not apply.
    weights = _weights(logits.flatten(2, 3), allowed).unflatten(2, (tokens, tokens))
    return torch.einsum("bhijl,bhilc,bhljc->bhijc", weights, _heads(v1, heads), _heads(v2, heads))


def tree(
    q: Float[Tensor, "batch heads queries dim"],
    ks: Sequence[Float[Tensor, "batch kv_heads tokens dim"]],
    vs: Sequence[Float[Tensor, "batch kv_heads tokens v_dim"]],
    parents: Sequence[int],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    positions: Int[Tensor, " queries"] | None = None,
) -> Float64[Tensor, "batch heads queries v_dim"]:
    """``out_i = sum_T softmax_T(scale sum_s <k_p(s)[T_p(s)], k_s[T_s]>) prod_s v_s[T_s]``, k_0 = q, T_0 = i.

    Node s = 1, 2, .. is a child of node ``parents[s - 1]`` < s; node 0 is the query. Causal and window apply along
    the edges: a node's token is no later than its parent's, and among the last w up to it.
    """
    batch, heads, queries, dim = q.shape
    tokens = ks[0].shape[2]
    nodes = len(ks)
    _check("tree", (batch, heads, queries, *(tokens for _ in ks)))
    scale = dim**-0.5 if scale is None else scale
    windows = [None] * nodes if window is None else list(window)
    shape = (queries, *(tokens for _ in ks))
    logits = torch.zeros(batch, heads, *shape, dtype=torch.float64, device=q.device)
    inside = torch.ones(batch, 1, *shape, dtype=torch.bool, device=q.device)
    for node, (parent, key, length) in enumerate(zip(parents, ks, windows, strict=True), start=1):
        above = q.double() if parent == 0 else _heads(ks[parent - 1], heads)
        edge = torch.einsum("bhpc,bhjc->bhpj", above, _heads(key, heads)) * scale
        place = positions if parent == 0 else torch.arange(tokens, device=q.device)
        mask = _allowed(above.shape[2], tokens, causal, length, key_padding_mask, place, q.device)
        axes = tuple(size if axis in (parent, node) else 1 for axis, size in enumerate(shape))
        logits = logits + edge.reshape(batch, heads, *axes)
        inside = inside & mask[:, None].reshape(-1, 1, *axes)
    weights = _weights(logits.flatten(3), inside.flatten(3)[:, 0]).reshape(batch, heads, *shape)
    letters = TUPLE[:nodes]
    factors = ",".join(f"bh{axis}c" for axis in letters)
    return torch.einsum(f"bhi{letters},{factors}->bhic", weights, *(_heads(v, heads) for v in vs))


def _weights(logits: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the last axis where allowed (batch or 1, queries, keys); zeros if nothing is allowed."""
    mask = allowed[:, None].expand_as(logits)
    some = mask.any(-1, keepdim=True)
    return torch.where(mask, logits, torch.where(some, -torch.inf, 0.0)).softmax(-1) * some
