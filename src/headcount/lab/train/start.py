"""Starts that are computed, not drawn: the theory's own layer for an n-gram, put into a positional model.

Training from there takes the optimiser's search out of a comparison between theory and training; training around
fixed kernels takes out the half of the search that finds positions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.lab.models import TokenModel
from headcount.lab.models.positional import Position, Positional
from headcount.lab.specs.run import RunSpec
from headcount.lags import least_squares as squares
from headcount.lags.kernels import Fit
from headcount.lags.least_squares import Layer
from headcount.lags.schemes import Array, Learned, Linear, Scheme
from headcount.lags.search import search
from headcount.lags.solver import allocate
from headcount.lags.table import RANGE, shipped
from headcount.lags.table import Position as Theory
from headcount.tasks.ngram import NGram

_THEORY: dict[Position, Theory] = {"alibi": "alibi", "alibi-fixed": "alibi", "relative": "learned", "rope": "rope"}
_SEARCHED, _SMALL, _RESTARTS = 16, 1e-2, 2


def theory_name(position: Position) -> Theory:
    """What the allocation theory calls a position scheme."""
    return _THEORY[position]


def freeze(model: TokenModel, spec: RunSpec) -> None:
    """Take the kernels out of training where they are to stay at their start."""
    if spec.start == "kernels":
        assert isinstance(model.body, Positional)
        model.body.kernels.requires_grad_(False)


def begin(model: TokenModel, spec: RunSpec) -> None:
    """Put the constructed kernels, and with ``constructed`` the values and outputs, into a fresh model."""
    if spec.start is None:
        return
    body, task = model.body, spec.problem
    assert isinstance(body, Positional) and isinstance(task, NGram)
    config = body.config
    given, layer = best_known(task, config.position, config.heads, config.dim, config.context)
    put(body, given, layer, kernels_only=spec.start == "kernels")


def scheme_of(position: Position, context: int) -> Scheme:
    """The kernels that a model's positions offer, for those that are constructed."""
    if position == "alibi":
        return Linear(context)
    if position == "relative":
        return Learned(context, RANGE)
    raise HeadcountError(f"no start is constructed for {position}", fix="use alibi or relative")


