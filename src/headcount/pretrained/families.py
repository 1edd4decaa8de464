"""The supported families of pretrained models, one table row each.

A row states the location of a family's attention modules and the layout of their projections; all other code is the
same for all families. Other model types are rejected with an error that lists the supported ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headcount.core.errors import HeadcountError
from headcount.core.forms import trimmed_form
from headcount.core.spec import LayerSpec, ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Projections:
    """One layer's attention weights in one layout: ``y = x W' + b``, so matrices are (out, in).

    Shapes: q (H d, h), k (K d, h), v (K e, h), o (h, H e); biases are ``None`` if the family has none.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    q_bias: torch.Tensor | None
    k_bias: torch.Tensor | None
    v_bias: torch.Tensor | None
    o_bias: torch.Tensor | None


@dataclass(frozen=True)
class Family:
    """The location and layout of a family's attention."""

    model_type: str
    name: str
    layers: str
    """Path from the base model to the list of its layers."""
    attention: str
    """Path from a layer to the attention module, which calls transformers' attention interface."""
    output: str
    """Path from a layer to the attention output projection."""
    layout: Callable[[Any, Any, Any], Projections]
    """Reads ``Projections`` from (attention module, output module, config)."""
    rotary: bool = True
    qk_norm: bool = False
    causal: bool = True
    attention_is_normed: bool = False
    """Whether the attention output is normalised before it is added to the residual stream."""
    gguf: str | None = None
    """The family's ``general.architecture`` in GGUF files; ``None``: not supported as GGUF."""

    @property
    def trimmable(self) -> bool:
        """Whether ``trim`` supports the family: decoders only."""
        return self.causal


def _separate(attention: Any, output: Any, config: Any) -> Projections:
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    return Projections(q.weight, k.weight, v.weight, output.weight, q.bias, k.bias, v.bias, output.bias)


def _bert(attention: Any, output: Any, config: Any) -> Projections:
    q, k, v = attention.query, attention.key, attention.value
    return Projections(q.weight, k.weight, v.weight, output.weight, q.bias, k.bias, v.bias, output.bias)


def _gpt2(attention: Any, output: Any, config: Any) -> Projections:
    """GPT-2's Conv1D stores (in, out) matrices with queries, keys and values concatenated."""
    q, k, v = attention.c_attn.weight.T.chunk(3)
    q_bias, k_bias, v_bias = attention.c_attn.bias.chunk(3)
    return Projections(q, k, v, output.weight.T, q_bias, k_bias, v_bias, output.bias)


def _gpt_neox(attention: Any, output: Any, config: Any) -> Projections:
    """GPT-NeoX stores (head, query | key | value, dim) in the rows of one matrix."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    fused = attention.query_key_value
    q, k, v = fused.weight.view(heads, 3, hidden // heads, hidden).transpose(0, 1).reshape(3, hidden, hidden)
    if fused.bias is None:
        return Projections(q, k, v, output.weight, None, None, None, output.bias)
    biases = fused.bias.view(heads, 3, hidden // heads).transpose(0, 1).reshape(3, hidden)
    return Projections(q, k, v, output.weight, biases[0], biases[1], biases[2], output.bias)


UNEQUAL = "unequal_llama"
"""Model type of models with layers of different sizes, designed by ``headcount plan --scratch``."""


def _llama_like(model_type: str, name: str, **options: Any) -> Family:
    return Family(
        model_type=model_type,
        name=name,
        layers="layers",
        attention="self_attn",
        output="self_attn.o_proj",
        layout=_separate,
        **options,
    )


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _llama_like("llama", "Llama", gguf="llama"),
        _llama_like("mistral", "Mistral"),
        _llama_like("qwen2", "Qwen2", gguf="qwen2"),
        _llama_like("qwen3", "Qwen3", qk_norm=True, gguf="qwen3"),
        _llama_like(UNEQUAL, "Llama with unequal layers"),
        _llama_like("gemma3_text", "Gemma 3 text", qk_norm=True, attention_is_normed=True, gguf="gemma3"),
        Family("gpt2", "GPT-2", "h", "attn", "attn.c_proj", _gpt2, rotary=False, gguf="gpt2"),
        Family("gpt_neox", "GPT-NeoX", "layers", "attention", "attention.dense", _gpt_neox),
        Family(
            "bert",
            "BERT (audit only)",
            "encoder.layer",
            "attention.self",
            "attention.output.dense",
            _bert,
            rotary=False,
            causal=False,
        ),
    )
}

TRIMMED_PREFIX = "headcount_"
"""Model types of trimmed models consist of this prefix and the source family."""


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model; the error for an unknown one lists the supported families."""
    return family_of_type(getattr(config, "model_type", None) or "unknown")


def family_of_type(model_type: str) -> Family:
    """The family of a model type, dense or trimmed.

    >>> family_of_type("headcount_gpt2").name
    'GPT-2'
    """
    family = FAMILIES.get(model_type.removeprefix(TRIMMED_PREFIX))
    if family is None:
        known = ", ".join(f"{row.name} ({row.model_type})" for row in FAMILIES.values())
        raise HeadcountError(f"model type {model_type!r} is not supported", fix=f"supported: {known}")
    return family


