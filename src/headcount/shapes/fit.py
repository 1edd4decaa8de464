"""Fitting a shape to budgets: attention to the cache and FLOP budgets, MLPs to the parameter budget.

Attention takes the largest scale that its budgets allow, or scale 1 (H d = hidden) if there are none. The remaining
parameters go to the MLPs, with equal widths or in OpenELM's proportions. If an MLP would be narrower than ``hidden``,
attention shrinks until it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from headcount.core.errors import HeadcountError
from headcount.core.spec import DTYPE_BYTES
from headcount.shapes.decoder import DecoderLayer, DecoderSpec
from headcount.shapes.rules import Heads, Shape

GRID = 128
"""Scales are multiples of 1/GRID."""
LARGEST = 64 * GRID
MULTIPLES = (8, 4, 2, 1)
"""MLP widths are multiples of the first of these for which the model is within ``CLOSE`` of the budget."""
CLOSE = 0.01
PROMISED = 0.03
"""Maximum relative deviation of the parameter count from its budget."""
DEFAULT_MLP = 8 / 3
"""Ratio of MLP width to hidden size without a parameter budget, as in Llama."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that are fixed by the user."""

    layers: int
    hidden: int
    vocab: int
    context: int
    tied: bool = True


@dataclass(frozen=True)
class Budget:
    """Upper limits: parameters of the whole model, cache bytes per token in ``dtype``, attention FLOPs of one
    decoding step at the full context. ``None``: no limit."""

    params: int | None = None
    cache_bytes: int | None = None
    flops: int | None = None
    dtype: str = "float32"


def fit(shape: Shape, sizes: Sizes, budget: Budget, multiples: tuple[int, ...] = MULTIPLES) -> DecoderSpec:
    """The largest model of a shape within its budgets.

    Raises HeadcountError for budgets that cannot be met, stating the smallest feasible one, and for a parameter budget
    that is not met within ``PROMISED``.
    """
    limited = budget.cache_bytes is not None or budget.flops is not None
    heads = _largest(shape, lambda candidate: _meets(candidate, sizes, budget), LARGEST) if limited else shape.at(1.0)
    if heads is None:
        raise _too_small(_spec(shape, sizes, shape.at(0.0), [1] * sizes.layers), sizes, budget)
    if limited and shape.by_layer:
        heads = _filled(heads, shape, lambda candidate: _meets(candidate, sizes, budget))
    if budget.params is None:
        return _spec(shape, sizes, heads, _widths(shape, sizes, DEFAULT_MLP * sizes.hidden, 8))
    params = budget.params
    floor = _widths(shape, sizes, sizes.hidden, 1)
    if _spec(shape, sizes, heads, floor).params > params:
        top = GRID if not limited else LARGEST

        def allowed(candidate: list[Heads]) -> bool:
            return _spec(shape, sizes, candidate, floor).params <= params and _meets(candidate, sizes, budget)

        heads = _largest(shape, allowed, top) or shape.at(0.0)
    spec = None
    for multiple in multiples:
        spec = _with_mlps(shape, sizes, heads, params, multiple)
        if spec is not None and spec.params >= (1 - CLOSE) * params:
            break
    if spec is None:
        smallest = _spec(shape, sizes, shape.at(0.0), [1] * sizes.layers).params
        raise HeadcountError(
            f"{params:,} parameters are too few for {sizes.layers} layers of {sizes.hidden} and {sizes.vocab:,} tokens",
            fix=f"the smallest budget is {smallest:,}",
        )
    if spec.params < (1 - PROMISED) * params:
        raise HeadcountError(
            f"no widths come within {PROMISED:.0%} of {params:,} parameters: the nearest has {spec.params:,}",
            fix=f"ask for --params {spec.params}",
        )
    return spec


def _meets(heads: list[Heads], sizes: Sizes, budget: Budget) -> bool:
    """Whether attention is within the cache and FLOP budgets."""
    cache = sum(layer.n_kv_heads * (layer.qk_dim + layer.v_dim) for layer in heads) * DTYPE_BYTES[budget.dtype]
    if budget.cache_bytes is not None and cache > budget.cache_bytes:
        return False
    return budget.flops is None or attention_flops(heads, sizes) <= budget.flops


