"""The batch and context of decode measurements, and whether all caches of that size fit in memory together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from headcount.core.errors import HeadcountError
from headcount.core.memory import available_bytes
from headcount.core.spec import ModelSpec
from headcount.trimming.evaluate.paths import Way, ways_of

MEMORY_SHARE = 0.8
"""Fraction of the available memory that caches may use."""
SMALLEST_CONTEXT = 16
RESERVE = 1.5
"""Capacity of a cache that grows in place, relative to its contents."""
REBUILT_COPIES = 4
"""Copies of the rebuilt keys that a step may hold in memory while rotating them."""


@dataclass(frozen=True)
class Size:
    """Batch rows, and cached tokens per row.

    >>> Size.parse("8x4096"), str(Size(1, 128))
    (Size(batch=8, context=4096), '1x128')
    """

    batch: int
    context: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.context}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read ``BATCHxCONTEXT``."""
        match = re.fullmatch(r"\s*(\d{1,9})\s*[xX]\s*(\d{1,9})\s*", text)
        if match is None:
            raise HeadcountError(f"decode size {text!r} is not BATCHxCONTEXT", fix="write it like 8x4096")
        size = cls(int(match[1]), int(match[2]))
        if size.batch < 1 or size.context < 2:
            raise HeadcountError(
                f"decode size {text!r} has nothing to measure",
                fix="use a batch of 1 or more and a context of 2 or more",
            )
        return size


@dataclass(frozen=True)
class Subject:
    """A model to measure."""

    name: str
    model: PreTrainedModel
    spec: ModelSpec


def cache_estimate_bytes(subject: Subject, way: Way, size: Size) -> int:
    """Upper bound on the memory of a filled cache and one step: reserve, copies, scores, rebuilt keys."""
    item = torch.empty((), dtype=subject.model.dtype).element_size()
    held, step = 0.0, 0.0
    for layer in subject.spec.layers:
        tokens = size.batch * min(size.context + 1, layer.window or size.context + 1)
        cached = tokens * layer.cache_numbers_per_token
        held += cached * (RESERVE if way != "stock" and layer.window is None else 1)
        scores = 3 * tokens * layer.n_heads
        rebuilt = REBUILT_COPIES * tokens * layer.rebuilt_numbers_per_token
        step = max(step, cached + scores + rebuilt)
    return int((held + step) * item)


def fitting_size(subjects: Sequence[Subject], asked: Size) -> tuple[Size, str | None]:
    """The largest size up to ``asked`` at which all caches fit in memory together, and the reason for any reduction.

    The context is limited by the models' maximum positions; if memory is short, first the batch is halved, then the
    context.
    """
    context, reasons = asked.context, []
    for subject in subjects:
        positions = getattr(subject.model.config, "max_position_embeddings", None)
        if positions is not None and positions - 1 < context:
            context = positions - 1
            reasons = [f"{subject.name} has {positions} positions"]
    size = Size(asked.batch, context)
    devices = {subject.model.device for subject in subjects}
    for device in sorted(devices, key=str):
        on_device = [subject for subject in subjects if subject.model.device == device]
        free = available_bytes(device)

        def needed(at: Size, on_device: list[Subject] = on_device) -> int:
            return sum(cache_estimate_bytes(s, way, at) for s in on_device for way in ways_of(s.model) if way != "own")

        before = needed(size)
        while needed(size) > MEMORY_SHARE * free:
            size = Size(size.batch // 2, size.context) if size.batch > 1 else Size(1, size.context // 2)
            if size.context < SMALLEST_CONTEXT:
                raise HeadcountError(
                    f"no memory to measure decoding: {free / 2**20:,.0f} MiB are free on {device}",
                    fix="free some, or measure without --decode",
                )
        if needed(size) < before:
            reasons.append(
                f"caches would take {before / 2**20:,.0f} MiB at once, {free / 2**20:,.0f} MiB are free on {device}"
            )
    return size, f"{asked} does not fit ({'; '.join(reasons)}): {size} was taken" if reasons else None
