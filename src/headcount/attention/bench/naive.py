"""Naive implementations of the operators: all logits in memory, einsum, softmax, einsum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LETTERS = "jklm"
"""Axes of a tuple of keys; b, h, i, c are batch, heads, queries and channels."""


def naive(name: str, sides: int, tokens: int, causal: bool, window: Sequence[int] | None) -> Callable[..., Tensor]:
    """The operator ``name`` on tuples of ``sides`` keys, as a function of its tensors as positional arguments."""
    letters = LETTERS[:sides]

    def masked(logits: Tensor) -> Tensor:
        if not causal and window is None:
            return logits
        place = torch.arange(tokens)
        for side in range(sides):
            distance = place[:, None] - place
            outside = distance < 0
            if window is not None:
                outside = outside | (distance >= window[side])
            axes = [tokens] + [tokens if s == side else 1 for s in range(sides)]
            logits = logits.masked_fill(outside.reshape(axes), -torch.inf)
        return logits

    def product(q: Tensor, *rest: Tensor, **_: Any) -> Tensor:
        keys = ",".join(f"bh{letter}c" for letter in letters)
        logits = torch.einsum(f"bhic,{keys}->bhi{letters}", q, *rest[:sides])
        return _weigh(masked(logits * q.shape[-1] ** -0.5), letters, rest[sides:])

    def triangle(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, *values: Tensor, **_: Any) -> Tensor:
        first, second = q1 @ k1.mT, q2 @ k2.mT
        logits = first[..., :, None] + (k1 @ k2.mT)[..., None, :, :] + second[..., None, :]
        return _weigh(masked(logits * q1.shape[-1] ** -0.5), letters, values)

    def chain(q: Tensor, k1: Tensor, k2: Tensor, *values: Tensor, **_: Any) -> Tensor:
        logits = (q @ k1.mT)[..., :, None] + (k1 @ k2.mT)[..., None, :, :]
        return _weigh(logits * q.shape[-1] ** -0.5, letters, values)

    def paths(q: Tensor, k: Tensor, v1: Tensor, v2: Tensor, **_: Any) -> Tensor:
        weights = (torch.einsum("bhilc,bhljc->bhijl", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        return torch.einsum("bhijl,bhilc,bhljc->bhijc", weights, v1, v2)

    others: dict[str, Callable[..., Tensor]] = {"strassen": triangle, "tree": chain, "triangular": paths}
    return others.get(name, product)


def _weigh(logits: Tensor, letters: str, values: Sequence[Tensor]) -> Tensor:
    weights = logits.flatten(3).softmax(-1).reshape(logits.shape)
    factors = ",".join(f"bh{letter}c" for letter in letters)
    return torch.einsum(f"bhi{letters},{factors}->bhic", weights, *values)
