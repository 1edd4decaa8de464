"""Latent attention, which headcount puts in the place of a family's own. This file travels with the checkpoint.

It needs torch and transformers only. Each layer keeps, for a token, one joint latent for the keys of all its
heads (``k_rank`` numbers) and one for the values (``v_rank``):

    values      c = A_v W_v x in one product; heads mix c. The up-projection B_v is folded into ``o_proj`` where that
                needs fewer parameters (small ranks), else it is applied to each head's mixed latents, once a token
    fast keys   c = A_k rotate(W_k x); queries become B_k' q, so keys are never rebuilt
    small keys  c = A_k W_k x; keys are rebuilt as B_k c + b and rotated at every step

Letters in shapes: B batch, T new tokens, S cached and new tokens, H query heads, K key-value heads, d head dim.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .headcount_cache import prepare, record_positions

SCORE_NUMBERS = 2**22
"""Attention weights computed at once on a CPU (16 MiB in float32): bounds the memory of long prefills."""

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, each (B or 1, T, rotary dim)."""


class Rotations:
    """Cosines and sines for cached tokens, computed once a forward for all layers of a kind on a device."""

    def __init__(self, rotary: nn.Module) -> None:
        self.rotary = rotary
        self.positions: torch.Tensor | None = None
        self.known: dict[Any, Rotation] = {}

    def of(self, hidden: torch.Tensor, positions: torch.Tensor, kind: str | None) -> Rotation:
        """Rotations of the tokens at ``positions`` (B, S), on the device and in the dtype of ``hidden``."""
        if torch.compiler.is_compiling():  # the compiler sees that layers compute the same; nothing is kept
            return self._made(hidden, positions, kind)
        if self.positions is not positions:
            self.positions, self.known = positions, {}
        key = (kind, hidden.device, hidden.dtype)
        if key not in self.known:
            self.known[key] = self._made(hidden, positions, kind)
        return self.known[key]

    def _made(self, hidden: torch.Tensor, positions: torch.Tensor, kind: str | None) -> Rotation:
        cos, sin = self.rotary(hidden, positions.to(hidden.device), *(() if kind is None else (kind,)))
        return cos.to(hidden.device), sin.to(hidden.device)


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotary embedding of the leading dimensions of x (B, heads, T, d) by cos, sin (B or 1, T, rotary dim)."""
    cos, sin = rotation[0].unsqueeze(1), rotation[1].unsqueeze(1)
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-high, low), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    past: int | torch.Tensor = 0,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention of q (B, H, T, d) over k (B, K, S, d) and v (B, 1, S, e): (B, H, T, e).

    ``mask`` is as for torch's fused attention: boolean (true: seen) or added to the scores, (B or 1, H or 1, T, S).
    Without one a single query sees all of S; query i of several sees the first ``past + i + 1`` slots, where ``past``
    is the number of tokens that were cached before. (A static cache has more slots than tokens.)

    On a CPU by plain matrix products over chunks of queries: at decoding they are several times faster than
    torch's fused attention, which on a CPU also needs keys and values of one width.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return _fused(q, k, v, mask, scaling, past, dropout)
    batch, heads, new, _ = q.shape
    groups, slots = k.shape[1], k.shape[2]
    chunk = max(1, min(new, SCORE_NUMBERS // max(1, batch * heads * slots)))
    parts = []
    for start in range(0, new, chunk):
        stop = min(start + chunk, new)
        last = slots if mask is not None or new == 1 else min(slots, int(past) + stop)
        rows = (q[:, :, start:stop] * scaling).reshape(batch, groups, -1, q.shape[-1])
        scores = (rows @ k[:, :, :last].transpose(-1, -2)).view(batch, heads, stop - start, last)
        if mask is not None:
            scores = _masked(scores, mask[..., start:stop, :last])
        elif new > 1:
            future = torch.ones(stop - start, last, dtype=torch.bool, device=q.device).triu(int(past) + start + 1)
            scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        if dropout:
            weights = F.dropout(weights, dropout)
        mixed = weights.view(batch, 1, -1, last) @ v[:, :, :last]
        parts.append(mixed.view(batch, heads, stop - start, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def _causal(new: int, slots: int, past: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """(T, S): the slots that each query sees."""
    return torch.arange(slots, device=device)[None] <= torch.arange(new, device=device)[:, None] + past


def _fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    past: int | torch.Tensor,
    dropout: float,
) -> torch.Tensor:
    """``attend`` by torch's fused attention. Keys and values are never repeated for each head that shares them."""
    batch, heads, new, width = q.shape
    groups, slots = k.shape[1], k.shape[2]
    share = heads // groups
    if new == 1:  # the heads that share a key become its queries: nothing is expanded
        rows = q.reshape(batch, groups, share, width)
        if mask is not None and mask.shape[1] > 1:
            mask = mask.reshape(mask.shape[0], groups, share, slots)
        values = v.expand(-1, groups, -1, -1)
        mixed = F.scaled_dot_product_attention(rows, k, values, attn_mask=mask, dropout_p=dropout, scale=scaling)
        return mixed.reshape(batch, heads, 1, -1)
    causal = mask is None and new == slots
    if mask is None and not causal:
        mask = _causal(new, slots, past, q.device)
    parts = []
    for group in range(groups):  # expanded over the group's heads with stride 0
        own = slice(group * share, (group + 1) * share)
        part = mask[:, own] if mask is not None and mask.ndim == 4 and mask.shape[1] > 1 else mask
        parts.append(
            F.scaled_dot_product_attention(
                q[:, own],
                k[:, group : group + 1].expand(-1, share, -1, -1),
                v.expand(-1, share, -1, -1),
                attn_mask=part,
                dropout_p=dropout,
                scale=scaling,
                is_causal=causal,
            )
        )
    return parts[0] if groups == 1 else torch.cat(parts, 1)


