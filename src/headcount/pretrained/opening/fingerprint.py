"""The fingerprint that ties a plan to a model: a hash of its weights and of the settings that affect its output."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

from headcount.core.payload import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

INERT = frozenset(
    (
        *("architectures", "dtype", "model_type", "transformers_version"),
        *("id2label", "label2id", "problem_type", "chunk_size_feed_forward", "pretraining_tp"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        *("initializer_range", "attention_dropout", "hidden_dropout", "classifier_dropout"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
        *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
    )
)
"""Settings that do not affect a language model's output: storage, training and sampling options."""
_UNDECLARED = ("head_dim", "latent_")
"""Name prefixes of settings that model code reads although the config class does not declare them."""


def fingerprint(model: PreTrainedModel, sampled: int = 1024) -> str:
    """A hash of every tensor's name, shape and ``sampled`` evenly spread values, and of ``settings``; 16 hex digits.

    Numbers are compared as float32, so the fingerprint is the same for a model loaded from GGUF and from a folder it
    was saved to, in float32 or any wider dtype.
    """
    state = hashlib.blake2b(digest_size=8)
    state.update(weights_fingerprint(model, sampled).encode())
    state.update(json.dumps(settings(model.config), sort_keys=True).encode())
    return state.hexdigest()


def weights_fingerprint(model: PreTrainedModel, sampled: int = 1024) -> str:
    """``fingerprint`` without the settings, as written by earlier versions of headcount."""
    state = hashlib.blake2b(digest_size=8)
    state.update(model.config.model_type.encode())
    for name, tensor in sorted(model.named_parameters()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // sampled)
        state.update(f"{name}{tuple(tensor.shape)}".encode())
        state.update(flat[::step].float().cpu().numpy().tobytes())
    return state.hexdigest()


def settings(config: PreTrainedConfig) -> JsonObject:
    """The settings of a config that affect its model's output: rotary embedding, windows, scaling, norms, tying.

    All settings declared by the config class except ``INERT``, so settings unknown to headcount are included, and
    entries that other tools add to config.json are not. ``None`` and ``False`` are omitted: they equal no entry.

    >>> from transformers import LlamaConfig
    >>> settings(LlamaConfig(rope_theta=5e5))["rope_parameters"]
    {'rope_theta': 500000.0, 'rope_type': 'default'}
    >>> settings(LlamaConfig(use_cache=False)) == settings(LlamaConfig())
    True
    """
    values = config.to_dict()
    declared = {field.name for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set(values)
    return {
        name: _plain(value)
        for name, value in sorted(values.items())
        if (name in declared or name.startswith(_UNDECLARED))
        and name not in INERT
        and not name.startswith("_")
        and not _absent(value)
    }


def _absent(value: Any) -> bool:
    return value is None or value is False


def _plain(value: Any) -> Any:
    """A canonical JSON value: numbers as float32, mappings without empty entries."""
    if isinstance(value, dict):
        entries = sorted((str(name), item) for name, item in value.items())
        return {name: _plain(item) for name, item in entries if not _absent(item)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:  # beyond float32
        return str(value)
