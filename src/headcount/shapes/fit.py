"""Sizing a shape to budgets: attention to those of the cache and of FLOPs, MLPs to that of parameters.

Attention takes the largest scale that its budgets allow, and scale 1 (H d = hidden) without any. What the budget of
parameters leaves after that goes to the MLPs, one width for all layers or in OpenELM's proportion. Where an MLP
would then be narrower than ``hidden``, attention shrinks until it is not.
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
"""MLP widths are multiples of the first of these that comes within ``CLOSE`` of the budget."""
CLOSE = 0.01
PROMISED = 0.03
"""The parameters are within this of their budget."""
DEFAULT_MLP = 8 / 3
"""MLP width over hidden when there is no budget of parameters: Llama's."""


@dataclass(frozen=True)
class Sizes:
    """What a plan does not choose."""

    layers: int
    hidden: int
    vocab: int
    context: int
    tied: bool = True


@dataclass(frozen=True)
class Budget:
    """At most these: parameters of the whole model, cache bytes a token in ``dtype``, attention FLOPs of one
    decoding step at the full context. ``None``: no limit."""

    params: int | None = None
    cache_bytes: int | None = None
    flops: int | None = None
    dtype: str = "float32"


def fit(shape: Shape, sizes: Sizes, budget: Budget, multiples: tuple[int, ...] = MULTIPLES) -> DecoderSpec:
    """The model of a shape that fills its budgets.

    Raises HeadcountError for budgets that nothing meets, naming the smallest that something does, and for one of
    parameters that is not met within ``PROMISED``.
    """
    limited = budget.cache_bytes is not None or budget.flops is not None
    heads = _largest(shape, lambda own: _meets(own, sizes, budget), LARGEST) if limited else shape.at(1.0)
    if heads is None:
        raise _too_small(_spec(shape, sizes, shape.at(0.0), [1] * sizes.layers), sizes, budget)
    if limited and shape.by_layer:
        heads = _filled(heads, shape, lambda own: _meets(own, sizes, budget))
    if budget.params is None:
        return _spec(shape, sizes, heads, _widths(shape, sizes, DEFAULT_MLP * sizes.hidden, 8))
    params = budget.params
    floor = _widths(shape, sizes, sizes.hidden, 1)
    if _spec(shape, sizes, heads, floor).params > params:
        top = GRID if not limited else LARGEST

        def allowed(own: list[Heads]) -> bool:
            return _spec(shape, sizes, own, floor).params <= params and _meets(own, sizes, budget)

        heads = _largest(shape, allowed, top) or shape.at(0.0)
    found = None
    for multiple in multiples:
        found = _with_mlps(shape, sizes, heads, params, multiple)
        if found is not None and found.params >= (1 - CLOSE) * params:
            break
    if found is None:
        smallest = _spec(shape, sizes, shape.at(0.0), [1] * sizes.layers).params
        raise HeadcountError(
            f"{params:,} parameters are too few for {sizes.layers} layers of {sizes.hidden} and {sizes.vocab:,} tokens",
            fix=f"the smallest budget is {smallest:,}",
        )
    if found.params < (1 - PROMISED) * params:
        raise HeadcountError(
            f"no widths come within {PROMISED:.0%} of {params:,} parameters: the nearest has {found.params:,}",
            fix=f"ask for --params {found.params}",
        )
    return found


def _meets(heads: list[Heads], sizes: Sizes, budget: Budget) -> bool:
    """Whether attention keeps within the budgets of cache and FLOPs."""
    cache = sum(own.n_kv_heads * (own.qk_dim + own.v_dim) for own in heads) * DTYPE_BYTES[budget.dtype]
    if budget.cache_bytes is not None and cache > budget.cache_bytes:
        return False
    return budget.flops is None or attention_flops(heads, sizes) <= budget.flops


def attention_flops(heads: list[Heads], sizes: Sizes) -> int:
    """FLOPs of all attention layers for one decoding step at the full context (see ``LayerSpec``)."""
    return _plain(heads, sizes).attention.attention_flops_per_token(sizes.context)


def _largest(shape: Shape, allowed: Callable[[list[Heads]], bool], top: int) -> list[Heads] | None:
    """Heads at the largest scale up to top/GRID that is allowed; costs grow with the scale."""
    if not allowed(shape.at(0.0)):
        return None
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if allowed(shape.at(middle / GRID)) else (low, middle - 1)
    return shape.at(low / GRID)


def _filled(heads: list[Heads], shape: Shape, allowed: Callable[[list[Heads]], bool]) -> list[Heads]:
    """Widen single layers by pairs of dimensions, values before keys and late before early, while that is allowed.

    What is left of a budget after the largest scale is less than one such pair for every layer and side.
    """
    heads = list(heads)
    for side in ("v_dim", "qk_dim"):
        for i in reversed(range(len(heads))):
            own = heads[i]
            wider = Heads(
                own.n_heads,
                own.n_kv_heads,
                own.qk_dim + 2 * (side == "qk_dim"),
                own.v_dim + 2 * (side == "v_dim"),
            )
            changed = [*heads[:i], wider, *heads[i + 1 :]]
            if allowed(changed):
                heads = changed
    return heads


def _widths(shape: Shape, sizes: Sizes, mean: float, multiple: int) -> list[int]:
    """MLP widths in the shape's proportion with about this mean, multiples of ``multiple``."""
    average = sum(shape.mlp) / len(shape.mlp)
    return [max(multiple, multiple * math.floor(mean * part / average / multiple + 1e-9)) for part in shape.mlp]


def _with_mlps(shape: Shape, sizes: Sizes, heads: list[Heads], params: int, multiple: int) -> DecoderSpec | None:
    """The widest MLPs that parameters allow; ``None`` where the narrowest are too many."""

    def at(step: int) -> DecoderSpec:
        return _spec(shape, sizes, heads, _widths(shape, sizes, step * multiple / 16, multiple))

    if at(1).params > params:
        return None
    # MLPs alone of the widest mean tried have all the parameters; a step is a 16th of a multiple, for OpenELM's widths.
    low, high = 1, 16 + 16 * params // (3 * sizes.hidden * sizes.layers * multiple)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if at(middle).params <= params else (low, middle - 1)
    return at(low)


def _spec(shape: Shape, sizes: Sizes, heads: list[Heads], widths: list[int]) -> DecoderSpec:
    layers = [
        DecoderLayer(
            n_heads=own.n_heads,
            n_kv_heads=own.n_kv_heads,
            qk_dim=own.qk_dim,
            v_dim=own.v_dim,
            intermediate_size=width,
            reason=reason,
        )
        for own, width, reason in zip(heads, widths, shape.reasons, strict=True)
    ]
    return DecoderSpec(
        vocab=sizes.vocab, hidden=sizes.hidden, context=sizes.context, tied=sizes.tied, layers=tuple(layers)
    )


def _plain(heads: list[Heads], sizes: Sizes) -> DecoderSpec:
    """Heads as a model whose MLPs do not matter."""
    bare = Shape(lambda _: heads, (1.0,) * len(heads), ("",) * len(heads), by_layer=False)
    return _spec(bare, sizes, heads, [1] * len(heads))


def _too_small(smallest: DecoderSpec, sizes: Sizes, budget: Budget) -> HeadcountError:
    """Which budget of attention nothing meets, and the smallest that something does."""
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
