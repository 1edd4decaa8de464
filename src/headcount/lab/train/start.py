"""Constructed initial weights: the theoretical layer for an n-gram, loaded into a positional model.

Training from these weights removes the optimiser's search from a comparison between theory and training; training with
fixed kernels removes only the part of the search that finds positions.
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
    """The name of a position scheme in the allocation theory."""
    return _THEORY[position]


def freeze(model: TokenModel, spec: RunSpec) -> None:
    """Exclude the kernels from training if the spec keeps them at their start."""
    if spec.start == "kernels":
        assert isinstance(model.body, Positional)
        model.body.kernels.requires_grad_(False)


def begin(model: TokenModel, spec: RunSpec) -> None:
    """Load the constructed kernels, and with ``constructed`` also the values and outputs, into a fresh model."""
    if spec.start is None:
        return
    body, task = model.body, spec.problem
    assert isinstance(body, Positional) and isinstance(task, NGram)
    config = body.config
    kernel_numbers, layer = best_known(task, config.position, config.heads, config.dim, config.context)
    put(body, kernel_numbers, layer, kernels_only=spec.start == "kernels")


def scheme_of(position: Position, context: int) -> Scheme:
    """The kernel scheme of a position scheme that supports constructed starts."""
    if position == "alibi":
        return Linear(context)
    if position == "relative":
        return Learned(context, RANGE)
    raise HeadcountError(f"no start is constructed for {position}", fix="use alibi or relative")


@lru_cache(maxsize=64)
def best_known(task: NGram, position: Position, heads: int, dim: int, context: int = 64) -> tuple[Array, Layer]:
    """The best layer found by joint least squares, as kernel parameters and a layer.

    The descent starts from the solver's layer, from ``_RESTARTS`` random layers, and from the best layer with half as
    many heads of twice the dimension, split (``least_squares.split``, which preserves the error). The result is an
    upper bound on the minimal error with these heads; it depends only on the task and the sizes.
    """
    scheme = scheme_of(position, context)
    targets, weights = problem(task, context)
    generator = numpy_generator(0, "start", "restarts", position, heads)
    starts = [solver_layer(task, position, heads, dim, 0, context)]
    for _ in range(_RESTARTS):
        kernel_numbers = scheme.random(generator, heads, 0)
        outputs, values = generator.normal(size=(2, heads, task.dim, dim)) / math.sqrt(task.dim)
        starts.append((kernel_numbers, Layer(scheme.kernels(kernel_numbers), outputs, values.transpose(0, 2, 1))))
    if heads % 2 == 0:
        kernel_numbers, layer = best_known(task, position, heads // 2, 2 * dim, context)
        starts.append((np.repeat(kernel_numbers, 2, axis=0), squares.split(layer)))
    candidates = [
        squares.best_layer(scheme, kernel_numbers, squares.best_readout(layer, targets, weights), targets, weights)
        for kernel_numbers, layer in starts
    ]
    return min(candidates, key=lambda one: squares.error(one[1], targets, weights))


def problem(task: NGram, context: int) -> tuple[Array, Array]:
    """The targets over lags and the weights of the lags, in the format of ``least_squares``."""
    targets = squares.targets_of(list(range(task.order)), task.content, context)
    return targets, squares.lag_weights(context, task.tokens)


def solver_layer(
    task: NGram, position: Position, heads: int, dim: int, seed: int = 0, context: int = 64
) -> tuple[Array, Layer]:
    """The layer of the solver's best uniform split: its kernels and coefficients, with the best rank-d approximation
    of each A_k in all heads of its lag.

    Unused heads (idle heads and heads with a coefficient of 0) get a random kernel, small random values and outputs
    of 0, so they contribute nothing but can learn.
    """
    scheme = scheme_of(position, context)
    generator = numpy_generator(seed, "start", position, heads)
    kernel_numbers = scheme.random(generator, heads, 0)
    values = generator.normal(size=(heads, dim, task.dim)) * _SMALL
    outputs = np.zeros((heads, task.dim, dim))
    rank = min(dim, task.dim)
    head = 0
    for lag, count in enumerate(_shares(task, position, heads, dim)):
        fit = _fits(scheme, lag)[min(count, _SEARCHED) - 1]
        left, sigma, right = np.linalg.svd(task.content[lag])
        for numbers, coefficient in zip(fit.given, fit.coefficients, strict=True):
            kernel_numbers[head] = numbers
            if coefficient:
                scale = np.sqrt(abs(coefficient) * sigma[:rank])
                values[head], outputs[head] = 0.0, 0.0
                values[head, :rank] = scale[:, None] * right[:rank]
                outputs[head, :, :rank] = left[:, :rank] * scale * np.sign(coefficient)
            head += 1
    return kernel_numbers, Layer(scheme.kernels(kernel_numbers), outputs, values)


def _shares(task: NGram, position: Position, heads: int, dim: int) -> tuple[int, ...]:
    """The number of heads per lag; one for each of the first lags if there are fewer heads than lags."""
    if heads < task.order:
        return (1,) * heads
    rows = [shipped(_THEORY[position]).errors(lag) for lag in range(task.order)]
    curve = {uniform.heads: uniform for uniform in allocate(range(task.order), heads * dim, rows, task.spectra).curve}
    return curve[heads].heads_of_lag


@lru_cache(maxsize=64)
def _fits(scheme: Scheme, lag: int) -> tuple[Fit, ...]:
    """Fits of 1, 2, ... heads; the last one is repeated if more heads do not help."""
    if isinstance(scheme, Learned):
        up = scheme.features[lag]
        alone = (up - 0.5)[None] * scheme.budget
        fits = [Fit(alone, np.ones(1), 0.0, np.zeros(scheme.context))]
        return tuple(fits * _SEARCHED)
    fits = search(scheme, lag, _SEARCHED)
    return tuple(fits + fits[-1:] * (_SEARCHED - len(fits)))


@torch.no_grad()
def put(body: Positional, kernel_numbers: Array, layer: Layer, kernels_only: bool = False) -> None:
    """Load kernel parameters, values and outputs into a model."""
    kernels = body.kernels
    if kernels.position == "alibi":
        with np.errstate(divide="ignore"):
            slopes = np.clip(-np.log(kernel_numbers[:, 0]), 1e-9, 40.0)
        kernels.log_slope.copy_(torch.from_numpy(np.log(slopes)))
    elif kernels.position == "relative":
        kernels.bias.copy_(torch.from_numpy(kernel_numbers))
    if kernels_only:
        return
    # Balance the norms of a head's values and outputs, so that their training steps have similar relative sizes.
    out, into = (np.linalg.norm(part, axis=(1, 2), keepdims=True) for part in (layer.outputs, layer.values))
    scale = np.sqrt(np.maximum(out, 1e-12) / np.maximum(into, 1e-12))
    scale[(out < 1e-12) | (into < 1e-12)] = 1.0
    body.values.weight.copy_(torch.from_numpy((layer.values * scale).reshape(-1, layer.values.shape[-1])))
    joined = (layer.outputs / scale).transpose(1, 0, 2).reshape(layer.outputs.shape[1], -1)
    body.outputs.weight.copy_(torch.from_numpy(joined))


def taken(body: Positional) -> tuple[Array, Layer]:
    """The kernel parameters and the layer of a model without an MLP, in float64."""

    def array(tensor: Tensor) -> Array:
        return tensor.detach().double().numpy()

    heads, dim = body.config.heads, body.config.dim
    logits = array(body.kernels())
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    values = array(body.values.weight).reshape(heads, dim, -1)
    outputs = array(body.outputs.weight)
    outputs = outputs.reshape(len(outputs), heads, dim).transpose(1, 0, 2)
    # The parameters in the format of ``put``: x = exp(-slope), or the biases themselves.
    kernel_numbers = np.exp(logits[:, 1:2]) if body.kernels.position.startswith("alibi") else logits
    return kernel_numbers, Layer(powers / powers.sum(axis=1, keepdims=True), outputs, values)


def relative_error(task: NGram, error: float) -> float:
    """A root mean square error divided by that of always answering 0."""
    return error / math.sqrt(task.power)