def base_model(model: PreTrainedModel) -> nn.Module:
    """The stack of layers without its head."""
    return getattr(model, model.base_model_prefix, model)


def layers_of(model: PreTrainedModel, family: Family) -> nn.ModuleList:
    """The list of layers."""
    return base_model(model).get_submodule(family.layers)  # type: ignore[return-value]


def attention_of(layer: nn.Module, family: Family) -> nn.Module:
    """The attention module of a layer."""
    return layer.get_submodule(family.attention)


def projections_of(layer: nn.Module, family: Family, config: PreTrainedConfig) -> Projections:
    """The attention weights of a layer of a dense model, in the common layout."""
    return family.layout(layer.get_submodule(family.attention), layer.get_submodule(family.output), config)


def attention_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """(n_heads, n_kv_heads, head_dim) according to a config."""
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return n_heads, n_kv_heads, head_dim


def layer_shape(config: PreTrainedConfig, index: int) -> tuple[int, int, int, int]:
    """(n_heads, n_kv_heads, qk_dim, v_dim) of one layer according to a config."""
    if config.model_type == UNEQUAL:
        lists = (config.layer_n_heads, config.layer_n_kv_heads, config.layer_qk_dim, config.layer_v_dim)
        n_heads, n_kv_heads, qk_dim, v_dim = (int(numbers[index]) for numbers in lists)
        return n_heads, n_kv_heads, qk_dim, v_dim
    n_heads, n_kv_heads, head_dim = attention_shape(config)
    return n_heads, n_kv_heads, head_dim, head_dim


def window_of(config: PreTrainedConfig, layer_index: int) -> int | None:
    """Number of tokens a query attends to, itself included; ``None``: all."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    return None if kinds is not None and kinds[layer_index] != "sliding_attention" else window


def rotary_dim_of(config: PreTrainedConfig, family: Family) -> int:
    """Number of leading dimensions of each head that are rotated."""
    if not family.rotary:
        return 0
    rope = getattr(config, "rope_parameters", None) or {}
    return int(attention_shape(config)[2] * rope.get("partial_rotary_factor", 1.0))


UNSUPPORTED = {
    "attn_logit_softcapping": "capped attention logits",
    "use_bidirectional_attention": "attention in both directions",
    "add_cross_attention": "cross-attention",
}
"""Config options that change the attention computation in ways that the statistics do not cover."""


def _check_attention(config: PreTrainedConfig) -> None:
    for option, words in UNSUPPORTED.items():
        if getattr(config, option, None):
            raise HeadcountError(f"{words} ({option} in the config) is not supported", fix="use a model without it")


def read_spec(model: PreTrainedModel) -> ModelSpec:
    """The attention spec of a loaded model, dense or trimmed, read from its tensors.

    Raises ``HeadcountError`` if the config contradicts the tensors or requires unsupported attention.
    """
    config = model.config
    family = family_of(config)
    _check_attention(config)
    latents = getattr(config, "latent_layers", None)
    specs = []
    for index, layer in enumerate(layers_of(model, family)):
        attention: Any = attention_of(layer, family)
        n_heads, n_kv_heads, qk_dim, v_dim = layer_shape(config, index)
        common: dict[str, Any] = {
            "hidden": config.hidden_size,
            "n_heads": n_heads,
            "n_kv_heads": n_kv_heads,
            "qk_dim": qk_dim,
            "v_dim": v_dim,
            "rotary_dim": qk_dim if family.model_type == UNEQUAL else rotary_dim_of(config, family),
            "window": window_of(config, index),
            "qk_norm": family.qk_norm,
            "causal": family.causal,
        }
        if latents is not None:
            specs.append(
                LayerSpec(
                    **common,
                    qkv_bias=attention.q_proj.bias is not None,
                    o_bias=True,
                    form=trimmed_form(config.latent_form).in_layer(family.rotary).name,
                    k_rank=latents[index]["k_rank"],
                    v_rank=latents[index]["v_rank"],
                )
            )
            continue
        weights = projections_of(layer, family, config)
        expected = {
            "q": (n_heads * qk_dim, config.hidden_size),
            "k": (n_kv_heads * qk_dim, config.hidden_size),
            "v": (n_kv_heads * v_dim, config.hidden_size),
            "o": (config.hidden_size, n_heads * v_dim),
        }
        for side, shape in expected.items():
            actual = tuple(getattr(weights, side).shape)
            if actual != shape:
                raise HeadcountError(
                    f"layer {index}: the {side} matrix is {actual}, but the config asks for {shape}",
                    fix="mend config.json or the checkpoint",
                )
        specs.append(LayerSpec(**common, qkv_bias=weights.q_bias is not None, o_bias=weights.o_bias is not None))
    return ModelSpec(family=family.model_type, layers=tuple(specs))
