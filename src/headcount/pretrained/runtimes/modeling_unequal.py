"""A Llama whose layers differ in heads, dimensions and MLP width. This file travels with the checkpoint.

It needs torch and transformers only. Layer l has ``layer_n_heads[l]`` query heads on ``layer_n_kv_heads[l]`` key-value
heads, queries and keys of ``layer_qk_dim[l]`` numbers a head, values of ``layer_v_dim[l]``, and an MLP of
``layer_intermediate_size[l]``. Everything else is Llama's: with equal entries it computes what
``LlamaForCausalLM`` does.

Letters in shapes: B batch, T new tokens, H query heads, K key-value heads, d = qk_dim, e = v_dim.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaMLP,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

PER_LAYER = ("layer_n_heads", "layer_n_kv_heads", "layer_qk_dim", "layer_v_dim", "layer_intermediate_size")
"""Fields of the config that list one number a layer."""
MODULE = "modeling_unequal"
"""This file's name in a checkpoint."""


def _no_continuous_batching(*_args: Any, **_kwargs: Any) -> None:
    raise ValueError(
        "a model of unequal layers cannot use continuous batching: its paged cache holds keys and values of one "
        "shape; use generate()"
    )


class UnequalLlamaConfig(LlamaConfig):
    """Llama's config and the lists. Llama's own ``num_attention_heads`` etc. are set to the largest entries.

    ``qk_head_dim`` and ``v_head_dim`` tell transformers that keys and values may differ in width.
    Raises ValueError for lists that do not make a model.
    """

    model_type = "unequal_llama"
    base_model_tp_plan: ClassVar[Any] = None
    base_model_pp_plan: ClassVar[Any] = None

    layer_n_heads: Any = None
    layer_n_kv_heads: Any = None
    layer_qk_dim: Any = None
    layer_v_dim: Any = None
    layer_intermediate_size: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in lists that are missing with Llama's one number for all layers."""
        dim = self.head_dim or self.hidden_size // self.num_attention_heads
        own = (self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads, dim, dim)
        for name, number in zip(PER_LAYER, (*own, self.intermediate_size), strict=True):
            if getattr(self, name) is None:
                setattr(self, name, [number] * self.num_hidden_layers)
        self._check_lists()
        kwargs |= {"qk_head_dim": max(self.layer_qk_dim), "v_head_dim": max(self.layer_v_dim)}
        self.num_attention_heads = max(self.layer_n_heads)
        self.num_key_value_heads = max(self.layer_n_kv_heads)
        self.head_dim = kwargs["qk_head_dim"]
        self.intermediate_size = max(self.layer_intermediate_size)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse what is no model; in place of Llama's own check, that heads divide ``hidden_size``."""
        self._check_lists()

    def _check_lists(self) -> None:
        """Refuse lists of another length, sizes below 1, and heads and dimensions that do not divide."""
        for name in PER_LAYER:
            numbers = getattr(self, name)
            if not isinstance(numbers, list | tuple):
                raise ValueError(f"{name} is {numbers!r}, no list")
            if len(numbers) != self.num_hidden_layers:
                raise ValueError(f"{name} lists {len(numbers)} layers, num_hidden_layers is {self.num_hidden_layers}")
            if any(type(number) is not int or number < 1 for number in numbers):
                raise ValueError(f"{name} {numbers} has an entry that is no whole number of at least 1")
        for index, (heads, kv_heads, dim) in enumerate(
            zip(self.layer_n_heads, self.layer_n_kv_heads, self.layer_qk_dim, strict=True)
        ):
            if heads % kv_heads:
                raise ValueError(f"layer {index}: {heads} heads are no multiple of {kv_heads} key-value heads")
            if dim % 2:
                raise ValueError(f"layer {index}: qk_dim {dim} is odd, but the rotary embedding turns pairs")
        if (self.rope_parameters or {}).get("rope_type", "default") != "default":
            raise ValueError("only the default rotary embedding is known for unequal layers")


class UnequalRotary(nn.Module):
    """Cosines and sines for every width that some layer's queries and keys have, once for all layers.

    Frequencies of width d are theta^(-2i/d), i < d/2: Llama's own at that head dimension. They are computed where
    they are used, so that there is no buffer to lose when a model is made without memory.
    """

    def __init__(self, config: UnequalLlamaConfig) -> None:
        super().__init__()
        rope: Any = config.rope_parameters
        self.base = float(rope["rope_theta"])
        self.widths = sorted(set(config.layer_qk_dim))

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """position_ids (B or 1, T) -> by width d: cos, sin (B or 1, T, d) in x's dtype."""
        found = {}
        for width in self.widths:
            places = torch.arange(0, width, 2, dtype=torch.float, device=x.device) / width
            angles = position_ids[..., None].float() * (1.0 / self.base**places)
            angles = torch.cat((angles, angles), dim=-1)
            found[width] = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        return found


