"""The models that headcount trimmed: every family with latent attention. This file travels with the checkpoint.

It needs torch and transformers only. ``headcount_attention.py`` beside it computes, ``headcount_cache.py`` caches.
For each family there are a config, the stack of layers (``AutoModel``), the language model
(``AutoModelForCausalLM``) and the classifier (``AutoModelForSequenceClassification``).
"""

from typing import Any

import transformers
from transformers import AutoModel

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

    _attention: str

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


FAMILIES: tuple[tuple[str, str, type, type, type, type], ...] = (
    (
        "Llama",
        "self_attn",
        transformers.LlamaConfig,
        transformers.LlamaModel,
        transformers.LlamaForCausalLM,
        transformers.LlamaForSequenceClassification,
    ),
    (
        "Mistral",
        "self_attn",
        transformers.MistralConfig,
        transformers.MistralModel,
        transformers.MistralForCausalLM,
        transformers.MistralForSequenceClassification,
    ),
    (
        "Qwen2",
        "self_attn",
        transformers.Qwen2Config,
        transformers.Qwen2Model,
        transformers.Qwen2ForCausalLM,
        transformers.Qwen2ForSequenceClassification,
    ),
    (
        "Qwen3",
        "self_attn",
        transformers.Qwen3Config,
        transformers.Qwen3Model,
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3ForSequenceClassification,
    ),
    (
        "Gemma3Text",
        "self_attn",
        transformers.Gemma3TextConfig,
        transformers.Gemma3TextModel,
        transformers.Gemma3ForCausalLM,
        transformers.Gemma3TextForSequenceClassification,
    ),
    (
        "GPT2",
        "attn",
        transformers.GPT2Config,
        transformers.GPT2Model,
        transformers.GPT2LMHeadModel,
        transformers.GPT2ForSequenceClassification,
    ),
    (
        "GPTNeoX",
        "attention",
        transformers.GPTNeoXConfig,
        transformers.GPTNeoXModel,
        transformers.GPTNeoXForCausalLM,
        transformers.GPTNeoXForSequenceClassification,
    ),
)
"""One row per family: the stem of our class names, the name of a layer's attention attribute, and transformers' classes
for the config, the stack of layers, the language model and the classifier."""


def _class(name: str, bases: tuple[type, ...], **attributes: Any) -> Any:
    """A class under its name in this module, where ``auto_map`` and pickle look it up."""
    globals()[name] = made = type(name, bases, {"__module__": __name__, "__doc__": f"{name}.", **attributes})
    return made


def _register(stem: str, attention: str, config: Any, *bases: type) -> tuple[Any, dict[str, Any]]:
    """Make the classes of a family, ``Headcount{stem}Config`` and so on, and register them with transformers.

    Saving any of them then writes these files beside the weights. Classifiers build the stack that ``AutoModel`` knows.
    """
    model_type = f"headcount_{config.model_type}"
    config_class = _class(f"Headcount{stem}Config", (_LatentConfig, config), model_type=model_type)
    config_class.register_for_auto_class()
    models: dict[str, Any] = {}
    for (auto, end), base in zip(ROLES.items(), bases, strict=True):
        own = {"_attention": attention} if auto == "AutoModel" else {"_stack": models["AutoModel"]}
        mixin = _LatentStack if auto == "AutoModel" else _LatentHead
        models[auto] = _class(f"Headcount{stem}{end}", (mixin, base), config_class=config_class, **own)
        models[auto].register_for_auto_class(auto)
    AutoModel.register(config_class, models["AutoModel"], exist_ok=True)
    return config_class, models


CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    config_class.model_type: (config_class, models) for config_class, models in (_register(*row) for row in FAMILIES)
}
"""By model type: the config class, and the model class for each of transformers' auto classes."""
