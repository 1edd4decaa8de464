"""Observing a model's attention while it runs, without changing the model.

transformers selects attention functions by name. ``observed_attention`` selects headcount's function inside a
``with`` block: it computes the same attention and passes queries, keys and values to an observer, which may
replace them. The name is registered once, which does not affect models that do not select it; the model's setting
is restored in ``finally``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from headcount.pretrained.running.short_attention import is_short, short_attention

NAME = "headcount_observed"


@dataclass
class AttentionCall:
    """One layer's attention on one batch.

    q (batch, n_heads, tokens, d); k (batch, n_kv_heads, tokens, d), after the rotary embedding;
    v (batch, n_kv_heads, tokens, e); ``mask`` is boolean (True: visible), additive, or ``None`` (causal if
    the module is); cos and sin (batch or 1, tokens, rotary_dim), ``None`` without a rotary embedding.
    """

    module: nn.Module
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    rotation: tuple[torch.Tensor, torch.Tensor] | None


Observer = Callable[[AttentionCall], None]
_observer: ContextVar[Observer | None] = ContextVar("headcount_observer", default=None)
_rotation: ContextVar[tuple[torch.Tensor, torch.Tensor] | None] = ContextVar("headcount_rotation", default=None)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = AttentionCall(module, query, key, value, attention_mask, scaling, _rotation.get())
    observer = _observer.get()
    if observer is not None:
        observer(call)
    causal = attention_mask is None and query.shape[2] > 1 and bool(getattr(module, "is_causal", True))
    if is_short(call.q, call.k, attention_mask):
        short = short_attention(call.q, call.k, call.v, attention_mask, causal, scaling)
        return short.transpose(1, 2).contiguous(), None
    out = F.scaled_dot_product_attention(
        call.q,
        call.k,
        call.v,
        attn_mask=attention_mask,
        is_causal=causal,
        scale=scaling,
        enable_gqa=call.q.shape[1] != call.k.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def _register() -> None:
    if NAME not in AttentionInterface._global_mapping:
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def our_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let ``model`` use headcount's attention function inside the ``with`` block: the same values, and on a CPU in
    bfloat16 at short contexts about half the time of torch's fused attention (``short_attention``)."""
    _register()
    chosen = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = chosen


@contextlib.contextmanager
def observed_attention(model: PreTrainedModel, attentions: list[nn.Module], observer: Observer) -> Iterator[None]:
    """Call ``observer`` for every call of the given attention modules inside the ``with`` block."""

    def note_rotation(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        _rotation.set(kwargs.get("position_embeddings"))

    handles = [a.register_forward_pre_hook(note_rotation, with_kwargs=True) for a in attentions]
    token = _observer.set(observer)
    try:
        with our_attention(model):
            yield
    finally:
        _observer.reset(token)
        _rotation.set(None)
        for handle in handles:
            handle.remove()


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(a, b) -> (-b, a) on the two halves of the last dimension."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def unrotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Undo the rotary embedding: keys as they were before it (and gradients, since it is a scaled rotation).

    Each pair is rotated by cos - i sin instead of cos + i sin. Some long-context variants scale cos and sin by
    a factor a; the result is then a^2 x (``rotation_gain``). Shapes: x (batch, heads, tokens, d).
    """
    if rotation is None:
        return x
    cos, sin = (part.unsqueeze(1).to(x.dtype) for part in rotation)
    width = cos.shape[-1]
    turned = x[..., :width] * cos - rotate_half(x[..., :width]) * sin
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)


def rotation_gain(rotation: tuple[torch.Tensor, torch.Tensor] | None) -> float:
    """a^2 of ``unrotate``: cos^2 + sin^2, which is 1 except in long-context variants (YaRN, longrope)."""
    if rotation is None:
        return 1.0
    cos, sin = rotation
    return float(cos[0, 0, 0]) ** 2 + float(sin[0, 0, 0]) ** 2
