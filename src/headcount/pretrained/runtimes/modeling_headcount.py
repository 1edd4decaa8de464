"""The models that headcount trimmed: every family with latent attention. This file travels with the checkpoint.

It needs torch and transformers only. ``headcount_attention.py`` beside it computes, ``headcount_cache.py`` caches.
For each family there are a config, the stack of layers (``AutoModel``), the language model
(``AutoModelForCausalLM``) and the classifier (``AutoModelForSequenceClassification``).
"""

from typing import Any

from transformers import (
    AutoModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    GPTNeoXModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
    MistralModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3Model,
)

from .headcount_attention import LatentAttention, install

MODULE = "modeling_headcount"
"""This file's name in a checkpoint."""
ROLES = {
    "AutoModel": "Model",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
}
"""transformers' auto classes, and how the names of our classes for them end."""


def _no_continuous_batching(*_args: Any, **_kwargs: Any) -> None:
    raise ValueError(
        "a model trimmed by headcount cannot use continuous batching: its paged cache holds keys and values of one "
        "shape; use generate()"
    )


class _LatentConfig:
    """Mixin before a family's config. Fields: ``latent_form``, ``latent_layers`` (k_rank, v_rank), ``latent_qkv_bias``.

    ``qk_head_dim`` tells transformers that keys and values differ in width.
    """

    base_model_tp_plan: Any = None
    base_model_pp_plan: Any = None


class _Latent:
    """Mixin before every model of ours: what transformers may expect of it."""

    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False

    generate_batch: Any = _no_continuous_batching
    init_continuous_batching: Any = _no_continuous_batching
    continuous_batching_context_manager: Any = _no_continuous_batching

    def __init__(self, config: Any) -> None:
        # All roles, so that a folder written by any of them opens as any of them.
        stem = type(config).__name__.removesuffix("Config")
        config.auto_map = {"AutoConfig": f"{MODULE}.{stem}Config"} | {
            auto: f"{MODULE}.{stem}{end}" for auto, end in ROLES.items()
        }
        super().__init__(config)  # type: ignore[call-arg]


class _LatentStack(_Latent):
    """Mixin before a family's stack of layers: builds it, then replaces its attention."""

    _attention = "self_attn"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        recorded: Any = cls._can_record_outputs  # type: ignore[attr-defined]
        cls._can_record_outputs = {"hidden_states": recorded["hidden_states"], "attentions": LatentAttention}  # type: ignore[attr-defined]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        install(self, self._attention)


class _LatentHead(_Latent):
    """Mixin before a family's model with a head: builds it, then replaces its stack of layers by ours."""

    _stack: type

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        prefix = self.base_model_prefix  # type: ignore[attr-defined]
        if type(getattr(self, prefix)) is not self._stack:
            setattr(self, prefix, self._stack(config))
            self.post_init()  # type: ignore[attr-defined]


class HeadcountLlamaConfig(_LatentConfig, LlamaConfig):
    """Llama."""

    model_type = "headcount_llama"


class HeadcountLlamaModel(_LatentStack, LlamaModel):
    """Llama: the stack of layers."""

    config_class = HeadcountLlamaConfig


class HeadcountLlamaForCausalLM(_LatentHead, LlamaForCausalLM):
    """Llama: the language model."""

    config_class = HeadcountLlamaConfig
    _stack = HeadcountLlamaModel


class HeadcountLlamaForSequenceClassification(_LatentHead, LlamaForSequenceClassification):
    """Llama: the classifier."""

    config_class = HeadcountLlamaConfig
    _stack = HeadcountLlamaModel


class HeadcountMistralConfig(_LatentConfig, MistralConfig):
    """Mistral."""

    model_type = "headcount_mistral"


class HeadcountMistralModel(_LatentStack, MistralModel):
    """Mistral: the stack of layers."""

    config_class = HeadcountMistralConfig


class HeadcountMistralForCausalLM(_LatentHead, MistralForCausalLM):
    """Mistral: the language model."""

    config_class = HeadcountMistralConfig
    _stack = HeadcountMistralModel


class HeadcountMistralForSequenceClassification(_LatentHead, MistralForSequenceClassification):
    """Mistral: the classifier."""

    config_class = HeadcountMistralConfig
    _stack = HeadcountMistralModel


class HeadcountQwen2Config(_LatentConfig, Qwen2Config):
    """Qwen2."""

    model_type = "headcount_qwen2"


class HeadcountQwen2Model(_LatentStack, Qwen2Model):
    """Qwen2: the stack of layers."""

    config_class = HeadcountQwen2Config


class HeadcountQwen2ForCausalLM(_LatentHead, Qwen2ForCausalLM):
    """Qwen2: the language model."""

    config_class = HeadcountQwen2Config
    _stack = HeadcountQwen2Model


class HeadcountQwen2ForSequenceClassification(_LatentHead, Qwen2ForSequenceClassification):
    """Qwen2: the classifier."""

    config_class = HeadcountQwen2Config
    _stack = HeadcountQwen2Model


