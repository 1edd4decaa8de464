"""Best mean-square errors of heads over lags: closed-form errors, the best readout, and local optimisation of layers.

A layer y_t = sum_h O_h sum_s a_h(s) V_h x_{t-s} on white noise (E x x' = I) has, for y_t = sum_s A_s x_{t-s}, the error

    E = sum_s w_s || sum_h a_h(s) O_h V_h - A_s ||_F^2,

where w_s is the fraction of tokens with a token s positions before them (1 for an infinite sequence): no samples
are needed. Given the kernels a_h, it is quadratic in the O_h and in the V_h, so the readout is optimised by alternating
least squares, and jointly with the kernel parameters by L-BFGS on exact gradients. Both decrease the error
monotonically in float64 and may end in a local minimum: the results are upper bounds on the best error.

This differs from the error of ``headcount.lags.solver`` in two ways: the solver adds the errors of lags in a norm
that bounds any input (the sum over lags of |mixture - spike|), and all heads of one group carry the same content.

Letters: H heads, L lags, d numbers of a head, D of a token; matrices O (H, D, d), V (H, d, D), targets A (L, D, D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from headcount.core.errors import HeadcountError
from headcount.lags.schemes import Linear, Scheme

Array = NDArray[np.float64]
_RIDGE = 1e-13
"""Ridge relative to the mean diagonal of the normal equations, which nearly equal kernels make singular in float64."""


@dataclass(frozen=True)
class Layer:
    """Kernels (H, L) and the maps out of (H, D, d) and into (H, d, D) the heads."""

    kernels: Array
    outputs: Array
    values: Array

    def __post_init__(self) -> None:
        heads = len(self.kernels)
        if self.outputs.shape[0] != heads or self.outputs.shape != self.values.transpose(0, 2, 1).shape:
            raise HeadcountError(
                f"{heads} kernels do not go with outputs of {self.outputs.shape} and values of {self.values.shape}",
                fix="give one of each for every head",
            )


def split(layer: Layer) -> Layer:
    """Split each head into two of half its dimension with equal kernels and alternating singular directions.

    Hence at a fixed size H d the best error never increases with the number of heads: 2 H heads of d / 2 can represent
    H heads of d. This holds if kernels depend only on positions and use no dimensions. For odd d the weakest
    direction of each head is lost.

    >>> whole = Layer(np.ones((1, 1)), np.eye(4)[None], np.eye(4)[None])
    >>> both = split(whole)
    >>> both.outputs.shape, bool(np.allclose((both.outputs @ both.values).sum(0), np.eye(4)))
    ((2, 4, 2), True)
    """
    half = layer.values.shape[1] // 2
    left, sigma, right = np.linalg.svd(layer.outputs @ layer.values, full_matrices=False)
    missing = max(0, 2 * half - sigma.shape[1])
    root = np.sqrt(np.pad(sigma, ((0, 0), (0, missing))))[:, : 2 * half]
    out = np.pad(left, ((0, 0), (0, 0), (0, missing)))[:, :, : 2 * half] * root[:, None]
    into = np.pad(right, ((0, 0), (0, missing), (0, 0)))[:, : 2 * half] * root[:, :, None]
    outputs, values = (
        np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
        for parts in ((out[:, :, ::2], out[:, :, 1::2]), (into[:, ::2], into[:, 1::2]))
    )
    return Layer(np.repeat(layer.kernels, 2, axis=0), outputs, values)


def lag_weights(context: int, tokens: int) -> Array:
    """w_s: the fraction of ``tokens`` tokens with a token s positions before them, for s < context.

    >>> lag_weights(4, 4).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    return np.maximum(tokens - np.arange(context), 0) / tokens


def targets_of(lags: list[int], content: Array, context: int) -> Array:
    """A_s for s < context: ``content`` at the ``lags``, 0 elsewhere."""
    targets = np.zeros((context, *content.shape[1:]))
    targets[lags] = content
    return targets


def error(layer: Layer, targets: Array, weights: Array) -> float:
    """The root mean square error relative to the RMS of the targets: 1 for a layer that outputs 0.

    >>> spike = Layer(np.array([[1.0, 0.0]]), np.array([[[2.0]]]), np.array([[[0.5]]]))
    >>> error(spike, np.array([[[1.0]], [[1.0]]]), np.ones(2)) ** 2  # lag 0 is hit, lag 1 is missed
    0.5000000000000001
    """
    power = float(weights @ (targets**2).sum(axis=(1, 2)))
    return math.sqrt(_loss(layer, targets, weights) / power)


def _misses(layer: Layer, targets: Array) -> Array:
    products = layer.outputs @ layer.values
    return np.tensordot(layer.kernels.T, products, axes=1) - targets


