"""Match3Bigram and Match3Local: every input of small sizes, large moduli, edges of the window."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from headcount import constructions
from headcount.core.errors import HeadcountError


@pytest.mark.parametrize("tokens, modulus", [(1, 3), (2, 7), (3, 6), (4, 5), (5, 3)])
def test_bigram_on_every_input(tokens: int, modulus: int) -> None:
    built = constructions.build("match3-bigram", tokens=tokens, modulus=modulus)
    x = np.array(list(itertools.product(range(modulus), repeat=tokens)))
    batch = built.task.batch(x=x)
    outputs = built.module(torch.from_numpy(x)).detach().numpy()
    assert np.abs(outputs - batch.targets).max() < built.certificate.epsilon


@pytest.mark.parametrize("tokens, modulus, window", [(1, 4, 0), (3, 5, 0), (4, 5, 1), (5, 4, 2), (4, 5, 9)])
def test_local_on_every_input(tokens: int, modulus: int, window: int) -> None:
    built = constructions.build("match3-local", tokens=tokens, modulus=modulus, window=window)
    x = np.array(list(itertools.product(range(modulus), repeat=tokens)))
    batch = built.task.batch(x=x)
    outputs = built.module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_array_equal(outputs, batch.targets)


@pytest.mark.parametrize("kind", ["uniform", "balanced", "adversarial"])
@pytest.mark.parametrize("name", ["match3-bigram", "match3-local"])
@pytest.mark.parametrize("modulus", [101, 10_007])
def test_sampled_sequences(name: str, modulus: int, kind: str) -> None:
    built = constructions.build(name, tokens=48, modulus=modulus)
    found = built.verify(built.task.sample(0, 3, kind))
    assert found.verified and found.wrong == 0


def test_shapes_of_the_certificates() -> None:
    bigram = constructions.build("match3-bigram", tokens=20, modulus=50).certificate
    assert (bigram.layers, bigram.heads, bigram.order, bigram.embedding_dim) == (2, 2, 2, 6)
    local = constructions.build("match3-local", tokens=20, modulus=50, window=2)
    certificate = local.certificate
    assert (certificate.layers, certificate.heads, certificate.order) == (1, 1, 2)
    assert certificate.embedding_dim == local.module.keys.shape[1] + 2 * 5
    assert certificate.guarantee == bigram.guarantee == "all inputs"


def test_local_dimension_grows_like_window_log_n() -> None:
    for tokens, window in ((64, 2), (64, 8), (200, 4)):
        built = constructions.build("match3-local", tokens=tokens, modulus=101, window=window)
        keys = built.module.keys.shape[1]
        assert 0.5 < keys / ((2 * window + 1) * np.log(tokens)) < 3


@pytest.mark.parametrize("name", ["match3-bigram", "match3-local"])
@pytest.mark.parametrize("modulus", [31, 401])
def test_the_analysed_bits_suffice_and_are_not_far_off(name: str, modulus: int) -> None:
    built = constructions.build(name, tokens=12, modulus=modulus)
    bits = built.certificate.bits
    for kind in ("uniform", "adversarial", "balanced"):
        assert built.verify(built.task.sample(1, 3, kind), f"float:{bits}").verified
    assert not built.verify(built.task.sample(1, 3, "balanced"), f"float:{bits - 9}").verified


def test_the_margins_of_the_local_rounding_analysis() -> None:
    """The inequalities in the docstring of build_match3_local, for sin(pi/M) <= 1."""
    stretch = 2 ** (1 / 8)
    off = stretch / 4
    own, least, most = 2 / stretch, 1 / stretch, stretch
    assert (round(own, 3), round(least, 3), round(most, 3)) == (1.834, 0.917, 1.091) and off < 0.273
    assert own * 15 / 16 - off > most * 17 / 16 + off
    assert off < 1 / 2 < least * 15 / 16 - off
    assert (off + most / 16) / least < 1


def test_overflow_is_wrong_and_not_a_crash() -> None:
    for name in ("match3-bigram", "match3-local"):
        built = constructions.build(name, tokens=16, modulus=1009)
        found = built.verify(built.task.sample(0, 1, "balanced"), "e4m3")
        assert not found.verified


def test_refusals() -> None:
    with pytest.raises(HeadcountError, match="window must be"):
        constructions.build("match3-local", window=-1)
    with pytest.raises(HeadcountError, match="are too many"):
        constructions.build("match3-local", tokens=10_000, window=2_000)