def attention_flops(heads: list[Heads], sizes: Sizes) -> int:
    """FLOPs of all attention layers in one decoding step at the full context (see ``LayerSpec``)."""
    return _plain(heads, sizes).attention.attention_flops_per_token(sizes.context)


def _largest(shape: Shape, allowed: Callable[[list[Heads]], bool], top: int) -> list[Heads] | None:
    """Heads at the largest allowed scale up to top/GRID; costs increase with the scale."""
    if not allowed(shape.at(0.0)):
        return None
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if allowed(shape.at(middle / GRID)) else (low, middle - 1)
    return shape.at(low / GRID)


def _filled(heads: list[Heads], shape: Shape, allowed: Callable[[list[Heads]], bool]) -> list[Heads]:
    """Widen single layers by two dimensions where allowed: values before keys, later layers before earlier ones.

    The budget left at the largest scale is less than two dimensions for every layer and side.
    """
    heads = list(heads)
    for side in ("v_dim", "qk_dim"):
        for i in reversed(range(len(heads))):
            layer = heads[i]
            wider = Heads(
                layer.n_heads,
                layer.n_kv_heads,
                layer.qk_dim + 2 * (side == "qk_dim"),
                layer.v_dim + 2 * (side == "v_dim"),
            )
            changed = [*heads[:i], wider, *heads[i + 1 :]]
            if allowed(changed):
                heads = changed
    return heads


def _widths(shape: Shape, sizes: Sizes, mean: float, multiple: int) -> list[int]:
    """MLP widths in the shape's proportions with approximately this mean, rounded down to multiples of ``multiple``."""
    average = sum(shape.mlp) / len(shape.mlp)
    return [max(multiple, multiple * math.floor(mean * part / average / multiple + 1e-9)) for part in shape.mlp]


def _with_mlps(shape: Shape, sizes: Sizes, heads: list[Heads], params: int, multiple: int) -> DecoderSpec | None:
    """The model with the widest MLPs within the budget; ``None`` if even the narrowest exceed it."""

    def at(step: int) -> DecoderSpec:
        return _spec(shape, sizes, heads, _widths(shape, sizes, step * multiple / 16, multiple))

    if at(1).params > params:
        return None
    # At the upper limit the MLPs alone use all parameters; a step is 1/16 of a multiple, for OpenELM's widths.
    low, high = 1, 16 + 16 * params // (3 * sizes.hidden * sizes.layers * multiple)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if at(middle).params <= params else (low, middle - 1)
    return at(low)


def _spec(shape: Shape, sizes: Sizes, heads: list[Heads], widths: list[int]) -> DecoderSpec:
    layers = [
        DecoderLayer(
            n_heads=layer.n_heads,
            n_kv_heads=layer.n_kv_heads,
            qk_dim=layer.qk_dim,
            v_dim=layer.v_dim,
            intermediate_size=width,
            reason=reason,
        )
        for layer, width, reason in zip(heads, widths, shape.reasons, strict=True)
    ]
    return DecoderSpec(
        vocab=sizes.vocab, hidden=sizes.hidden, context=sizes.context, tied=sizes.tied, layers=tuple(layers)
    )


def _plain(heads: list[Heads], sizes: Sizes) -> DecoderSpec:
    """A model with these heads and MLPs of width 1, for counting attention."""
    bare = Shape(lambda _: heads, (1.0,) * len(heads), ("",) * len(heads), by_layer=False)
    return _spec(bare, sizes, heads, [1] * len(heads))


def _too_small(smallest: DecoderSpec, sizes: Sizes, budget: Budget) -> HeadcountError:
    """The error for an infeasible attention budget, with the smallest feasible one."""
    cache = smallest.cache_bytes_per_token(budget.dtype)
    if budget.cache_bytes is not None and cache > budget.cache_bytes:
        return HeadcountError(
            f"{budget.cache_bytes:,} cache bytes a token are too few for {sizes.layers} layers",
            fix=f"the smallest budget is {cache:,}",
        )
    flops = smallest.attention.attention_flops_per_token(sizes.context)
    return HeadcountError(
        f"{budget.flops:,} attention FLOPs a token are too few for {sizes.layers} layers of {sizes.hidden} at a "
        f"context of {sizes.context:,}",
        fix=f"the smallest budget is {flops:,}",
    )
