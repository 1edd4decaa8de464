"""Closed-form errors, the best readout and the best layer against explicit sums, SVDs and known optima."""

from __future__ import annotations

import numpy as np
import pytest

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.lags import least_squares as squares
from headcount.lags.least_squares import Layer
from headcount.lags.schemes import Learned, Linear
from headcount.lags.solver import tails

RNG = numpy_generator(0, "least squares tests")
TARGETS = squares.targets_of([0, 2], RNG.normal(size=(2, 5, 5)), 6)
WEIGHTS = squares.lag_weights(6, 9)


def random_layer(heads: int, dim: int, scheme: Linear | Learned) -> tuple[np.ndarray, Layer]:
    generator = numpy_generator(heads, "layer", dim)
    given = scheme.random(generator, heads, 0)
    outputs = generator.normal(size=(heads, 5, dim))
    return given, Layer(scheme.kernels(given), outputs, generator.normal(size=(heads, dim, 5)))


def test_the_error_is_the_explicit_sum_over_tokens() -> None:
    """E over tokens 0..8 and over the lags that each has behind it, on white noise."""
    _, layer = random_layer(3, 2, Linear(6))
    total = power = 0.0
    for token in range(9):
        for lag in range(min(token, 5) + 1):
            made = sum(layer.kernels[h, lag] * layer.outputs[h] @ layer.values[h] for h in range(3))
            total += float(((made - TARGETS[lag]) ** 2).sum())
            power += float((TARGETS[lag] ** 2).sum())
    assert squares.error(layer, TARGETS, WEIGHTS) == pytest.approx(np.sqrt(total / power), rel=1e-12)


@pytest.mark.parametrize("dim", [1, 3, 5])
def test_the_best_readout_of_spikes_is_the_truncated_svd(dim: int) -> None:
    """One exact kernel a lag: what is left is the tail of the singular values (Eckart and Young)."""
    kernels = np.eye(6)[[0, 2]]
    generator = numpy_generator(1, "spikes")
    layer = Layer(kernels, generator.normal(size=(2, 5, dim)), generator.normal(size=(2, dim, 5)))
    found = squares.best_readout(layer, TARGETS, np.ones(6), rounds=3000, worth=1e-13)
    rests = [tails(np.linalg.svd(TARGETS[lag], compute_uv=False)) for lag in (0, 2)]
    tail, power = (sum(rest[at] ** 2 for rest in rests) for at in (dim, 0))
    # Alternating least squares stops when a round gains less than 1e-13 of the squared error.
    assert squares.error(found, TARGETS, np.ones(6)) ** 2 == pytest.approx(tail / power, abs=1e-6)


def test_heads_as_wide_as_tokens_solve_a_linear_system() -> None:
    """At d = D each head's matrix is free: the best readout is linear least squares in the kernels."""
    _, layer = random_layer(2, 5, Linear(6))
    found = squares.best_readout(layer, TARGETS, WEIGHTS, rounds=50)
    root = np.sqrt(WEIGHTS)[:, None]
    left = np.linalg.lstsq(layer.kernels.T * root, (TARGETS.reshape(6, 25)) * root, rcond=None)[1].sum()
    power = (WEIGHTS[:, None] * TARGETS.reshape(6, 25) ** 2).sum()
    assert squares.error(found, TARGETS, WEIGHTS) ** 2 == pytest.approx(left / power, rel=1e-9)


@pytest.mark.parametrize("scheme", [Linear(6), Learned(6, 8.0)], ids=["linear", "learned"])
def test_the_best_layer_goes_down_and_its_numbers_are_its_kernels(scheme: Linear | Learned) -> None:
    given, layer = random_layer(3, 2, scheme)
    read = squares.best_readout(layer, TARGETS, WEIGHTS)
    numbers, found = squares.best_layer(scheme, given, layer, TARGETS, WEIGHTS)
    first, second, last = (squares.error(one, TARGETS, WEIGHTS) for one in (layer, read, found))
    assert last < second < first
    np.testing.assert_array_equal(found.kernels, scheme.kernels(numbers))


def test_what_the_theory_says_is_possible_is_found() -> None:
    """tau + 1 slopes reach lag tau: two linear biases and full width extract lags 0 and 1 of 2 exactly."""
    targets = squares.targets_of([0, 1], RNG.normal(size=(2, 3, 3)), 2)
    generator = numpy_generator(2, "two lags")
    scheme = Linear(2)
    given = np.array([[0.1], [0.6]])
    layer = Layer(scheme.kernels(given), generator.normal(size=(2, 3, 3)), generator.normal(size=(2, 3, 3)))
    _, found = squares.best_layer(scheme, given, layer, targets, np.ones(2))
    assert squares.error(found, targets, np.ones(2)) < 1e-5


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(HeadcountError, match="2 kernels do not go with"):
        Layer(np.eye(2), np.zeros((2, 5, 3)), np.zeros((3, 3, 5)))


@pytest.mark.parametrize("heads, dim, width", [(3, 4, 5), (2, 8, 5), (1, 2, 6)])
def test_split_heads_are_the_same_layer(heads: int, dim: int, width: int) -> None:
    """At a fixed size more heads can do whatever fewer can, to rounding; with an odd dimension a direction is lost."""
    generator = np.random.default_rng(0)
    kernels = generator.dirichlet(np.ones(9), size=heads)
    layer = squares.Layer(
        kernels, generator.normal(size=(heads, width, dim)), generator.normal(size=(heads, dim, width))
    )
    both = squares.split(layer)
    assert both.outputs.shape == (2 * heads, width, dim // 2)
    whole, parts = (np.einsum("hl,hij->lij", own.kernels, own.outputs @ own.values) for own in (layer, both))
    np.testing.assert_allclose(parts, whole, atol=1e-12)
