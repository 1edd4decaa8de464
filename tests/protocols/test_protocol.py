"""The simulation gives the layer's own output bit for bit, and its bits are all counted."""

from __future__ import annotations

import numpy as np
import pytest

from headcount import bounds
from headcount.pbit.examples import (
    histogram_layer,
    match3_from_histogram,
    random_match3_layer,
    random_qsa_layer,
    sign_key_layer,
)
from headcount.protocols import two_party as protocol
from headcount.protocols.disjointness import FIRST, SECOND, match3_instance, qsa_instance, set_pairs
from headcount.protocols.two_party import Channel, match3_bits, run_match3, run_qsa


@pytest.mark.parametrize(("width", "p", "heads"), [(1, 1, 1), (1, 2, 1), (3, 5, 2), (8, 12, 4), (2, 24, 1)])
@pytest.mark.parametrize("tokens", [3, 8, 41])
def test_match3_bit_for_bit(tokens: int, width: int, p: int, heads: int) -> None:
    n, modulus = (tokens - 1) // 2, tokens + 6
    for seed in range(4):
        layer = random_match3_layer(tokens, modulus, width, p, heads, seed)
        for first, second in set_pairs(np.random.default_rng(seed), n, 6):
            instance = match3_instance(first, second, modulus, tokens)
            run = run_match3(layer, instance)
            assert run.output.tobytes() == layer(instance.tokens)[0].tobytes()
            assert run.bits == match3_bits(layer, n)
            assert run.second_bits == heads * p


@pytest.mark.parametrize(("width", "p", "heads"), [(1, 2, 1), (3, 5, 2), (8, 12, 4), (2, 24, 1)])
@pytest.mark.parametrize(("tokens", "q"), [(3, 1), (9, 4), (40, 5)])
def test_qsa_bit_for_bit(tokens: int, q: int, width: int, p: int, heads: int) -> None:
    for seed in range(4):
        layer = random_qsa_layer(tokens, q, 2, width, p, heads, seed)
        for first, second in set_pairs(np.random.default_rng(seed), q, 6):
            instance = qsa_instance(first, second, tokens, dim=2)
            run = run_qsa(layer, instance)
            assert run.output.tobytes() == layer(instance.tokens)[0].tobytes()
            assert (run.first_bits, run.second_bits) == (width * p, 0)


def test_a_layer_that_solves_match3_sends_at_least_the_bits_of_disjointness() -> None:
    for tokens in (9, 33, 65):
        n, modulus = (tokens - 1) // 2, tokens + 1
        layer = histogram_layer(tokens, modulus, tokens.bit_length() + 1)
        for first, second in set_pairs(np.random.default_rng(tokens), n, 20):
            instance = match3_instance(first, second, modulus, tokens)
            run = run_match3(layer, instance)
            assert match3_from_histogram(run.output, 1) == instance.meet
            assert run.bits >= n


def test_a_layer_that_solves_qsa_sends_at_least_the_bits_of_disjointness() -> None:
    for tokens, q, p in ((17, 4, 10), (41, 8, 14)):
        layer = sign_key_layer(tokens, q, 1, p)
        for first, second in set_pairs(np.random.default_rng(q), q, 8):
            instance = qsa_instance(first, second, tokens)
            run = run_qsa(layer, instance)
            assert bool(layer.read(run.output)[0] > 1 / (2 * q)) == instance.meet
            assert run.bits >= q


def test_the_first_party_sees_nothing_but_its_tokens_and_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two instances that differ in the second set only: what the first party says first agrees."""
    layer = random_match3_layer(21, 30, 3, 6, 2)
    first = np.arange(10) % 3 == 0
    said = []
    for second in (np.arange(10) % 3 == 1, np.zeros(10, dtype=bool)):
        channels: list[Channel] = []

        class Recorded(Channel):
            def __init__(self, log: list[Channel] = channels) -> None:
                super().__init__()
                log.append(self)

        monkeypatch.setattr(protocol, "Channel", Recorded)
        run_match3(layer, match3_instance(first, second, 30))
        said.append(channels[0].first[: layer.heads])
    assert said[0] == said[1]


def test_the_channel_carries_bits() -> None:
    channel = Channel()
    for number, bits, signed in [(-4, 3, True), (3, 3, True), (7, 3, False), (0, 1, False), (-1, 1, True)]:
        assert channel.send(FIRST, number, bits, signed) == number
    assert channel.first == ["100", "011", "111", "0", "1"]
    channel.send(SECOND, 5, 9)
    assert (channel.first_bits, channel.second_bits) == (11, 9)
    with pytest.raises(AssertionError, match="does not fit"):
        channel.send(FIRST, 4, 3)


@pytest.mark.parametrize(("tokens", "p", "heads"), [(65, 4, 1), (257, 8, 2), (1025, 16, 3), (4097, 8, 8)])
def test_match3_protocol_bound_is_where_the_count_reaches_the_bits(tokens: int, p: int, heads: int) -> None:
    n = (tokens - 1) // 2
    m = bounds.get("match3-protocol").evaluate(tokens=tokens, precision_bits=p, heads=heads).value
    assert m is not None

    def count(width: int) -> int:
        return heads * (
            2 * p + (n * (2**p - 1)).bit_length() + width * (1 + (n * (2**p - 1) * 2 ** (p - 1)).bit_length())
        )

    assert count(m) >= n
    assert m == 0 or count(m - 1) < n


def test_match3_protocol_names_what_it_needs() -> None:
    bound = bounds.get("match3-protocol")
    assert "M >= N + 1" in str(bound.evaluate(tokens=64, modulus=64, precision_bits=8).why_not)
    assert "precision" in str(bound.evaluate(tokens=64, modulus=65).why_not)
