"""Cache layers of trimmed models. This file travels with the checkpoint; it needs torch and transformers only.

Two things are added to transformers' own layers, whatever their kind (growing, sliding, static, quantised):

- ``GrowingLayer`` appends in place instead of copying all that is cached at every step.
- Layers that cache keys *before* the rotary embedding (the ``small`` form) also need each cached token's position.
  ``record_positions`` keeps them in a companion: a second layer of the same kind that holds one int32 a token and
  goes through the same cropping, reordering and sliding. The first layer of each kind has one, for all layers of it.

Letters in shapes: B batch, T new tokens, S cached and new tokens.
"""

import copy
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)


class Buffer:
    """Memory for (B, heads, capacity, width), of which the first ``used`` tokens are written.

    Several layers may hold a front part of one buffer (a shallow copy of a cache, a snapshot of its tensors). Only a
    layer that holds *all* written tokens may write behind them; any other one moves to a buffer of its own first.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.used = 0


class GrowingLayer(DynamicLayer):
    """A cache layer that grows by doubling.

    The stock layer copies all that is cached at every step; this one writes the new tokens behind the old ones,
    in a buffer that is moved only when it is full. What is written once is never written over, so copies of the
    layer and tensors taken from it stay as they are, like those of a stock layer.
    """

    _key_buffer: Buffer | None = None
    _value_buffer: Buffer | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, T, width) keys and values and return all of them."""
        if torch.compiler.is_compiling() or (
            torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad)
        ):
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self.get_seq_length()
        self.keys, self._key_buffer = _append(self._key_buffer, self.keys, key_states, seen)
        self.values, self._value_buffer = _append(self._value_buffer, self.values, value_states, seen)
        return self.keys, self.values

    def forget(self, tokens: int) -> None:
        """Drop the last ``tokens`` in place: what is appended next is written over them, also in copies.

        ``crop`` leaves copies alone, and so costs a move of the buffer at the next step.
        """
        for name, buffer in (("keys", self._key_buffer), ("values", self._value_buffer)):
            tensor = getattr(self, name)[..., :-tokens, :]
            setattr(self, name, tensor)
            if buffer is not None:
                buffer.used = tensor.shape[-2]

    def reset(self) -> None:
        """Forget everything."""
        self._key_buffer = self._value_buffer = None
        super().reset()


