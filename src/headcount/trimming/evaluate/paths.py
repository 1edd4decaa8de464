"""The execution paths ("ways") for speed measurements, and caches filled for them.

stock     a dense model in transformers' default configuration: the dynamic cache is copied at every step, attention
          is torch's fused implementation (``sdpa``)
growing   the same attention with the cache of trimmed models, which grows in place
own       dense keys and values with both the cache and the attention function (``attend``) of trimmed models
latent    a trimmed model, which always uses that cache and attention function

``stock`` is the usual way to run a dense model. Comparing a trimmed model with ``own`` isolates the effect of the
smaller cache; ``growing`` separates the contribution of the cache implementation from that of the attention function.
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
"""Name under which ``attend`` for dense models is registered in transformers."""

FILL_STD = 0.1
"""Standard deviation of the random cache contents: small enough that attention is spread over all tokens."""


def ways_of(model: PreTrainedModel) -> tuple[Way, ...]:
    """The ways in which a model is measured; the first is the default one."""
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

    ``attend`` shares one set of values among all heads, like a latent, so each KV head becomes a batch row. This
    does not copy the cache.
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
    """Let ``model`` compute attention in the given way inside the ``with`` block; restores its setting afterwards."""
    _register()
    chosen = model.config._attn_implementation
    model.config._attn_implementation = OWN if way == "own" else "sdpa"
    try:
        yield
    finally:
        model.config._attn_implementation = chosen


def empty_cache(model: PreTrainedModel, way: Way) -> DynamicCache:
    """An empty cache; for ``growing`` and ``own``, dynamic layers are replaced by layers that grow in place.

    A trimmed model replaces its layers itself on the first write, so ``latent`` is not handled here. Sliding-window
    layers are always those of transformers, since they only hold one window.
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
    """A cache with ``context`` tokens per row: one real token followed by random numbers.

    The real token lets the model set up its cache layout; the rest is added with the cache's ``update`` method, which
    is the same for all models and ways except for shapes. Layers of equal shape get equal values, in separate memory.
    """
    cache = empty_cache(model, way)
    first = torch.ones(batch, 1, dtype=torch.long, device=model.device)
    model(first, past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    drawn = torch.empty(0, dtype=model.dtype, device=model.device)
    for layer in layers:
        # A sliding layer returns all tokens of an update: feed it one window at a time.
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
    """Remove the last token, so that every step is timed at the same context.

    A full sliding layer has dropped its oldest token and cannot restore it, but its size does not change.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        if layer.is_sliding and layer.cumulative_length >= layer.sliding_window:
            layer.cumulative_length -= 1
            companion = getattr(layer, "companion", None)  # the position cache of a ``small`` layer
            if companion is not None:
                companion.cumulative_length -= 1
        elif isinstance(layer, GrowingLayer):
            layer.forget(1)
        else:
            layer.crop(-1)


@contextlib.contextmanager
def watched_attention(model: PreTrainedModel, before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """Call ``before`` and ``after`` around every forward of the model's attention modules."""
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