def attend_with_weights(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    past: int | torch.Tensor = 0,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``attend`` and the attention weights (B, H, T, S), all at once: for ``eager`` and ``output_attentions``."""
    batch, heads, new, width = q.shape
    groups, slots = k.shape[1], k.shape[2]
    rows = (q * scaling).reshape(batch, groups, -1, width)
    scores = (rows @ k.transpose(-1, -2)).view(batch, heads, new, slots)
    if mask is None and new > 1:
        mask = _causal(new, slots, past, q.device)
    weights = (scores if mask is None else _masked(scores, mask)).softmax(-1, dtype=torch.float32).to(v.dtype)
    dropped = F.dropout(weights, dropout) if dropout else weights
    mixed = (dropped.view(batch, 1, -1, slots) @ v).view(batch, heads, new, -1)
    return mixed, weights


class HeadMap(nn.Module):
    """One matrix a key-value head, applied to the query heads that share it: (B, H, T, d) <-> (B, H, T, rank).

    Not an ``nn.Linear``, although its weight is stored like one's, (K d, rank): it is not one product with a token, so
    tools that replace, quantise or adapt linear layers must leave it alone, and do.
    """

    def __init__(self, n_kv_heads: int, head_dim: int, rank: int, *, up: bool) -> None:
        super().__init__()
        self.n_kv_heads, self.head_dim, self.rank, self.up = n_kv_heads, head_dim, rank, up
        self.weight = nn.Parameter(torch.empty(n_kv_heads * head_dim, rank))
        nn.init.normal_(self.weight, std=rank**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, H, T, d) to the latent's space; with ``up``, x (B, H, T, rank) to the head's."""
        weight = self.weight.view(self.n_kv_heads, self.head_dim, self.rank)
        if self.up:
            weight = weight.transpose(-1, -2)
        # Key-value heads first: one batched product, with no copy of the weights for each row of the batch.
        grouped = x.unflatten(1, (self.n_kv_heads, -1)).transpose(0, 1)
        made = torch.bmm(grouped.flatten(1, 3), weight).unflatten(1, grouped.shape[1:4])
        return made.transpose(0, 1).flatten(1, 2)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"n_kv_heads={self.n_kv_heads}, head_dim={self.head_dim}, rank={self.rank}, up={self.up}"


class LatentAttention(nn.Module):
    """The attention of one trimmed layer; takes the place of the family's own module."""

    def __init__(self, config: Any, layer_idx: int, dense: nn.Module, rotations: Rotations | None) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.scaling = float(dense.scaling)  # type: ignore[arg-type]
        self.is_causal = True
        for option in ("attn_logit_softcapping", "use_bidirectional_attention", "add_cross_attention"):
            if getattr(config, option, None):
                raise ValueError(f"{option} is not supported in trimmed models")
        self.n_heads = config.num_attention_heads
        self.n_kv_heads = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.n_heads
        self.k_rank = config.latent_layers[layer_idx]["k_rank"]
        self.v_rank = config.latent_layers[layer_idx]["v_rank"]
        dropout: Any = getattr(config, "attention_dropout", None) or getattr(config, "attn_pdrop", 0.0)
        self.attention_dropout = float(dropout)
        kinds = getattr(config, "layer_types", None)
        self.first_of_kind = 0 if kinds is None else kinds.index(kinds[layer_idx])
        self.rotary_kind = (
            getattr(dense, "layer_type", None) if config.model_type.startswith("headcount_gemma3") else None
        )
        # A plain attribute, not a submodule: the model owns its rotary embedding once.
        self.rotations = rotations
        self.q_norm, self.k_norm = getattr(dense, "q_norm", None), getattr(dense, "k_norm", None)
        self.resid_dropout = getattr(dense, "resid_dropout", None)
        # Without a rotation between them, keys are never rebuilt: both forms are one.
        self.rebuilds = config.latent_form == "small" and rotations is not None
        # What a registered attention function of transformers asks of a module: query heads that share a key.
        self.num_key_value_groups = self.n_heads // (self.n_kv_heads if self.rebuilds else 1)
        folded = self.k_norm is None and (self.rebuilds or rotations is None)
        hidden, k_width, bias = config.hidden_size, self.n_kv_heads * self.head_dim, config.latent_qkv_bias
        self.q_proj = nn.Linear(hidden, self.n_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, self.k_rank, bias=False) if folded else nn.Linear(hidden, k_width, bias=bias)
        self.k_down = None if folded else nn.Linear(k_width, self.k_rank, bias=False)
        self.k_up: nn.Module = (
            nn.Linear(self.k_rank, k_width, bias=True)
            if self.rebuilds
            else HeadMap(self.n_kv_heads, self.head_dim, self.k_rank, up=False)
        )
        self.v_proj = nn.Linear(hidden, self.v_rank, bias=False)
        spread = self.n_heads * self.v_rank * hidden <= k_width * self.v_rank + self.n_heads * self.head_dim * hidden
        self.v_up = None if spread else HeadMap(self.n_kv_heads, self.head_dim, self.v_rank, up=True)
        self.o_proj = nn.Linear(self.n_heads * (self.v_rank if spread else self.head_dim), hidden, bias=True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        layer_past: Any = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states (B, T, hidden) -> (output (B, T, hidden), weights (B, H, T, S) where they are asked for)."""
        if kwargs.get("cache") is not None:
            raise ValueError(
                "a model trimmed by headcount cannot use a paged cache (continuous batching); use generate()"
            )
        batch, new, _ = hidden_states.shape
        q = self._heads(self.q_proj(hidden_states), self.n_heads, self.q_norm)
        if position_embeddings is not None:
            q = rotate(q, position_embeddings)
        k = self._key_latents(hidden_states, position_embeddings).unsqueeze(1)
        v = self.v_proj(hidden_states).unsqueeze(1)
        cache = past_key_values if past_key_values is not None else layer_past
        past: int | torch.Tensor = 0
        rotation = position_embeddings
        if cache is not None:
            prepare(cache, self.layer_idx, self.k_rank, self.v_rank)
            past = cache.get_seq_length(self.layer_idx) + 0  # a static layer counts on in the tensor that it gives
            if self.rebuilds:
                positions = self._positions(hidden_states, position_ids, past)
                record_positions(cache, self.layer_idx, self.first_of_kind, positions)
            k, v = cache.update(k, v, self.layer_idx)
            if self.rebuilds:
                assert self.rotations is not None
                positions = cache.layers[self.first_of_kind].positions
                rotation = self.rotations.of(hidden_states, positions, self.rotary_kind)
        if self.rebuilds:
            assert rotation is not None
            k = rotate(self._heads(self.k_up(k.squeeze(1)), self.n_kv_heads, None), rotation)
        else:
            q = self.k_up(q)
        mixed, weights = self._attend(q, k, v, attention_mask, past, kwargs)
        if self.v_up is not None:
            mixed = self.v_up(mixed)
        out = self.o_proj(mixed.transpose(1, 2).reshape(batch, new, -1))
        return (out if self.resid_dropout is None else self.resid_dropout(out)), weights

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        past: int | torch.Tensor,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention by the implementation that the config names; ``sdpa`` is our own with the same meaning."""
        name = self.config._attn_implementation
        dropout = self.attention_dropout if self.training else 0.0
        if name == "eager" or (name == "sdpa" and options.get("output_attentions")):
            return attend_with_weights(q, k, v, mask, self.scaling, past, dropout)
        if name in ("sdpa", None):
            return attend(q, k, v, mask, self.scaling, past, dropout), None
        function: Any = ALL_ATTENTION_FUNCTIONS[name]
        v = v.expand(-1, k.shape[1], -1, -1)
        mixed, weights = function(self, q, k, v, mask, dropout=dropout, scaling=self.scaling, **options)
        return mixed.transpose(1, 2), weights

    def _heads(self, x: torch.Tensor, heads: int, norm: nn.Module | None) -> torch.Tensor:
        """(B, T, heads d) -> (B, heads, T, d), normalised per head where the family does so."""
        x = x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)
        return x if norm is None else norm(x)

    def _key_latents(self, hidden: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        """What is cached for keys: (B, T, k_rank)."""
        keys = self.k_proj(hidden)
        if self.k_down is None:
            return keys
        heads = self._heads(keys, self.n_kv_heads, self.k_norm)
        if not self.rebuilds and rotation is not None:
            heads = rotate(heads, rotation)
        return self.k_down(heads.transpose(1, 2).flatten(2))

    def _positions(self, hidden: torch.Tensor, given: torch.Tensor | None, past: int | torch.Tensor) -> torch.Tensor:
        """Positions (B, T) of the new tokens; without any given they follow the cached ones."""
        if given is None:
            given = torch.arange(hidden.shape[1], device=hidden.device)[None] + past
        return given.expand(hidden.shape[0], -1)


def install(base: Any, attention: str) -> None:
    """Put latent attention in the place of each layer's own; ``attention`` is its attribute's name."""
    rotary = getattr(base, "rotary_emb", None)
    rotations = None if rotary is None else Rotations(rotary)
    layers = base.h if hasattr(base, "h") else base.layers
    for index, layer in enumerate(layers):
        setattr(layer, attention, LatentAttention(base.config, index, getattr(layer, attention), rotations))
