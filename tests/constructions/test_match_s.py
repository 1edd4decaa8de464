"""Match2 and MatchS: every input where feasible, near misses elsewhere, and what the docstring derives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount import constructions
from headcount.constructions.matching.any_order import Levels, build_match_s
from headcount.core.errors import HeadcountError


@settings(max_examples=60, deadline=None)
@given(angles=st.lists(st.floats(-10, 10), min_size=2, max_size=6))
def test_cosine_of_a_sum_is_a_sum_of_products(angles: list[float]) -> None:
    s = len(angles)
    total = sum((-1) ** k * math.prod(math.cos(a - math.pi * k / s) for a in angles) for k in range(s))
    assert 2 ** (s - 1) / s * total == pytest.approx(math.cos(sum(angles)), abs=1e-13)


@pytest.mark.parametrize(
    "order, tokens, modulus", [(2, 3, 7), (2, 4, 5), (3, 1, 5), (3, 3, 6), (3, 4, 4), (4, 2, 5), (4, 3, 5)]
)
def test_every_input_of_small_sizes(order: int, tokens: int, modulus: int) -> None:
    built = build_match_s(tokens, modulus, order)
    x = np.array(list(itertools.product(range(modulus), repeat=tokens)))
    batch = built.task.batch(x=x)
    outputs = built.module(torch.from_numpy(x)).detach().numpy()
    assert 0 < batch.targets.mean() < 1
    assert np.abs(outputs - batch.targets).max() < built.certificate.epsilon


@pytest.mark.parametrize("order, dims", [(2, 3), (3, 4), (4, 5)])
def test_dimension_is_order_plus_one(order: int, dims: int) -> None:
    built = build_match_s(6, 11, order)
    certificate = built.certificate
    assert (certificate.embedding_dim, certificate.single_map_dim, certificate.order) == (dims, dims, order)
    assert (certificate.heads, certificate.layers, certificate.guarantee) == (1, 1, "all inputs")
    assert built.module.unit.w_q.shape == (1, dims, dims)


@pytest.mark.parametrize("kind", ["uniform", "balanced", "adversarial"])
@pytest.mark.parametrize(
    "tokens, modulus, precision",
    [(64, 4001, "fp32"), (64, 100_003, "fp64"), (17, 100_003, "fp64"), (8, 101, "fp32")],
)
def test_no_wrong_output_at_the_promised_sizes(tokens: int, modulus: int, precision: str, kind: str) -> None:
    built = build_match_s(tokens, modulus, 3)
    found = built.verify(built.task.sample(5, 2, kind), precision)
    assert found.wrong == 0 and found.checked == 2 * tokens
    if precision == "fp64":
        assert found.verified and found.max_error < 1e-3


def test_native_float32_holds_too() -> None:
    """The module itself in torch.float32, not simulated."""
    built = build_match_s(64, 4001, 3)
    for kind in ("uniform", "adversarial"):
        batch = built.task.sample(0, 4, kind)
        outputs = built.module.float()(torch.from_numpy(batch.inputs["x"])).detach().numpy()
        assert outputs.dtype == np.float32
        assert built.task.score(outputs, batch).wrong == 0


def test_blank_at_half_the_gap_fails_for_order_4() -> None:
    """THEORY.md's scale (s ln(N+1) + ln 8)/g: one match against the blanks' tuples ends below 1/2."""
    n, s = 64, 4
    match = (s * math.log(n + 1) + math.log(8)) / 2  # c g / 2: the blanks lie half a gap below
    blanks = (n + 1) ** (s - 1) - n ** (s - 1)
    assert math.exp(match) / (math.exp(match) + blanks) < 0.5
    mine = Levels.of(n ** (s - 1), blanks, 1.0, 1e-3)
    assert math.exp(mine.above) / (math.exp(mine.above) + blanks) > 1 - 1e-3
    below = mine.scale - mine.above
    assert n ** (s - 1) * math.exp(-below) / (blanks + n ** (s - 1) * math.exp(-below)) < 1e-3


@pytest.mark.parametrize("order, tokens, modulus", [(2, 16, 101), (2, 8, 1009), (3, 12, 101), (4, 6, 31)])
def test_the_analysed_bits_suffice_and_are_not_far_off(order: int, tokens: int, modulus: int) -> None:
    built = build_match_s(tokens, modulus, order)
    bits = built.certificate.bits
    for kind in ("uniform", "balanced", "adversarial"):
        batch = built.task.sample(1, 4, kind)
        assert built.verify(batch, f"float:{bits}").verified
    assert not built.verify(built.task.sample(1, 4, "balanced"), f"float:{bits - 10}").verified


def test_precision_cliff_of_the_prototype() -> None:
    """fp16 holds at M = 31 and not at M = 401; fp32 holds at 4001 and not at 100,003."""
    for modulus, precision, holds in ((31, "fp16", True), (401, "fp16", False), (100_003, "fp32", False)):
        built = build_match_s(24, modulus, 3)
        batch = built.task.sample(0, 2, "balanced")
        found = built.verify(batch, precision)
        assert found.verified == holds
        assert (found.first_failure is None) == holds


def test_tokens_do_not_look_at_the_blank_of_others() -> None:
    """Batches give what single sequences give."""
    built = build_match_s(10, 53, 3)
    batch = built.task.sample(0, 5, "balanced")
    x = torch.from_numpy(batch.inputs["x"])
    together = built.module(x)
    for row in range(5):
        torch.testing.assert_close(built.module(x[row : row + 1])[0], together[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"order": 5}, "order 5 has no construction"),
        ({"order": 1}, "order must be"),
        ({"order": 4, "tokens": 1000}, "tuples of order 4"),
        ({"epsilon": 0.0}, r"epsilon 0\.0 is outside"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"modulus": 1}, "modulus"),
        ({"tokens": 0}, "tokens"),
    ],
)
def test_refusals(options: dict[str, float], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        constructions.build("match-s", **options)
