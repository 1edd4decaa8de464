"""Latent attention: what runs a model that headcount trimmed. This file travels with the checkpoint.

It needs torch and transformers only. Each layer keeps, for a token, one joint latent for the keys of all its
heads (``k_rank`` numbers) and one for the values (``v_rank``):

    values      c = A_v W_v x in one product; heads mix c. The way back, B_v, is folded into ``o_proj`` where that does
                not make it larger (small ranks), else it is applied to the mixed latents of each head, once a token
    fast keys   c = A_k rotate(W_k x); queries become B_k' q, so keys are never rebuilt
    small keys  c = A_k W_k x; keys are rebuilt as B_k c + b and rotated at every step

Letters in shapes: B batch, T new tokens, S cached and new tokens, H query heads, K key-value heads, d head dim.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import Cache, DynamicLayer

SCORE_NUMBERS = 2**22
"""Attention weights computed at once on a CPU (16 MiB in float32): bounds the memory of long prefills."""


class GrowingLayer(DynamicLayer):
    """A cache layer that grows by doubling.

    The stock layer copies all that is cached at every step; this one writes the new tokens behind the old ones,
    in a buffer that is moved only when it is full.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, 1, T, rank) latents and return all of them."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self._buffers:
            self._buffers = [key_states.new_empty(0), value_states.new_empty(0)]
        seen = self.get_seq_length()
        self.keys = self._append(0, self.keys, key_states, seen)
        self.values = self._append(1, self.values, value_states, seen)
        return self.keys, self.values

    def _append(self, which: int, held: Any, new: torch.Tensor, seen: int) -> torch.Tensor:
        buffer = self._buffers[which]
        total = seen + new.shape[-2]
        # What is held may have been cropped (then it is still a view of the buffer) or reordered (then it is not).
        ours = seen == 0 or held.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
        fits = buffer.ndim == 4 and buffer.shape[-2] >= total and buffer.shape[0] == new.shape[0]
        if not (ours and fits):
            larger = new.new_empty(*new.shape[:-2], max(total + 64, total + total // 2), new.shape[-1])
            if seen:
                larger[..., :seen, :] = held
            self._buffers[which] = buffer = larger
        buffer[..., seen:total, :] = new
        return buffer[..., :total, :]

    def reset(self) -> None:
        """Forget everything."""
        self._buffers = []
        super().reset()


class Rotations:
    """Cosines and sines for cached tokens, computed once a forward for all layers of a kind."""

    def __init__(self, rotary: nn.Module) -> None:
        self.rotary = rotary
        self.positions: torch.Tensor | None = None
        self.known: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def extended(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        current: tuple[torch.Tensor, torch.Tensor],
        past: int,
        kind: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``current`` (rotations of T new tokens at ``positions`` (B or 1, T)) behind those of ``past`` cached ones.

        A cached token's position is not stored: tokens of a row are consecutive, so it is counted back from the
        row's first new one. (Left padding gets positions that no query sees.)
        """
        if past == 0:
            return current
        if self.positions is not positions:
            self.positions, self.known = positions, {}
        key = (past, kind, current[0].dtype)
        if key not in self.known:
            back = torch.arange(past, 0, -1, device=positions.device)
            earlier = (positions[:, :1] - back).clamp_min(0)
            kinds = () if kind is None else (kind,)
            cos, sin = self.rotary(hidden, earlier, *kinds)
            self.known[key] = (torch.cat((cos, current[0]), 1), torch.cat((sin, current[1]), 1))
        return self.known[key]


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of the leading dimensions of x (B, heads, T, d) by cos, sin (B or 1, T, rotary dim)."""
    cos, sin = rotation[0].unsqueeze(1), rotation[1].unsqueeze(1)
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-high, low), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attention of q (B, H, T, d) over k (B, K, S, d) and v (B, 1, S, e), causal when there is no mask: (B, H, T, e).

    On a CPU by plain matrix products over chunks of queries: at decoding they are several times faster than
    torch's fused attention, which on a CPU also needs keys and values of one width.
    """
    batch, heads, new, _ = q.shape
    groups, seen = k.shape[1], k.shape[2]
    if q.device.type != "cpu":
        k, v = k.repeat_interleave(heads // groups, 1), v.expand(-1, heads, -1, -1)
        if mask is None and new > 1:
            visible = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)
            mask = visible if seen != new else None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scaling, is_causal=mask is None and new > 1
        )
    chunk = max(1, min(new, SCORE_NUMBERS // max(1, batch * heads * seen)))
    parts = []
    for start in range(0, new, chunk):
        stop = min(start + chunk, new)
        last = seen if mask is not None or new == 1 else seen - new + stop
        rows = (q[:, :, start:stop] * scaling).reshape(batch, groups, -1, q.shape[-1])
        scores = (rows @ k[:, :, :last].transpose(-1, -2)).view(batch, heads, stop - start, last)
        if mask is not None:
            part = mask[..., start:stop, :last]
            scores = (
                scores.masked_fill(~part, torch.finfo(scores.dtype).min) if part.dtype == torch.bool else scores + part
            )
        elif stop - start > 1 or last != seen - new + stop:
            future = torch.ones(stop - start, last, dtype=torch.bool).triu(seen - new + start + 1)
            scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        mixed = weights.view(batch, 1, -1, last) @ v[:, :, :last]
        parts.append(mixed.view(batch, heads, stop - start, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


class LatentAttention(nn.Module):
    """The attention of one trimmed layer; takes the place of the family's own module.

    Attention dropout is not supported; training goes through the same code.
    """

    def __init__(self, config: Any, layer_idx: int, dense: nn.Module, rotations: Rotations | None) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.scaling = float(dense.scaling)  # type: ignore[arg-type]
        self.is_causal = True
        self.n_heads = config.num_attention_heads
        self.n_kv_heads = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.n_heads
        self.k_rank = config.latent_layers[layer_idx]["k_rank"]
        self.v_rank = config.latent_layers[layer_idx]["v_rank"]
        self.layer_kind = (
            getattr(dense, "layer_type", None) if config.model_type.startswith("headcount_gemma3") else None
        )
        # A plain attribute, not a submodule: the model owns its rotary embedding once.
        self.rotations = rotations
        self.q_norm, self.k_norm = getattr(dense, "q_norm", None), getattr(dense, "k_norm", None)
        self.resid_dropout = getattr(dense, "resid_dropout", None)
        # Without a rotation between them, keys are never rebuilt: both forms are one.
        self.rebuilds = config.latent_form == "small" and rotations is not None
        folded = self.k_norm is None and (self.rebuilds or rotations is None)
        hidden, k_width, bias = config.hidden_size, self.n_kv_heads * self.head_dim, config.latent_qkv_bias
        self.q_proj = nn.Linear(hidden, self.n_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, self.k_rank, bias=False) if folded else nn.Linear(hidden, k_width, bias=bias)
        self.k_down = None if folded else nn.Linear(k_width, self.k_rank, bias=False)
        self.k_up = nn.Linear(self.k_rank, k_width, bias=self.rebuilds)
        self.v_proj = nn.Linear(hidden, self.v_rank, bias=False)
        spread = self.n_heads * self.v_rank * hidden <= k_width * self.v_rank + self.n_heads * self.head_dim * hidden
        self.v_up = None if spread else nn.Linear(self.v_rank, k_width, bias=False)
        self.o_proj = nn.Linear(self.n_heads * (self.v_rank if spread else self.head_dim), hidden, bias=True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        layer_past: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """hidden_states (B, T, hidden) -> (output (B, T, hidden), None)."""
        batch, new, _ = hidden_states.shape
        q = self._heads(self.q_proj(hidden_states), self.n_heads, self.q_norm)
        if position_embeddings is not None:
            q = rotate(q, position_embeddings)
        k = self._key_latents(hidden_states, position_embeddings).unsqueeze(1)
        v = self.v_proj(hidden_states).unsqueeze(1)
        cache = past_key_values if past_key_values is not None else layer_past
        if cache is not None:
            k, v = self._cached(cache).update(k, v, self.layer_idx)
        if self.rebuilds:
            k = self._rebuilt(k, hidden_states, position_embeddings, position_ids)
        else:
            up = self.k_up.weight.view(self.n_kv_heads, self.head_dim, self.k_rank)
            q = q.reshape(batch, self.n_kv_heads, -1, self.head_dim) @ up
            q = q.view(batch, self.n_heads, new, self.k_rank)
        mixed = attend(q, k, v, attention_mask, self.scaling)
        if self.v_up is not None:
            up = self.v_up.weight.view(self.n_kv_heads, self.head_dim, self.v_rank)
            mixed = mixed.reshape(batch, self.n_kv_heads, -1, self.v_rank) @ up.transpose(-1, -2)
            mixed = mixed.view(batch, self.n_heads, new, self.head_dim)
        out = self.o_proj(mixed.transpose(1, 2).reshape(batch, new, -1))
        return (out if self.resid_dropout is None else self.resid_dropout(out)), None

    def _heads(self, x: torch.Tensor, heads: int, norm: nn.Module | None) -> torch.Tensor:
        """(B, T, heads d) -> (B, heads, T, d), normalised per head where the family does so."""
        x = x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)
        return x if norm is None else norm(x)

    def _key_latents(self, hidden: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """What is cached for keys: (B, T, k_rank)."""
        keys = self.k_proj(hidden)
        if self.k_down is None:
            return keys
        heads = self._heads(keys, self.n_kv_heads, self.k_norm)
        if not self.rebuilds and rotation is not None:
            heads = rotate(heads, rotation)
        return self.k_down(heads.transpose(1, 2).flatten(2))

    def _rebuilt(
        self,
        latents: torch.Tensor,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        """Keys of all tokens from their latents (B, 1, S, k_rank), rotated: (B, K, S, d)."""
        assert rotation is not None and self.rotations is not None
        past = latents.shape[2] - hidden.shape[1]
        if positions is None:
            positions = torch.arange(past, latents.shape[2], device=hidden.device)[None]
        rotation = self.rotations.extended(hidden, positions, rotation, past, self.layer_kind)
        keys = self.k_up(latents.squeeze(1))
        return rotate(self._heads(keys, self.n_kv_heads, None), rotation)

    def _cached(self, cache: Cache) -> Cache:
        """Let a layer that would copy everything at every step grow in place instead, before it holds anything."""
        layers = getattr(cache, "layers", [])
        if self.layer_idx < len(layers) and not getattr(cache, "offloading", False):
            own = layers[self.layer_idx]
            if type(own) is DynamicLayer and not own.is_initialized:
                layers[self.layer_idx] = GrowingLayer()
        return cache


def install(model: Any, attention: str) -> None:
    """Put latent attention in the place of each layer's own; ``attention`` is its attribute's name."""
    base = getattr(model, model.base_model_prefix)
    rotary = getattr(base, "rotary_emb", None)
    rotations = None if rotary is None else Rotations(rotary)
    layers = base.h if hasattr(base, "h") else base.layers
    for index, layer in enumerate(layers):
        setattr(layer, attention, LatentAttention(model.config, index, getattr(layer, attention), rotations))


class _LatentModel:
    """Mixin before a family's causal language model: builds it, then replaces its attention."""

    _attention = "self_attn"
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        install(self, self._attention)


class _LatentConfig:
    """Mixin before a family's config. Fields: ``latent_form``, ``latent_layers`` (k_rank, v_rank), ``latent_qkv_bias``.

    ``qk_head_dim`` tells transformers that keys and values differ in width.
    """

    base_model_tp_plan: Any = None
    base_model_pp_plan: Any = None


class HeadcountLlamaConfig(_LatentConfig, LlamaConfig):
    """Llama."""

    model_type = "headcount_llama"


class HeadcountLlamaForCausalLM(_LatentModel, LlamaForCausalLM):
    """Llama."""

    config_class = HeadcountLlamaConfig


class HeadcountMistralConfig(_LatentConfig, MistralConfig):
    """Mistral."""

    model_type = "headcount_mistral"


class HeadcountMistralForCausalLM(_LatentModel, MistralForCausalLM):
    """Mistral."""

    config_class = HeadcountMistralConfig


class HeadcountQwen2Config(_LatentConfig, Qwen2Config):
    """Qwen2."""

    model_type = "headcount_qwen2"


class HeadcountQwen2ForCausalLM(_LatentModel, Qwen2ForCausalLM):
    """Qwen2."""

    config_class = HeadcountQwen2Config


class HeadcountQwen3Config(_LatentConfig, Qwen3Config):
    """Qwen3."""

    model_type = "headcount_qwen3"


class HeadcountQwen3ForCausalLM(_LatentModel, Qwen3ForCausalLM):
    """Qwen3."""

    config_class = HeadcountQwen3Config


class HeadcountGemma3TextConfig(_LatentConfig, Gemma3TextConfig):
    """Gemma 3 text."""

    model_type = "headcount_gemma3_text"


class HeadcountGemma3TextForCausalLM(_LatentModel, Gemma3ForCausalLM):
    """Gemma 3 text."""

    config_class = HeadcountGemma3TextConfig


class HeadcountGPT2Config(_LatentConfig, GPT2Config):
    """GPT-2."""

    model_type = "headcount_gpt2"


class HeadcountGPT2ForCausalLM(_LatentModel, GPT2LMHeadModel):
    """GPT-2."""

    config_class = HeadcountGPT2Config
    _attention = "attn"


class HeadcountGPTNeoXConfig(_LatentConfig, GPTNeoXConfig):
    """GPT-NeoX."""

    model_type = "headcount_gpt_neox"


class HeadcountGPTNeoXForCausalLM(_LatentModel, GPTNeoXForCausalLM):
    """GPT-NeoX."""

    config_class = HeadcountGPTNeoXConfig
    _attention = "attention"


CLASSES = {
    config.model_type: (config, model)
    for config, model in (
        (HeadcountLlamaConfig, HeadcountLlamaForCausalLM),
        (HeadcountMistralConfig, HeadcountMistralForCausalLM),
        (HeadcountQwen2Config, HeadcountQwen2ForCausalLM),
        (HeadcountQwen3Config, HeadcountQwen3ForCausalLM),
        (HeadcountGemma3TextConfig, HeadcountGemma3TextForCausalLM),
        (HeadcountGPT2Config, HeadcountGPT2ForCausalLM),
        (HeadcountGPTNeoXConfig, HeadcountGPTNeoXForCausalLM),
    )
}
"""(config class, model class) by model type."""
