"""One seed, many independent streams, the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.core.seeds import derive, numpy_generator, torch_generator

NAMES = st.lists(st.one_of(st.text(max_size=5), st.integers(-5, 50)), max_size=3).map(tuple)


@given(seed=st.integers(-(2**70), 2**70), names=NAMES)
@settings(deadline=None, max_examples=100)
def test_seeds_have_63_bits(seed: int, names: tuple[str | int, ...]) -> None:
    assert 0 <= derive(seed, *names) < 2**63


def test_purposes_do_not_collide() -> None:
    """Number and text, joined and apart, seed and name: all distinct."""
    purposes: list[tuple[int, tuple[str | int, ...]]] = [
        *((seed, ()) for seed in range(100)),
        *((0, (name,)) for name in range(100)),
        *((0, (str(name),)) for name in range(100)),
        *((0, ("a", name)) for name in range(100)),
        *[(0, ("ab", "c")), (0, ("a", "bc")), (0, ("abc",)), (0, ("a", "b", "c")), (-1, ())],
    ]
    assert len({derive(seed, *names) for seed, names in purposes}) == len(purposes)


def test_values_are_fixed_for_good() -> None:
    """Changing them would change every published figure."""
    assert derive(0, "labels", 3) == 7894378570982779872
    assert numpy_generator(0, "documents", "prose").integers(0, 10**9, 3).tolist() == [560489455, 35821961, 884700176]
    drawn = torch.randint(10**9, (3,), generator=torch_generator(0, "self", 0))
    assert drawn.tolist() == [392235489, 560616692, 85510462]


def test_generators_are_their_own() -> None:
    """Same purpose, same numbers; nothing is drawn from or seeded into global state."""
    np_state, torch_state = str(np.random.get_state()), torch.random.get_rng_state()
    first, again = numpy_generator(1, "a"), numpy_generator(1, "a")
    assert first.random(5).tolist() == again.random(5).tolist() != numpy_generator(1, "b").random(5).tolist()
    one, two = torch_generator(1, "a"), torch_generator(1, "a")
    torch.rand(7, generator=torch_generator(1, "b"))
    assert torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=two))
    assert str(np.random.get_state()) == np_state
    assert torch.equal(torch.random.get_rng_state(), torch_state)


def test_streams_are_unrelated() -> None:
    """Neighbouring seeds and names: correlation within 4 standard errors (1/sqrt(n))."""
    draws = np.stack([numpy_generator(seed, "x", name).standard_normal(10_000) for seed in (0, 1) for name in (0, 1)])
    correlation = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlation).max() < 4 / 100
