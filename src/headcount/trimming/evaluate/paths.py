"""The ways in which a model is run when its speed is measured, and caches filled for them.

stock     a dense model as transformers runs it: its growing cache copies itself at every step, attention is torch's
          fused one (``sdpa``)
growing   the same attention over the cache of our trimmed models, which grows in place
own       dense keys and values through both halves of our path: that cache, and ``attend``
latent    a trimmed model, which always takes that path

``stock`` is what people run. ``own`` is what a trimmed model must be held against to see what the smaller cache
alone brings; ``growing`` tells the cache's part in the difference from the attention's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from headcount.pretrained.families import attention_of, family_of, layers_of
from headcount.pretrained.opening.loading import is_trimmed
from headcount.pretrained.runtimes.headcount_attention import attend
from headcount.pretrained.runtimes.headcount_cache import GrowingLayer

Way = Literal["stock", "growing", "own", "latent"]
OWN = "headcount_own"
"""Name of our attention for dense models among transformers' attention functions."""

FILL_STD = 0.1
"""Spread of the random numbers that fill a cache: small enough that attention is spread over all tokens."""


def ways_of(model: PreTrainedModel) -> tuple[Way, ...]:
    """The ways in which a model is measured; the first is the one that people run."""
    return ("latent",) if is_trimmed(model) else ("stock", "growing", "own")


def _own_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``attend`` for dense heads: query (B, H, T, d), key and value (B, K, S, d) -> (B, T, H, d).

    ``attend`` shares one set of values among all heads, as a latent is shared; so each KV head becomes a row
    of the batch, which moves no cached number.
    """
    batch, heads, new, width = query.shape
    groups = key.shape[1]
    mask = attention_mask
    if mask is not None and mask.shape[0] > 1:
        mask = mask.repeat_interleave(groups, 0)
    mixed = attend(
        query.reshape(batch * groups, heads // groups, new, width),
        key.reshape(batch * groups, 1, *key.shape[2:]),
        value.reshape(batch * groups, 1, *value.shape[2:]),
        mask,
        width**-0.5 if scaling is None else scaling,
    )
    return mixed.reshape(batch, heads, new, -1).transpose(1, 2).contiguous(), None


def _register() -> None:
    if OWN not in AttentionInterface._global_mapping:
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(OWN, _own_attention)
        AttentionMaskInterface.register(OWN, sdpa_mask)


@contextlib.contextmanager
def attention_for(model: PreTrainedModel, way: Way) -> Iterator[None]:
    """Let ``model`` compute attention in the given way inside the block; its own setting is put back after it."""
    _register()
    chosen = model.config._attn_implementation
    model.config._attn_implementation = OWN if way == "own" else "sdpa"
    try:
        yield
    finally:
        model.config._attn_implementation = chosen


def empty_cache(model: PreTrainedModel, way: Way) -> DynamicCache:
    """A cache that holds nothing yet; layers that would copy themselves grow in place unless the way is ``stock``.

    A trimmed model makes that choice itself when it first writes, so ``latent`` is left to it. Layers with a
    sliding window stay transformers' own in every way: they hold a window only.
    """
    cache = DynamicCache(config=model.config)
    if way in ("growing", "own"):
        layers: list[Any] = cache.layers
        for index, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[index] = GrowingLayer()
    return cache


@torch.no_grad()
def filled_cache(
    model: PreTrainedModel, way: Way, batch: int, context: int, generator: torch.Generator
) -> DynamicCache:
    """A cache that holds ``context`` tokens a row, by one real token and random numbers behind it.

    The real token lets the model lay out its cache; the rest goes in through the cache's own ``update``, the same
    for all models and ways but for the shapes. Layers of one shape share their numbers, not their memory.
    """
    cache = empty_cache(model, way)
    first = torch.ones(batch, 1, dtype=torch.long, device=model.device)
    model(first, past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    drawn = torch.empty(0, dtype=model.dtype, device=model.device)
    for layer in layers:
        # A sliding layer returns what it was given in full: feed it a window at a time.
        piece = min(context - 1, layer.sliding_window) if layer.is_sliding else context - 1
        for start in range(0, context - 1, max(1, piece)):
            tokens = min(piece, context - 1 - start)
            shapes = [(batch, held.shape[1], tokens, held.shape[3]) for held in (layer.keys, layer.values)]
            sizes = [torch.Size(shape).numel() for shape in shapes]
            if drawn.numel() < sum(sizes):
                drawn = torch.empty(sum(sizes), dtype=model.dtype, device=model.device)
                drawn.normal_(std=FILL_STD, generator=generator)
            keys, values = drawn[: sum(sizes)].split(sizes)
            layer.update(keys.view(shapes[0]), values.view(shapes[1]))
    return cache


def step_back(cache: DynamicCache) -> None:
    """Forget the last token, so that every step is timed at the same context.

    A full sliding layer has dropped its oldest token for it and cannot go back, but needs not: it keeps its size.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        if layer.is_sliding and layer.cumulative_length >= layer.sliding_window:
            layer.cumulative_length -= 1
            companion = getattr(layer, "companion", None)  # the positions that a small layer keeps
            if companion is not None:
                companion.cumulative_length -= 1
        elif isinstance(layer, GrowingLayer):
            layer.forget(1)
        else:
            layer.crop(-1)


@contextlib.contextmanager
def watched_attention(model: PreTrainedModel, before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """Call ``before`` and ``after`` around every forward of the model's attention modules inside the block."""
    family = family_of(model.config)
    handles = []
    try:
        for layer in layers_of(model, family):
            module = attention_of(layer, family)
            handles.append(module.register_forward_pre_hook(lambda *_: before()))
            handles.append(module.register_forward_hook(lambda *_: after()))
        yield
    finally:
        for handle in handles:
            handle.remove()
