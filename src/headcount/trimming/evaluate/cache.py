"""Cache bytes per token, measured on the cache object after a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from headcount.core.errors import CheckFailedError
from headcount.core.spec import ModelSpec

TOKENS = 16


@dataclass(frozen=True)
class CacheSize:
    """The size of the cache entries of a token that is inside every window."""

    bytes_per_token: int
    numbers_per_layer: tuple[int, ...]
    """Numbers that each layer caches per token, keys and values together."""
    dtype: str
    tokens: int
    """Number of cached tokens at the time of measurement."""


@torch.no_grad()
def measure_cache(model: PreTrainedModel, spec: ModelSpec, name: str = "the model") -> CacheSize:
    """Run a few tokens through ``model``, inspect the cache, and compare it with ``spec``.

    The size is numel * element_size of every layer's keys and values, over rows and tokens. A sliding-window
    layer keeps fewer tokens than it has seen once its window is full, so the measurement stays inside the
    smallest window. It counts cached numbers, not the reserved capacity of a growing buffer.

    Raises ``CheckFailedError`` if the cache does not match the spec.

    Example:
        >>> measure_cache(model, read_spec(model)).bytes_per_token       # doctest: +SKIP
        46080
    """
    windows = [layer.window - 1 for layer in spec.layers if layer.window is not None]
    positions = getattr(model.config, "max_position_embeddings", None) or TOKENS
    tokens = max(1, min([TOKENS, positions, *windows]))
    rows = 2
    cache = DynamicCache(config=model.config)
    model(torch.ones(rows, tokens, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    if len(layers) != len(spec.layers):
        raise CheckFailedError(f"{name}: the cache has {len(layers)} layers, its spec has {len(spec.layers)}")
    per_layer, total_bytes = [], 0
    for index, (layer, layer_spec) in enumerate(zip(layers, spec.layers, strict=True)):
        numbers = layer.keys.numel() + layer.values.numel()
        if numbers != layer_spec.cache_numbers_per_token * rows * tokens:
            raise CheckFailedError(
                f"{name}: layer {index} caches {numbers / (rows * tokens):g} numbers a token, "
                f"its spec says {layer_spec.cache_numbers_per_token}"
            )
        per_layer.append(numbers // (rows * tokens))
        total_bytes += layer.keys.numel() * layer.keys.element_size()
        total_bytes += layer.values.numel() * layer.values.element_size()
    dtype = str(layers[0].keys.dtype).removeprefix("torch.")
    per_token = total_bytes // (rows * tokens)
    if per_token != spec.cache_bytes_per_token(dtype):
        raise CheckFailedError(
            f"{name}: the cache holds {per_token} bytes a token, its spec says {spec.cache_bytes_per_token(dtype)}"
        )
    return CacheSize(per_token, tuple(per_layer), dtype, tokens)