@lru_cache(maxsize=64)
def best_known(task: NGram, position: Position, heads: int, dim: int, context: int = 64) -> tuple[Array, Layer]:
    """The best layer found by joint least squares, as numbers of its kernels and a layer.

    Downhill from the solver's layer, from ``_RESTARTS`` random ones, and from the best one of half as many heads of
    twice the dimension, split (``least_squares.split``: the error starts where that one's ended). An upper bound of
    what these heads can do at best; it depends on the task and the sizes alone.
    """
    scheme = scheme_of(position, context)
    targets, weights = problem(task, context)
    generator = numpy_generator(0, "start", "restarts", position, heads)
    starts = [solver_layer(task, position, heads, dim, 0, context)]
    for _ in range(_RESTARTS):
        given = scheme.random(generator, heads, 0)
        outputs, values = generator.normal(size=(2, heads, task.dim, dim)) / math.sqrt(task.dim)
        starts.append((given, Layer(scheme.kernels(given), outputs, values.transpose(0, 2, 1))))
    if heads % 2 == 0:
        given, layer = best_known(task, position, heads // 2, 2 * dim, context)
        starts.append((np.repeat(given, 2, axis=0), squares.split(layer)))
    found = [
        squares.best_layer(scheme, given, squares.best_readout(layer, targets, weights), targets, weights)
        for given, layer in starts
    ]
    return min(found, key=lambda one: squares.error(one[1], targets, weights))


def problem(task: NGram, context: int) -> tuple[Array, Array]:
    """The targets over lags and the weights of the lags, as ``least_squares`` takes them."""
    targets = squares.targets_of(list(range(task.order)), task.content, context)
    return targets, squares.lag_weights(context, task.tokens)


def solver_layer(
    task: NGram, position: Position, heads: int, dim: int, seed: int = 0, context: int = 64
) -> tuple[Array, Layer]:
    """The layer that the solver's best uniform split stands for: its kernels and coefficients, and the best rank-d part
    of each A_k carried by all heads of its lag.

    Heads without a use (an idle one, a coefficient of 0, all of a lag's where fewer heads than lags are there) get a
    random kernel, small random values and outputs of 0: they add nothing and can learn.
    """
    scheme = scheme_of(position, context)
    generator = numpy_generator(seed, "start", position, heads)
    given = scheme.random(generator, heads, 0)
    values = generator.normal(size=(heads, dim, task.dim)) * _SMALL
    outputs = np.zeros((heads, task.dim, dim))
    rank = min(dim, task.dim)
    head = 0
    for lag, count in enumerate(_shares(task, position, heads, dim)):
        fit = _fits(scheme, lag)[min(count, _SEARCHED) - 1]
        left, sigma, right = np.linalg.svd(task.content[lag])
        for numbers, coefficient in zip(fit.given, fit.coefficients, strict=True):
            given[head] = numbers
            if coefficient:
                scale = np.sqrt(abs(coefficient) * sigma[:rank])
                values[head], outputs[head] = 0.0, 0.0
                values[head, :rank] = scale[:, None] * right[:rank]
                outputs[head, :, :rank] = left[:, :rank] * scale * np.sign(coefficient)
            head += 1
    return given, Layer(scheme.kernels(given), outputs, values)


def _shares(task: NGram, position: Position, heads: int, dim: int) -> tuple[int, ...]:
    """Heads of each lag; one for each of the first ones where there are fewer heads than lags."""
    if heads < task.order:
        return (1,) * heads
    rows = [shipped(_THEORY[position]).errors(lag) for lag in range(task.order)]
    curve = {own.heads: own for own in allocate(range(task.order), heads * dim, rows, task.spectra).curve}
    return curve[heads].heads_of_lag


@lru_cache(maxsize=64)
def _fits(scheme: Scheme, lag: int) -> tuple[Fit, ...]:
    """Fits of 1, 2, ... heads; the last one goes on where more do not help."""
    if isinstance(scheme, Learned):
        up = scheme.features[lag]
        alone = (up - 0.5)[None] * scheme.budget
        found = [Fit(alone, np.ones(1), 0.0, np.zeros(scheme.context))]
        return tuple(found * _SEARCHED)
    found = search(scheme, lag, _SEARCHED)
    return tuple(found + found[-1:] * (_SEARCHED - len(found)))


@torch.no_grad()
def put(body: Positional, given: Array, layer: Layer, kernels_only: bool = False) -> None:
    """Numbers of kernels, values and outputs into a model."""
    kernels = body.kernels
    if kernels.position == "alibi":
        with np.errstate(divide="ignore"):
            slopes = np.clip(-np.log(given[:, 0]), 1e-9, 40.0)
        kernels.log_slope.copy_(torch.from_numpy(np.log(slopes)))
    elif kernels.position == "relative":
        kernels.bias.copy_(torch.from_numpy(given))
    if kernels_only:
        return
    # A head's values and outputs of one size: training steps are then of one size, too.
    out, into = (np.linalg.norm(part, axis=(1, 2), keepdims=True) for part in (layer.outputs, layer.values))
    scale = np.sqrt(np.maximum(out, 1e-12) / np.maximum(into, 1e-12))
    scale[(out < 1e-12) | (into < 1e-12)] = 1.0
    body.values.weight.copy_(torch.from_numpy((layer.values * scale).reshape(-1, layer.values.shape[-1])))
    joined = (layer.outputs / scale).transpose(1, 0, 2).reshape(layer.outputs.shape[1], -1)
    body.outputs.weight.copy_(torch.from_numpy(joined))


def taken(body: Positional) -> tuple[Array, Layer]:
    """Numbers of the kernels and the layer of a model without an MLP, in float64."""

    def array(tensor: Tensor) -> Array:
        return tensor.detach().double().numpy()

    heads, dim = body.config.heads, body.config.dim
    logits = array(body.kernels())
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    values = array(body.values.weight).reshape(heads, dim, -1)
    outputs = array(body.outputs.weight)
    outputs = outputs.reshape(len(outputs), heads, dim).transpose(1, 0, 2)
    # The numbers as ``put`` takes them: x = exp(-slope), or the biases themselves.
    given = np.exp(logits[:, 1:2]) if body.kernels.position.startswith("alibi") else logits
    return given, Layer(powers / powers.sum(axis=1, keepdims=True), outputs, values)


def relative_error(task: NGram, error: float) -> float:
    """A root mean square error over that of always answering 0."""
    return error / math.sqrt(task.power)
