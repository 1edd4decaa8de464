"""The shapes that a model's layers may have before a budget sizes them: uniform, OpenELM's, and planned.

A scheme says, layer by layer, how heads and dimensions stand to each other; one number, the *scale*, makes all of
them larger or smaller, and ``scratch_fit`` finds the largest scale that a budget allows. At scale 1 the uniform
scheme has H d = hidden.

uniform           every layer has the same heads and dimensions.
openelm           heads and MLP width grow linearly from the first layer to the last (OpenELM, arXiv 2404.14619:
                  heads from 0.5 to 1 times the uniform number, MLP from 0.5 to 4 times hidden, the latter scaled to
                  the budget here); the head dimension is one for all.
planned           the rules that are named in ``RULES_OF``, or evidence of an audit in place of them.
planned-heads, planned-both
                  the source paper's rule alone and on top, for comparison.
uniform-heads     twice the heads at half the dimension in every layer, to tell early heads from more heads.
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
"""Width of the last layer's queries and keys over the first's, without an audit."""
OPENELM_HEADS = (0.5, 1.0)
OPENELM_MLP = (0.5, 4.0)
RULES = {
    "late-keys": "queries and keys narrow linearly, to half in the last layer: in an audited model later keys need "
    "fewer directions, values do not (docs/scratch.md)",
    "early-heads": "the first third has twice the heads at half the dimension: early layers trade head dimension for "
    "heads (the second source paper's claim; trained models show no gain, docs/scratch.md)",
}
"""Rules of the planned schemes: what they do, and on what evidence."""
RULES_OF: dict[str, tuple[str, ...]] = {
    "planned": ("late-keys",),
    "planned-heads": ("early-heads",),
    "planned-both": ("early-heads", "late-keys"),
}


def rules_of(scheme: str, audited: bool = False) -> dict[str, str]:
    """The rules that shape a scheme, in words; none for the baselines, nor where an audit takes their place."""
    return {} if audited else {name: RULES[name] for name in RULES_OF.get(scheme, ())}


@dataclass(frozen=True)
class Base:
    """The uniform layer that every scheme starts from."""

    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads of a key-value head."""
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True)
class Heads:
    """Attention of one layer at some scale."""

    n_heads: int
    n_kv_heads: int
    qk_dim: int
    v_dim: int


@dataclass(frozen=True)
class Shape:
    """A scheme for one model. ``at(scale)``: every layer's heads. mlp: MLP widths relative to each other.
    by_layer: single layers may be widened to use up a budget; ``False``: only all together."""

    at: Callable[[float], list[Heads]]
    mlp: tuple[float, ...]
    reasons: tuple[str, ...]
    by_layer: bool


def shape(scheme: str, layers: int, base: Base, evidence: Evidence | None = None) -> Shape:
    """The scheme by name. Raises HeadcountError for an unknown one and for evidence that it has no use for."""
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
    """Numbers from the first of ``ends`` to the second, one a layer; their mean where there is one layer.

    >>> ramp((0.5, 1.0), 3)
    [0.5, 0.75, 1.0]
    """
    if layers == 1:
        return [sum(ends) / 2]
    return [ends[0] + (ends[1] - ends[0]) * i / (layers - 1) for i in range(layers)]


def even(width: float) -> int:
    """The nearest even number, at least 2: the rotary embedding turns pairs.

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
        return [Heads(base.group * own, own, base.head_dim, base.head_dim) for own in kv]

    reasons = tuple(
        f"openelm (arXiv 2404.14619): heads {heads:.2f} of the base, MLP {mlp:.2f} times hidden before it is scaled"
        for heads, mlp in zip(parts, ramp(OPENELM_MLP, layers), strict=True)
    )
    return Shape(at, tuple(ramp(OPENELM_MLP, layers)), reasons, by_layer=False)


def spread(wanted: Sequence[float]) -> list[int]:
    """Whole numbers, at least 1, near ``wanted``, with the sum nearest to theirs (largest remainders).

    >>> spread([2.0, 2.4, 2.8, 3.2, 3.6])
    [2, 2, 3, 3, 4]
    """
    found = [max(1, math.floor(number)) for number in wanted]
    left = math.floor(sum(wanted) + 1e-9) - sum(found)
    order = sorted(range(len(wanted)), key=lambda i: (found[i] - wanted[i], -i))
    for i in order[: max(0, left)]:
        found[i] += 1
    return found


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
    """Dimensions by shares of the base's; ``split`` divides them among that many times the heads."""

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