def _append(buffer: Buffer | None, held: Any, new: torch.Tensor, seen: int) -> tuple[torch.Tensor, Buffer]:
    """``held`` (the front of ``buffer``, unless it was replaced) with ``new`` behind it."""
    total = seen + new.shape[-2]
    if (
        buffer is None
        or buffer.used != seen
        or buffer.tensor.shape[-2] < total
        or buffer.tensor.shape[:2] != new.shape[:2]
        or (seen and held.data_ptr() != buffer.tensor.data_ptr())
    ):
        larger = new.new_empty(*new.shape[:-2], max(total + 64, total + total // 2), new.shape[-1])
        if seen:
            larger[..., :seen, :] = held
        buffer = Buffer(larger)
    buffer.tensor[..., seen:total, :] = new
    buffer.used = total
    return buffer.tensor[..., :total, :], buffer


class Positioned:
    """Mixin before a cache layer: ``companion`` keeps the positions of its tokens, through all that is done to it."""

    companion: Any = None
    positions: torch.Tensor | None = None
    """(B, S): positions of the tokens whose keys the last ``update`` returned, slot by slot."""

    def record(self, positions: torch.Tensor) -> None:
        """Append the positions (B, T) of new tokens."""
        states = positions.to(torch.int32)[:, None, :, None]
        self.positions = self.companion.update(states, states[..., :0])[0][:, 0, :, 0]

    def knows_its_tokens(self) -> bool:
        """Whether there is a position for every token that the layer holds: not when it was filled by hand."""
        layer: Any = self
        if self.companion is None:
            return False
        return torch.compiler.is_compiling() or int(self.companion.get_seq_length()) == int(layer.get_seq_length())

    def start(self, first: torch.Tensor) -> None:
        """Make the companion, before or after the layer holds tokens; ``first``: positions (B, T) of the next ones."""
        layer: Any = self
        self.companion = _companion(layer)
        seen = layer.get_seq_length() if layer.is_initialized else 0
        if not torch.compiler.is_compiling() and int(seen) > 0:
            # Filled by somebody else, without positions. Slot numbers are what they are unless rows were padded,
            # and then the next tokens' positions differ from their slots.
            if not bool((first[:, 0] == int(seen)).all()):
                raise ValueError(
                    "the cache holds tokens whose positions were not recorded, and they are not the numbers of their "
                    "slots: fill the cache with this model, or without padding"
                )
            slots = torch.arange(int(seen), device=first.device).expand(len(first), -1)
            self.record(slots)

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Crop the layer and its positions."""
        super().crop(*args, **kwargs)  # type: ignore[misc]
        self._follow("crop", *args, **kwargs)

    def reorder_cache(self, *args: Any, **kwargs: Any) -> None:
        """Reorder the rows of the layer and of its positions."""
        super().reorder_cache(*args, **kwargs)  # type: ignore[misc]
        self._follow("reorder_cache", *args, **kwargs)

    def batch_repeat_interleave(self, *args: Any, **kwargs: Any) -> None:
        """Repeat the rows of the layer and of its positions."""
        super().batch_repeat_interleave(*args, **kwargs)  # type: ignore[misc]
        self._follow("batch_repeat_interleave", *args, **kwargs)

    def batch_select_indices(self, *args: Any, **kwargs: Any) -> None:
        """Choose rows of the layer and of its positions."""
        super().batch_select_indices(*args, **kwargs)  # type: ignore[misc]
        self._follow("batch_select_indices", *args, **kwargs)

    def activate_past_recording(self) -> None:
        """Keep what slides out until the next ``crop``, positions too."""
        super().activate_past_recording()  # type: ignore[misc]
        self._follow("activate_past_recording")

    def forget(self, tokens: int) -> None:
        """Drop the last tokens in place, and their positions."""
        super().forget(tokens)  # type: ignore[misc]
        self._follow("forget", tokens)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()  # type: ignore[misc]
        self._follow("reset")
        self.positions = None

    def _follow(self, what: str, *args: Any, **kwargs: Any) -> None:
        if self.companion is not None:
            getattr(self.companion, what)(*args, **kwargs)

    def __copy__(self) -> "Positioned":
        """A shallow copy has a companion of its own, as it has its own length."""
        new: Positioned = _turned(self, type(self))
        new.companion = copy.copy(self.companion)
        return new


class PositionedGrowingLayer(Positioned, GrowingLayer):
    """A growing layer with positions."""


class PositionedDynamicLayer(Positioned, DynamicLayer):
    """A stock dynamic layer with positions: for caches that move their layers between devices."""


class PositionedSlidingLayer(Positioned, DynamicSlidingWindowLayer):
    """A sliding-window layer with positions."""


class PositionedStaticLayer(Positioned, StaticLayer):
    """A static layer with positions."""


class PositionedStaticSlidingLayer(Positioned, StaticSlidingWindowLayer):
    """A static sliding-window layer with positions."""


POSITIONED: dict[type, type] = {
    DynamicLayer: PositionedGrowingLayer,
    GrowingLayer: PositionedGrowingLayer,
    DynamicSlidingWindowLayer: PositionedSlidingLayer,
    StaticLayer: PositionedStaticLayer,
    StaticSlidingWindowLayer: PositionedStaticSlidingLayer,
}
"""What a layer becomes when positions are recorded with it."""

for _name in ("QuantoQuantizedLayer", "HQQQuantizedLayer", "Fp8QuantizedLayer"):  # by what this transformers has
    if hasattr(cache_utils, _name):
        _kind = getattr(cache_utils, _name)
        POSITIONED[_kind] = globals()[f"Positioned{_name}"] = type(
            f"Positioned{_name}", (Positioned, _kind), {"__module__": __name__, "__doc__": f"{_name} with positions."}
        )


def _turned(layer: Any, kind: type) -> Any:
    """A layer of another kind that holds what ``layer`` holds."""
    new: Any = object.__new__(kind)
    new.__dict__.update(layer.__dict__)
    return new


def _companion(layer: Any) -> Any:
    """An empty layer that holds one number a token where ``layer`` holds keys."""
    if isinstance(layer, StaticSlidingWindowLayer):
        return StaticSlidingWindowLayer(layer.max_cache_len, layer.max_cache_len)
    if isinstance(layer, StaticLayer):
        return StaticLayer(layer.max_cache_len)
    if isinstance(layer, DynamicSlidingWindowLayer):
        sliding = DynamicSlidingWindowLayer(layer.sliding_window)
        sliding.record_past = layer.record_past
        return sliding
    return GrowingLayer()


def prepare(cache: Any, index: int, k_rank: int, v_rank: int) -> Any:
    """The cache's layer ``index``, ready for latents of these ranks; what cannot hold them is refused by name."""
    if not isinstance(cache, Cache) or not hasattr(cache, "layers"):
        raise ValueError(
            f"a model trimmed by headcount cannot use a cache of type {type(cache).__name__}: use DynamicCache, "
            "StaticCache or QuantizedCache"
        )
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    layer: Any = cache.layers[index]
    if type(layer) is DynamicLayer and not layer.is_initialized and not cache.offloading:
        cache.layers[index] = layer = _turned(layer, GrowingLayer)
    group = getattr(layer, "q_group_size", None)
    if group and (k_rank % group or v_rank % group):
        raise ValueError(
            f"layer {index} caches {k_rank} and {v_rank} numbers a token, which groups of {group} do not divide: plan "
            f"with `headcount plan --multiple {group}`, or give the quantised cache a smaller q_group_size"
        )
    keys = layer.keys
    if layer.is_initialized and keys is not None and keys.ndim == 4 and tuple(keys.shape[1::2]) != (1, k_rank):
        raise ValueError(
            f"the cache is laid out for keys of {keys.shape[1]} heads x {keys.shape[3]}, layer {index} of this model "
            f"caches 1 x {k_rank}: it belongs to another model, or to prefix tuning or ExecuTorch, which trimmed "
            "models do not support"
        )
    return layer


def record_positions(cache: Any, index: int, first: int, positions: torch.Tensor) -> None:
    """Before layer ``index`` caches new tokens: keep their positions (B, T), if it is the ``first`` of its kind."""
    if index != first:
        return
    layer: Any = cache.layers[index]
    if not isinstance(layer, Positioned):
        if type(layer) not in POSITIONED:
            raise ValueError(
                f"the small form cannot record positions in cache layers of type {type(layer).__name__}; use "
                "DynamicCache, StaticCache or QuantizedCache, or trim with --form fast"
            )
        stock = cache.offloading and type(layer) is DynamicLayer
        cache.layers[index] = layer = _turned(layer, PositionedDynamicLayer if stock else POSITIONED[type(layer)])
    if not layer.knows_its_tokens():
        layer.start(positions)
    layer.record(positions)
