"""A self-attention layer for any of the operators, as a replacement for ``torch.nn.MultiheadAttention``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcount.attention.operators.order_s import MAX_ORDER, order_s
from headcount.attention.operators.pairwise import pairwise
from headcount.attention.operators.strassen import strassen
from headcount.attention.operators.third_order import third_order
from headcount.attention.operators.tree import tree
from headcount.attention.operators.triangular import triangular
from headcount.core.errors import HeadcountError

if TYPE_CHECKING:
    from jaxtyping import Float

KINDS = ("pairwise", "third_order", "order_s", "strassen", "triangular", "tree")


class SelfAttention(nn.Module):
    """Projections to the inputs of an operator, the operator, and a projection back to ``embed_dim``.

    It is called like ``nn.MultiheadAttention(batch_first=True)`` and returns ``(output, None)``, so it can replace
    the ``self_attn`` of ``nn.TransformerEncoderLayer``. Input (batch, tokens, embed_dim), for ``triangular``
    (batch, tokens, tokens, embed_dim).

    kind: one of pairwise, third_order, order_s (with ``order``), strassen, triangular, tree (with
    ``parents``).
    kv_heads: if fewer than ``num_heads``, query heads share keys and values. head_dim: dim of queries and keys,
    ``embed_dim / num_heads`` if None; v_dim: dim of values, ``head_dim`` if None. scale, causal, window: as for the
    operators.

    Raises HeadcountError for inconsistent sizes, and in ``forward`` for features that the operators do not
    support: cross attention, attention weights, and masks other than causal and padding.

    >>> import torch
    >>> layer = SelfAttention(8, num_heads=2, kind="third_order", causal=True)
    >>> output, _ = layer(torch.zeros(1, 5, 8))
    >>> output.shape
    torch.Size([1, 5, 8])
    """

    # nn.TransformerEncoderLayer reads these two before it decides not to use its fused path.
    batch_first = True
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kind: str = "third_order",
        *,
        order: int | None = None,
        parents: Sequence[int] | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        v_dim: int | None = None,
        scale: float | None = None,
        causal: bool = False,
        window: int | Sequence[int] | None = None,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise HeadcountError(f"SelfAttention: no operator is called {kind}", fix=f"use {', '.join(KINDS)}")
        if (order is not None) != (kind == "order_s") or (parents is not None) != (kind == "tree"):
            raise HeadcountError(
                f"SelfAttention: kind {kind} with order={order}, parents={parents}",
                fix="give order to order_s and parents to tree, and to nothing else",
            )
        if order is not None and not 2 <= order <= MAX_ORDER:
            raise HeadcountError(f"SelfAttention: order {order}", fix=f"use 2 to {MAX_ORDER}")
        kv_heads = num_heads if kv_heads is None else kv_heads
        if num_heads < 1 or kv_heads < 1 or num_heads % kv_heads:
            raise HeadcountError(
                f"SelfAttention: {num_heads} heads are not a multiple of {kv_heads} key-value heads",
                fix="make the number of heads a multiple",
            )
        if head_dim is None and embed_dim % num_heads:
            raise HeadcountError(
                f"SelfAttention: embed_dim {embed_dim} does not divide into {num_heads} heads",
                fix="give head_dim, or an embed_dim that divides",
            )
        self.embed_dim, self.num_heads, self.kv_heads, self.kind = embed_dim, num_heads, kv_heads, kind
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.v_dim = self.head_dim if v_dim is None else v_dim
        self.scale, self.causal, self.window = scale, causal, window
        self.order, self.parents = order, None if parents is None else tuple(parents)
        queries, keys, values = self._streams()
        made: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, queries * num_heads * self.head_dim, **made)
        self.k_proj = nn.Linear(embed_dim, keys * kv_heads * self.head_dim, **made)
        self.v_proj = nn.Linear(embed_dim, values * kv_heads * self.v_dim, **made)
        self.out_proj = nn.Linear(num_heads * self.v_dim, embed_dim, **made)

    def _streams(self) -> tuple[int, int, int]:
        """Numbers of query, key and value tensors of the operator."""
        if self.kind == "order_s":
            assert self.order is not None
            return 1, self.order - 1, self.order - 1
        if self.kind == "tree":
            assert self.parents is not None
            return 1, len(self.parents), len(self.parents)
        return {
            "pairwise": (1, 1, 1),
            "third_order": (1, 2, 2),
            "strassen": (2, 2, 2),
            "triangular": (1, 1, 2),
        }[self.kind]

    def forward(
        self,
        query: Float[Tensor, "batch *tokens embed_dim"],
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "batch *tokens embed_dim"], None]:
        """Apply attention; ``attn_mask`` requires ``is_causal=True``, as in nn.MultiheadAttention."""
        if any(other is not None and other is not query for other in (key, value)):
            raise HeadcountError("SelfAttention: key or value is not the query", fix="pass the same tensor for all")
        if need_weights:
            raise HeadcountError(
                "SelfAttention: attention weights are never formed", fix="call it with need_weights=False"
            )
        if attn_mask is not None and not is_causal:
            raise HeadcountError(
                f"SelfAttention: attn_mask {tuple(attn_mask.shape)} is not offered",
                fix="use causal, window and key_padding_mask",
            )
        queries, keys, values = self._streams()
        q = self._split(self.q_proj(query), queries, self.num_heads)
        k = self._split(self.k_proj(query), keys, self.kv_heads)
        v = self._split(self.v_proj(query), values, self.kv_heads)
        options: dict[str, Any] = {
            "scale": self.scale,
            "causal": self.causal or is_causal,
            "window": self.window,
            "key_padding_mask": _as_bool(key_padding_mask),
        }
        out = self._attend(q, k, v, options)
        return self.out_proj(out.movedim(1, -2).flatten(-2)), None

    def _attend(self, q: list[Tensor], k: list[Tensor], v: list[Tensor], options: dict[str, Any]) -> Tensor:
        operator: Any = {
            "pairwise": lambda: pairwise(q[0], k[0], v[0], **options),
            "third_order": lambda: third_order(q[0], k[0], k[1], v[0], v[1], **options),
            "order_s": lambda: order_s(q[0], k, v, **options),
            "strassen": lambda: strassen(q[0], q[1], k[0], k[1], v[0], v[1], **options),
            "triangular": lambda: triangular(q[0], k[0], v[0], v[1], **options),
            "tree": lambda: tree(q[0], k, v, self.parents or (), **options),
        }[self.kind]
        mixed: Tensor = operator()
        return mixed

    @staticmethod
    def _split(projected: Tensor, streams: int, heads: int) -> list[Tensor]:
        """(batch, tokens.., streams * heads * dim) -> one (batch, heads, tokens.., dim) per stream."""
        parts = projected.unflatten(-1, (streams, heads, -1)).movedim(-2, 1)
        return list(parts.unbind(-2))

    def extra_repr(self) -> str:
        """The text shown when the layer is printed."""
        shown = [f"{self.embed_dim}, num_heads={self.num_heads}, kind={self.kind}, kv_heads={self.kv_heads}"]
        shown += [f"head_dim={self.head_dim}, v_dim={self.v_dim}, causal={self.causal}, window={self.window}"]
        return ", ".join(shown)


def _as_bool(mask: Tensor | None) -> Tensor | None:
    """Undo the conversion of a boolean padding mask to 0 and -inf by nn.TransformerEncoderLayer."""
    if mask is None or mask.dtype == torch.bool:
        return mask
    if not torch.compiler.is_compiling() and bool(((mask != 0) & ~mask.isneginf()).any()):
        raise HeadcountError(
            "SelfAttention: key_padding_mask holds numbers other than 0 and -inf", fix="pass a boolean mask"
        )
    return mask.isneginf()