class UnequalAttention(nn.Module):
    """The attention of one layer."""

    def __init__(self, config: UnequalLlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.n_heads, self.n_kv_heads = config.layer_n_heads[layer_idx], config.layer_n_kv_heads[layer_idx]
        self.qk_dim, self.v_dim = config.layer_qk_dim[layer_idx], config.layer_v_dim[layer_idx]
        self.num_key_value_groups = self.n_heads // self.n_kv_heads
        self.scaling = self.qk_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(hidden, self.n_heads * self.qk_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, self.n_kv_heads * self.qk_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, self.n_kv_heads * self.v_dim, bias=bias)
        self.o_proj = nn.Linear(self.n_heads * self.v_dim, hidden, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: dict[int, tuple[torch.Tensor, torch.Tensor]],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states (B, T, hidden) -> (output (B, T, hidden), weights where the implementation gives them)."""
        batch, new, _ = hidden_states.shape
        q = self.q_proj(hidden_states).view(batch, new, self.n_heads, self.qk_dim).transpose(1, 2)
        k = self.k_proj(hidden_states).view(batch, new, self.n_kv_heads, self.qk_dim).transpose(1, 2)
        v = self.v_proj(hidden_states).view(batch, new, self.n_kv_heads, self.v_dim).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings[self.qk_dim])
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        # Fused attention wants one width: zeros behind the narrower side change no logit and no value. At a single
        # new token torch's plain path is as fast, and copying the cache to pad it would not be.
        fused = new > 1 and self.config._attn_implementation == "sdpa"
        width = max(self.qk_dim, self.v_dim) if fused else None
        mixed, weights = attend(
            self,
            _padded(q, width),
            _padded(k, width),
            _padded(v, width),
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(mixed[..., : self.v_dim].reshape(batch, new, -1)), weights


def _padded(x: torch.Tensor, width: int | None) -> torch.Tensor:
    """x (..., w) with zeros behind its last dimension up to ``width``."""
    return x if width is None or x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


class _Unequal:
    """Mixin before every model of ours: what transformers may expect of it."""

    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False

    generate_batch: Any = _no_continuous_batching
    init_continuous_batching: Any = _no_continuous_batching
    continuous_batching_context_manager: Any = _no_continuous_batching

    def __init__(self, config: UnequalLlamaConfig) -> None:
        # All roles, so that a folder written by any of them opens as any of them.
        config.auto_map = {
            "AutoConfig": f"{MODULE}.UnequalLlamaConfig",
            "AutoModel": f"{MODULE}.UnequalLlamaModel",
            "AutoModelForCausalLM": f"{MODULE}.UnequalLlamaForCausalLM",
        }
        super().__init__(config)  # type: ignore[call-arg]


class UnequalLlamaModel(_Unequal, LlamaModel):
    """Llama's stack of layers, each of the config's shapes."""

    config_class = UnequalLlamaConfig
    _can_record_outputs: Any = dict(hidden_states=LlamaDecoderLayer, attentions=UnequalAttention)  # noqa: C408, RUF012

    def __init__(self, config: UnequalLlamaConfig) -> None:
        super().__init__(config)
        self._shape()

    def _shape(self) -> None:
        """Replace what Llama has alike in every layer."""
        config: Any = self.config
        self.rotary_emb = UnequalRotary(config)  # type: ignore[assignment]
        for index, layer in enumerate(self.layers):
            layer.self_attn = UnequalAttention(config, index)
            layer.mlp = _mlp(config, index)
        self.post_init()


class UnequalLlamaForCausalLM(_Unequal, LlamaForCausalLM):
    """Llama's causal language model with layers of the config's shapes.

    New weights are Llama's, but what layers add to the residual stream starts smaller by sqrt(2 layers), as in GPT-2.
    """

    config_class = UnequalLlamaConfig

    def __init__(self, config: UnequalLlamaConfig) -> None:
        super().__init__(config)
        stack: Any = self.model
        stack.__class__ = UnequalLlamaModel
        stack._shape()
        self.post_init()
        # Without this, what all layers add drowns the embedding in a small model. Not in _init_weights: the inner
        # model's modules are marked as done when transformers comes to this one.
        scale_added(self.model.layers, (2 * config.num_hidden_layers) ** -0.5)


@torch.no_grad()
def scale_added(layers: Iterable[Any], factor: float) -> None:
    """Multiply what layers add to the residual stream, attention's and the MLP's output, in place."""
    for layer in layers:
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)


def _mlp(config: UnequalLlamaConfig, index: int) -> LlamaMLP:
    """Llama's MLP at a layer's own width, which it reads off a config."""
    own = copy.copy(config)
    own.intermediate_size = config.layer_intermediate_size[index]
    return LlamaMLP(own)


CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    UnequalLlamaConfig.model_type: (
        UnequalLlamaConfig,
        {"AutoModel": UnequalLlamaModel, "AutoModelForCausalLM": UnequalLlamaForCausalLM},
    )
}
"""By model type: the config class, and the model class for each of transformers' auto classes."""

for _config, _models in CLASSES.values():
    # Saving any of them writes this file beside the weights.
    _config.register_for_auto_class()
    for _auto, _model in _models.items():
        _model.register_for_auto_class(_auto)
