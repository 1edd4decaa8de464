"""What the clients of trimmed models are compared with: the model's own forward on whole sequences without a cache."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from conftest import tiny_model, tiny_tokens

import headcount


@cache
def trimmed(family: str, form: str, multiple: int = 4) -> Any:
    """A trimmed tiny model at half its cache; not to be changed (see ``fresh``)."""
    model = tiny_model(family)
    audit = headcount.audit(model, tiny_tokens(40), metric="output", matmul_dtype="model")
    plan = headcount.plan(audit, cache=0.5, form=form, multiple=multiple)
    return headcount.trim(model, plan, repair_output=False)


def fresh(family: str, form: str) -> Any:
    """A copy that may be changed."""
    return copy.deepcopy(trimmed(family, form))


@dataclass(frozen=True)
class Pair:
    """What a client gave and what it had to give, tensors of one shape."""

    got: torch.Tensor
    wanted: torch.Tensor


def uncached(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, vocabulary) of whole sequences without a cache."""
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def in_pieces(model: Any, ids: torch.Tensor, held: Any, sizes: tuple[int, ...]) -> torch.Tensor:
    """Logits of a sequence that is fed piece by piece through a cache."""
    parts, start = [], 0
    with torch.no_grad():
        for size in sizes:
            parts.append(model(ids[:, start : start + size], past_key_values=held, use_cache=True).logits)
            start += size
    return torch.cat(parts, 1)