class HeadcountQwen3Config(_LatentConfig, Qwen3Config):
    """Qwen3."""

    model_type = "headcount_qwen3"


class HeadcountQwen3Model(_LatentStack, Qwen3Model):
    """Qwen3: the stack of layers."""

    config_class = HeadcountQwen3Config


class HeadcountQwen3ForCausalLM(_LatentHead, Qwen3ForCausalLM):
    """Qwen3: the language model."""

    config_class = HeadcountQwen3Config
    _stack = HeadcountQwen3Model


class HeadcountQwen3ForSequenceClassification(_LatentHead, Qwen3ForSequenceClassification):
    """Qwen3: the classifier."""

    config_class = HeadcountQwen3Config
    _stack = HeadcountQwen3Model


class HeadcountGemma3TextConfig(_LatentConfig, Gemma3TextConfig):
    """Gemma 3 text."""

    model_type = "headcount_gemma3_text"


class HeadcountGemma3TextModel(_LatentStack, Gemma3TextModel):
    """Gemma 3 text: the stack of layers."""

    config_class = HeadcountGemma3TextConfig


class HeadcountGemma3TextForCausalLM(_LatentHead, Gemma3ForCausalLM):
    """Gemma 3 text: the language model."""

    config_class = HeadcountGemma3TextConfig
    _stack = HeadcountGemma3TextModel


class HeadcountGemma3TextForSequenceClassification(_LatentHead, Gemma3TextForSequenceClassification):
    """Gemma 3 text: the classifier."""

    config_class = HeadcountGemma3TextConfig
    _stack = HeadcountGemma3TextModel


class HeadcountGPT2Config(_LatentConfig, GPT2Config):
    """GPT-2."""

    model_type = "headcount_gpt2"


class HeadcountGPT2Model(_LatentStack, GPT2Model):
    """GPT-2: the stack of layers."""

    config_class = HeadcountGPT2Config
    _attention = "attn"


class HeadcountGPT2ForCausalLM(_LatentHead, GPT2LMHeadModel):
    """GPT-2: the language model."""

    config_class = HeadcountGPT2Config
    _stack = HeadcountGPT2Model


class HeadcountGPT2ForSequenceClassification(_LatentHead, GPT2ForSequenceClassification):
    """GPT-2: the classifier."""

    config_class = HeadcountGPT2Config
    _stack = HeadcountGPT2Model


class HeadcountGPTNeoXConfig(_LatentConfig, GPTNeoXConfig):
    """GPT-NeoX."""

    model_type = "headcount_gpt_neox"


class HeadcountGPTNeoXModel(_LatentStack, GPTNeoXModel):
    """GPT-NeoX: the stack of layers."""

    config_class = HeadcountGPTNeoXConfig
    _attention = "attention"


class HeadcountGPTNeoXForCausalLM(_LatentHead, GPTNeoXForCausalLM):
    """GPT-NeoX: the language model."""

    config_class = HeadcountGPTNeoXConfig
    _stack = HeadcountGPTNeoXModel


class HeadcountGPTNeoXForSequenceClassification(_LatentHead, GPTNeoXForSequenceClassification):
    """GPT-NeoX: the classifier."""

    config_class = HeadcountGPTNeoXConfig
    _stack = HeadcountGPTNeoXModel


CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    config.model_type: (config, dict(zip(ROLES, models, strict=True)))
    for config, *models in (
        (
            HeadcountLlamaConfig,
            HeadcountLlamaModel,
            HeadcountLlamaForCausalLM,
            HeadcountLlamaForSequenceClassification,
        ),
        (
            HeadcountMistralConfig,
            HeadcountMistralModel,
            HeadcountMistralForCausalLM,
            HeadcountMistralForSequenceClassification,
        ),
        (
            HeadcountQwen2Config,
            HeadcountQwen2Model,
            HeadcountQwen2ForCausalLM,
            HeadcountQwen2ForSequenceClassification,
        ),
        (
            HeadcountQwen3Config,
            HeadcountQwen3Model,
            HeadcountQwen3ForCausalLM,
            HeadcountQwen3ForSequenceClassification,
        ),
        (
            HeadcountGemma3TextConfig,
            HeadcountGemma3TextModel,
            HeadcountGemma3TextForCausalLM,
            HeadcountGemma3TextForSequenceClassification,
        ),
        (
            HeadcountGPT2Config,
            HeadcountGPT2Model,
            HeadcountGPT2ForCausalLM,
            HeadcountGPT2ForSequenceClassification,
        ),
        (
            HeadcountGPTNeoXConfig,
            HeadcountGPTNeoXModel,
            HeadcountGPTNeoXForCausalLM,
            HeadcountGPTNeoXForSequenceClassification,
        ),
    )
}
"""By model type: the config class, and the model class for each of transformers' auto classes."""

for _config, _models in CLASSES.values():
    # Saving any of them writes these files beside the weights; a classifier is built on the stack that AutoModel knows.
    _config.register_for_auto_class()
    for _auto, _model in _models.items():
        _model.register_for_auto_class(_auto)
    AutoModel.register(_config, _models["AutoModel"], exist_ok=True)
