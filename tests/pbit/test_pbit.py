"""The p-bit layer against one written with Python's own integers and fractions, token by token."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.pbit.examples import (
    histogram_layer,
    match3_from_histogram,
    random_match3_layer,
    random_qsa_layer,
    sign_key_layer,
)
from headcount.pbit.layer import PBitAttention, saturate, shift_down


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def clip(value: int, p: int) -> int:
    return max(-(2 ** (p - 1)), min(2 ** (p - 1) - 1, value))


def slow_layer(layer: PBitAttention, tokens: Any) -> list[list[int]]:
    """Steps 2 to 6 of ``headcount.pbit.layer`` from the embedding on, without NumPy."""
    p, embedded = layer.precision_bits, layer.embed(tokens).tolist()

    def project(row: list[int], matrix: list[list[int]], shift: int) -> list[int]:
        sums = [sum(a * matrix[j][c] for j, a in enumerate(row)) for c in range(len(matrix[0]))]
        return [clip(half_up(Fraction(s, 2**shift)), p) for s in sums]

    outputs = [[0] * layer.value_dim for _ in embedded]
    for h in range(layer.heads):
        q, k, v = (
            [project(row, matrix[h].tolist(), shift) for row in embedded]
            for matrix, shift in (
                (layer.query, layer.project_shift),
                (layer.key, layer.project_shift),
                (layer.value, layer.value_shift),
            )
        )
        for i, query in enumerate(q):
            products = [sum(a * b for a, b in zip(query, key, strict=True)) for key in k]
            logits = [clip(half_up(Fraction(product, 2**layer.logit_shift)), p) for product in products]
            scale = 2.0**-layer.logit_fraction
            weights = [math.floor((2**p - 1) * math.exp((s - max(logits)) * scale) + 0.5) for s in logits]
            for c in range(layer.value_dim):
                top = sum(w * row[c] for w, row in zip(weights, v, strict=True))
                outputs[i][c] += clip(half_up(Fraction(top, sum(weights))), p)
    return [[clip(c, p) for c in row] for row in outputs]


@pytest.mark.parametrize(("width", "p", "heads"), [(1, 1, 1), (2, 3, 1), (3, 8, 2), (5, 16, 3), (4, 24, 1)])
def test_random_layers_agree_with_exact_arithmetic(width: int, p: int, heads: int) -> None:
    rng = np.random.default_rng(p)
    layer = random_match3_layer(9, 13, width, p, heads, seed=1)
    tokens = {"x": rng.integers(0, 13, 9), "position": np.arange(9)}
    assert layer(tokens).tolist() == slow_layer(layer, tokens)
    layer = random_qsa_layer(9, 3, 2, width, p, heads, seed=2)
    batch = tasks.get("qsa", tokens=9, sparsity=3, dim=2).sample(0)
    tokens = {"z": batch.inputs["z"][0], "y": batch.inputs["y"][0], "position": np.arange(9)}
    assert layer(tokens).tolist() == slow_layer(layer, tokens)


def test_shifts_and_saturation() -> None:
    values = np.arange(-40, 41)
    for shift in range(4):
        assert shift_down(values, shift).tolist() == [half_up(Fraction(v, 2**shift)) for v in values.tolist()]
    assert saturate(values, 4).min() == -8 and saturate(values, 4).max() == 7


def test_one_query_row_is_the_row_of_the_whole() -> None:
    layer = random_match3_layer(12, 30, 4, 8, 2)
    tokens = {"x": np.arange(12), "position": np.arange(12)}
    assert (layer(tokens, slice(3, 4)) == layer(tokens)[3:4]).all()


@pytest.mark.parametrize(("n", "modulus"), [(7, 9), (16, 40), (33, 101)])
def test_the_histogram_layer_solves_match3(n: int, modulus: int) -> None:
    task = tasks.get("match3", tokens=n, modulus=modulus)
    layer = histogram_layer(n, modulus, n.bit_length() + 1)
    for kind in ("uniform", "adversarial"):
        batch = task.sample(3, 5, kind)  # type: ignore[arg-type]
        for x, targets in zip(batch.inputs["x"], batch.targets, strict=True):
            shares = layer({"x": x, "position": np.arange(n)})
            labels = [match3_from_histogram(*pair) for pair in zip(shares, x.tolist(), strict=True)]
            assert labels == (targets == 1).tolist()


def test_a_histogram_needs_enough_bits() -> None:
    with pytest.raises(HeadcountError, match="do not show one token among 64"):
        histogram_layer(64, 100, 6)


@pytest.mark.parametrize(("n", "q", "p"), [(17, 2, 10), (33, 4, 12), (65, 8, 16)])
def test_the_sign_key_layer_solves_qsa(n: int, q: int, p: int) -> None:
    layer = sign_key_layer(n, q, 3, p)
    batch = tasks.get("qsa", tokens=n, sparsity=q, dim=3).sample(1, 3)
    for z, y, targets in zip(batch.inputs["z"], batch.inputs["y"], batch.targets, strict=True):
        output = layer.read(layer({"z": z, "y": y, "position": np.arange(n)}))
        # z and the output are rounded by half a step of 2^-(p-2) each, and the mass off the subset is
        # below e^-16 N/q.
        limit = 2.0 ** -(p - 2) + 2 * n / q * math.exp(-16)
        assert np.abs(output - targets).max() <= limit


def test_bad_layers_are_refused() -> None:
    with pytest.raises(HeadcountError, match="do not fit"):
        random_match3_layer(9, 13, 8, 40)
    with pytest.raises(HeadcountError, match="precision_bits is 0"):
        random_match3_layer(9, 13, 8, 0)
    layer = random_match3_layer(9, 13, 2, 4)
    with pytest.raises(HeadcountError, match="more than 3 bits"):
        PBitAttention(layer.embedding, layer.query, layer.key, layer.value, 3)