def _loss(layer: Layer, targets: Array, weights: Array) -> float:
    return float(weights @ (_misses(layer, targets) ** 2).sum(axis=(1, 2)))


def best_readout(layer: Layer, targets: Array, weights: Array, rounds: int = 100, worth: float = 1e-7) -> Layer:
    """Improve outputs and values for fixed kernels by alternating least squares, for ``rounds`` rounds or until a
    round reduces the loss by less than the fraction ``worth``.

    >>> flat = Layer(np.array([[1.0, 0.0], [0.0, 1.0]]), np.ones((2, 1, 1)), np.ones((2, 1, 1)))
    >>> found = best_readout(flat, np.array([[[3.0]], [[-4.0]]]), np.ones(2))
    >>> bool(error(found, np.array([[[3.0]], [[-4.0]]]), np.ones(2)) < 1e-9)  # each kernel has a lag of its own
    True
    """
    shared = (layer.kernels * weights) @ layer.kernels.T  # (H, H)
    aims = np.tensordot(layer.kernels * weights, targets, axes=1)  # (H, D, D)
    best, loss = layer, _loss(layer, targets, weights)
    for _ in range(rounds):
        outputs = _solved(shared, best.values, aims).transpose(0, 2, 1)
        values = _solved(shared, outputs.transpose(0, 2, 1), aims.transpose(0, 2, 1))
        # Normalise one of the two factors: only their product matters.
        scale = np.maximum(np.linalg.norm(values, axis=(1, 2), keepdims=True), 1e-300)
        tried = Layer(layer.kernels, outputs * scale, values / scale)
        reached = _loss(tried, targets, weights)
        if reached >= loss:
            break
        gained, best, loss = loss - reached, tried, reached
        if gained < worth * loss:
            break
    return best


def _solved(shared: Array, values: Array, aims: Array) -> Array:
    """O_h' (H, d, D) of min sum_gh shared_gh <O_g V_g, O_h V_h> - 2 sum_h <O_h V_h, aims_h>."""
    heads, dim, width = values.shape
    gram = np.einsum("gh,gik,hjk->gihj", shared, values, values, optimize=True).reshape(heads * dim, heads * dim)
    gram += np.eye(len(gram)) * (_RIDGE * np.trace(gram) / len(gram) + 1e-300)
    right_side = (values @ aims.transpose(0, 2, 1)).reshape(heads * dim, width)
    outputs: Array = np.linalg.lstsq(gram, right_side, rcond=1e-14)[0].reshape(heads, dim, width)
    return outputs


def best_layer(
    scheme: Scheme, start_numbers: Array, layer: Layer, targets: Array, weights: Array, iterations: int = 1000
) -> tuple[Array, Layer]:
    """A local minimum from ``layer``, whose kernels have the parameters ``start_numbers`` (H, P).

    Kernel parameters, outputs and values are optimised jointly with L-BFGS-B for ``iterations`` steps, followed by the
    best readout. Slopes stay in [0, 1]; parameters of other schemes are unconstrained, without the logit budget.
    """
    shapes = [start_numbers.shape, layer.outputs.shape, layer.values.shape]
    cuts = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def parts(flat: Array) -> list[Array]:
        return [part.reshape(shape) for part, shape in zip(np.split(flat, cuts), shapes, strict=True)]

    def loss(flat: Array) -> tuple[float, Array]:
        numbers, outputs, values = parts(flat)
        current = Layer(scheme.kernels(numbers), outputs, values)
        misses = _misses(current, targets)
        weighed = 2 * weights[:, None, None] * misses
        back = np.tensordot(current.kernels, weighed, axes=1)  # (H, D, D)
        along = np.tensordot(outputs @ values, weighed, axes=([1, 2], [1, 2]))  # (H, L)
        slope = [
            np.einsum("hl,hlp->hp", along, scheme.jacobian(numbers)),
            back @ values.transpose(0, 2, 1),
            outputs.transpose(0, 2, 1) @ back,
        ]
        value = float(weights @ (misses**2).sum(axis=(1, 2)))
        return value, np.concatenate([part.ravel() for part in slope])

    start = np.concatenate([start_numbers.ravel(), layer.outputs.ravel(), layer.values.ravel()])
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(start)
    if isinstance(scheme, Linear):
        bounds[: start_numbers.size] = [(0.0, 1.0)] * start_numbers.size
    solved = minimize(
        loss,
        np.clip(start, [-np.inf if low is None else low for low, _ in bounds], None),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 30, "ftol": 1e-12, "gtol": 1e-10},
    )
    numbers, outputs, values = parts(solved.x)
    return numbers, best_readout(Layer(scheme.kernels(numbers), outputs, values), targets, weights)
