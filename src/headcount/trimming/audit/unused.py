"""Unused layers: layers whose keys or values do not affect the model's output."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from headcount.pretrained.families import Projections
from headcount.trimming.audit.schema import UnusedSide
from headcount.trimming.audit.spectra import is_constant


def unused_sides(moments: Mapping[str, torch.Tensor], layer: int, weights: Projections) -> tuple[UnusedSide, ...]:
    """The sides of one layer that do not affect the model's output on the measured text.

    With attention weights p_ij that sum to one, o_i = sum_j p_ij v_j. Values are unused if they are the same for
    every token (o_i is then that vector for any weights) or if W_o is zero. Keys are unused if the values are, if the
    keys after any rotation are the same for every token (p_ij is then uniform over the visible tokens), or if W_q and
    its bias are zero.

    Args:
        moments: sums by name, as returned by ``SideMoments``. Only gradient-free sums are used, so all metrics agree.
        layer: the layer's index.
        weights: its projections.
    """
    prefix = f"layers.{layer}"

    def constant(side: str) -> bool:
        count = moments[f"{prefix}.{side}.count"]
        return is_constant(moments[f"{prefix}.{side}.mean"] / count, moments[f"{prefix}.{side}.C"] / count)

    if constant("values") or not bool(weights.o.any()):
        return ("keys", "values")
    seen = "rotated_keys" if f"{prefix}.rotated_keys.count" in moments else "keys"
    no_queries = not bool(weights.q.any()) and (weights.q_bias is None or not bool(weights.q_bias.any()))
    return ("keys",) if no_queries or constant(seen) else ()


def unused_words(unused: Mapping[int, tuple[UnusedSide, ...]]) -> str | None:
    """One line about unused layers; ``None`` if all layers are used.

    >>> unused_words({0: (), 1: ("keys", "values"), 2: ("keys",), 3: ("keys",)})
    'Unused attention: layer 1 (its output is the same for every token); keys of layers 2, 3 (they have no effect).'
    """
    whole = [str(layer) for layer, sides in unused.items() if "values" in sides]
    keys = [str(layer) for layer, sides in unused.items() if sides == ("keys",)]
    parts = []
    if whole:
        parts.append(f"layer{'s' * (len(whole) > 1)} {', '.join(whole)} (its output is the same for every token)")
    if keys:
        parts.append(f"keys of layer{'s' * (len(keys) > 1)} {', '.join(keys)} (they have no effect)")
    return f"Unused attention: {'; '.join(parts)}." if parts else None
