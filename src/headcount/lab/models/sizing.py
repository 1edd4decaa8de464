"""Scale models to a given number of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache

from headcount.core.errors import HeadcountError
from headcount.lab.models.base import ModelConfig, count
from headcount.lab.models.reading import Reading

TOLERANCE = 0.05
"""Largest relative deviation of the count from the target."""
_LARGEST = 2**16


@lru_cache(maxsize=256)
def sized(config: ModelConfig, reading: Reading, target: int) -> ModelConfig:
    """``config`` with the ``width`` and ``inner`` whose parameter count is nearest to ``target``.

    The width is chosen first, with the default ``inner``; then ``inner`` is adjusted by up to half to come
    closer. The count increases with either size, so each search is a bisection.

    Raises HeadcountError if no count is within ``TOLERANCE``.

    >>> from headcount import tasks
    >>> from headcount.lab import models
    >>> reading = Reading.of(tasks.get("match3", tokens=8))
    >>> found = sized(models.config("lstm"), reading, 12_000)
    >>> abs(models.count(found, reading) - 12_000) <= 240
    True
    """
    free = dataclasses.replace(config, inner=None, width=config.step)

    def at(width: int, inner: int | None = None) -> ModelConfig:
        return dataclasses.replace(free, width=width, inner=inner)

    best: tuple[int, ModelConfig] | None = None
    coarse = _below(lambda k: count(at(k * config.step), reading), target, 1, _LARGEST)
    for k in (coarse, coarse + 1):
        width = k * config.step
        middle = free.default_inner(width)
        low, high = max(1, middle // 2), middle + max(1, middle // 2)
        fine = _below(lambda inner, w=width: count(at(w, inner), reading), target, low, high)  # type: ignore[misc]
        for inner in (fine, min(fine + 1, high), middle):
            candidate = at(width, None if inner == middle else inner)
            off = abs(count(candidate, reading) - target)
            if best is None or off < best[0]:
                best = off, candidate
    assert best is not None
    if best[0] > TOLERANCE * target:
        nearest = count(best[1], reading)
        raise HeadcountError(
            f"no width gives {config.name} {target:,} parameters within {TOLERANCE:.0%}: the nearest has {nearest:,}",
            fix=f"ask for --params {nearest} or more",
        )
    return best[1]


def _below(size: Callable[[int], int], target: int, low: int, high: int) -> int:
    """The largest k in [low, high] with ``size(k) <= target``; ``low`` if there is none."""
    step = low
    while step < high and size(min(2 * step, high)) <= target:
        step = min(2 * step, high)
    high = min(2 * step, high)
    low = step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= target else (low, middle - 1)
    return low
