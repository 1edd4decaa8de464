"""Relative shapes of a model's layers, before a budget sets their size: uniform, OpenELM's, and planned.

A scheme defines the proportions of heads and dimensions of each layer; a single number, the *scale*, resizes all of
them, and ``headcount.shapes.fit`` finds the largest scale within a budget. At scale 1 the uniform scheme has
H d = hidden.

uniform           every layer has the same heads and dimensions.
openelm           heads and MLP width grow linearly from the first layer to the last (OpenELM, arXiv 2404.14619:
                  heads from 0.5 to 1 times the uniform number, MLP from 0.5 to 4 times hidden, the latter scaled to
                  the budget here); all layers share one head dimension.
planned           the rules listed in ``RULES_OF``, or the evidence of an audit instead.
planned-heads, planned-both
                  the source paper's rule alone and in addition, for comparison.
uniform-heads     twice the heads at half the dimension in every layer, to separate early heads from more heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from headcount.core.errors import HeadcountError
from headcount.shapes.evidence import Evidence

Scheme = Literal["planned", "uniform", "openelm", "planned-heads", "planned-both", "uniform-heads"]
SCHEMES: tuple[str, ...] = get_args(Scheme)

LAST_KEYS = 0.5
"""Ratio of the query/key width of the last layer to that of the first, without an audit."""
OPENELM_HEADS = (0.5, 1.0)
OPENELM_MLP = (0.5, 4.0)
RULES = {
    "late-keys": "queries and keys narrow linearly, to half in the last layer: in an audited model later keys need "
    "fewer directions, values do not (docs/scratch.md)",
    "early-heads": "the first third has twice the heads at half the dimension: early layers trade head dimension for "
    "heads (the second source paper's claim; trained models show no gain, docs/scratch.md)",
}
"""Rules of the planned schemes: their effect and the evidence for them."""
RULES_OF: dict[str, tuple[str, ...]] = {
    "planned": ("late-keys",),
    "planned-heads": ("early-heads",),
    "planned-both": ("early-heads", "late-keys"),
}


def rules_of(scheme: str, audited: bool = False) -> dict[str, str]:
    """The rules of a scheme, in words; empty for baselines and where an audit replaces the rules."""
    return {} if audited else {name: RULES[name] for name in RULES_OF.get(scheme, ())}


@dataclass(frozen=True)
class Base:
    """The uniform layer from which every scheme starts."""

    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True)
class Heads:
    """Attention shape of one layer at a given scale."""

    n_heads: int
    n_kv_heads: int
    qk_dim: int
    v_dim: int


@dataclass(frozen=True)
class Shape:
    """A scheme for one model. ``at(scale)``: the heads of every layer. mlp: relative MLP widths.
    by_layer: whether single layers may be widened to use up a budget, rather than only all layers together."""

    at: Callable[[float], list[Heads]]
    mlp: tuple[float, ...]
    reasons: tuple[str, ...]
    by_layer: bool


def shape(scheme: str, layers: int, base: Base, evidence: Evidence | None = None) -> Shape:
    """The scheme by name. Raises HeadcountError for an unknown scheme or one that does not use evidence."""
    if scheme not in SCHEMES:
        raise HeadcountError(f"there is no scheme {scheme!r}", fix=f"choose one of {', '.join(SCHEMES)}")
    if evidence is not None and scheme != "planned":
        raise HeadcountError(f"the scheme {scheme} takes no audit", fix="leave out --from, or use --scheme planned")
    if scheme in ("uniform", "uniform-heads"):
        return _uniform(layers, base, 2 if scheme == "uniform-heads" else 1)
    if scheme == "openelm":
        return _openelm(layers, base)
    return _audited(base, evidence) if evidence is not None else _ruled(scheme, layers, base)


def ramp(ends: tuple[float, float], layers: int) -> list[float]:
    """Linearly spaced numbers between ``ends``, one per layer; their mean for a single layer.

    >>> ramp((0.5, 1.0), 3)
    [0.5, 0.75, 1.0]
    """
    if layers == 1:
        return [sum(ends) / 2]
    return [ends[0] + (ends[1] - ends[0]) * i / (layers - 1) for i in range(layers)]


def even(width: float) -> int:
    """The nearest even number, at least 2: the rotary embedding rotates pairs.

    >>> even(15.2), even(0.3)
    (16, 2)
    """
    return max(2, 2 * math.floor(width / 2 + 0.5))


def _uniform(layers: int, base: Base, split: int) -> Shape:
    def at(scale: float) -> list[Heads]:
        dim = even(scale * base.head_dim / split)
        return [Heads(split * base.n_heads, split * base.n_kv_heads, dim, dim)] * layers

    return Shape(at, (1.0,) * layers, ("uniform: the same in every layer",) * layers, by_layer=False)


def _openelm(layers: int, base: Base) -> Shape:
    parts = ramp(OPENELM_HEADS, layers)

    def at(scale: float) -> list[Heads]:
        kv = spread([scale * part * base.n_kv_heads for part in parts])
        return [Heads(base.group * n_kv_heads, n_kv_heads, base.head_dim, base.head_dim) for n_kv_heads in kv]

    reasons = tuple(
        f"openelm (arXiv 2404.14619): heads {heads:.2f} of the base, MLP {mlp:.2f} times hidden before it is scaled"
        for heads, mlp in zip(parts, ramp(OPENELM_MLP, layers), strict=True)
    )
    return Shape(at, tuple(ramp(OPENELM_MLP, layers)), reasons, by_layer=False)


def spread(targets: Sequence[float]) -> list[int]:
    """Integers of at least 1 near ``targets``, whose sum is nearest to the sum of the targets (largest remainders).

    >>> spread([2.0, 2.4, 2.8, 3.2, 3.6])
    [2, 2, 3, 3, 4]
    """
    counts = [max(1, math.floor(number)) for number in targets]
    left = math.floor(sum(targets) + 1e-9) - sum(counts)
    order = sorted(range(len(targets)), key=lambda i: (counts[i] - targets[i], -i))
    for i in order[: max(0, left)]:
        counts[i] += 1
    return counts


def _ruled(scheme: str, layers: int, base: Base) -> Shape:
    rules = RULES_OF[scheme]
    keys = ramp((1.0, LAST_KEYS), layers) if "late-keys" in rules and layers > 1 else [1.0] * layers
    early = math.ceil(layers / 3) if "early-heads" in rules else 0
    reasons = []
    for i in range(layers):
        said = ["early-heads: twice the heads at half the dimension"] if i < early else []
        if "late-keys" in rules:
            said.append(f"late-keys: queries and keys {keys[i]:.2f} of the first layer's width")
        reasons.append("; ".join(said) or "early-heads: as uniform behind the first third")
    split = [2 if i < early else 1 for i in range(layers)]
    return _by_shares(base, keys, [1.0] * layers, split, tuple(reasons))


def _audited(base: Base, evidence: Evidence) -> Shape:
    reasons = tuple(
        f"audit: {said}; so queries and keys {k:.2f}, values {v:.2f} of the widest layer's width"
        for said, k, v in zip(evidence.said, evidence.keys, evidence.values, strict=True)
    )
    return _by_shares(base, evidence.keys, evidence.values, [1] * len(reasons), reasons)


def _by_shares(
    base: Base, keys: Sequence[float], values: Sequence[float], split: Sequence[int], reasons: tuple[str, ...]
) -> Shape:
    """Dimensions as shares of the base dimensions; ``split``: factor by which heads multiply and dimensions shrink."""

    def at(scale: float) -> list[Heads]:
        return [
            Heads(
                n * base.n_heads,
                n * base.n_kv_heads,
                even(scale * k * base.head_dim / n),
                even(scale * v * base.head_dim / n),
            )
            for k, v, n in zip(keys, values, split, strict=True)
        ]

    return Shape(at, (1.0,) * len(reasons), reasons, by_layer=True)
