"""Match2, Match3 and MatchS: the solver against loops, the three kinds, what is refused."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.tasks import residues
from headcount.tasks.residues import Residues, convolve, convolve_at


def brute(x: np.ndarray, modulus: int, order: int, distinct: bool = False) -> list[int]:
    """Loop over all tuples."""
    n = len(x)
    labels = []
    for i in range(n):
        found = any(
            (x[i] + sum(x[j] for j in others)) % modulus == 0
            for others in itertools.product(range(n), repeat=order - 1)
            if not distinct or len({i, *others}) == order
        )
        labels.append(int(found))
    return labels


@settings(max_examples=150, deadline=None)
@given(
    x=st.lists(st.integers(0, 10**6), min_size=1, max_size=9),
    modulus=st.integers(2, 40),
    order=st.integers(2, 4),
    distinct=st.booleans(),
)
def test_solver_equals_loops(x: list[int], modulus: int, order: int, distinct: bool) -> None:
    tokens = np.array(x) % modulus
    task = tasks.get("match-s", tokens=len(x), modulus=modulus, order=order, distinct=distinct)
    assert task.batch(x=tokens).targets[0].tolist() == brute(tokens, modulus, order, distinct)


@pytest.mark.parametrize("name, order", [("match2", 2), ("match3", 3)])
def test_named_orders_agree_with_match_s(name: str, order: int) -> None:
    batch = tasks.get(name, tokens=40, modulus=97).sample(3, 5)
    general = tasks.get("match-s", tokens=40, modulus=97, order=order)
    np.testing.assert_array_equal(general.solve(batch), batch.targets)


@settings(max_examples=60, deadline=None)
@given(
    modulus=st.integers(2, 300),
    a=st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
    b=st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
    seed=st.integers(0, 99),
)
def test_fft_and_pairs_give_the_same_integers(modulus: int, a: list[int], b: list[int], seed: int) -> None:
    f, g = (Residues.of(np.array(values) % modulus, modulus) for values in (a, b))
    direct = np.zeros(modulus, dtype=np.int64)
    for r, w in zip(f.support, f.weights, strict=True):
        for t, v in zip(g.support, g.weights, strict=True):
            direct[(r + t) % modulus] += w * v
    np.testing.assert_array_equal(residues._fft(f, g), direct)
    paired = convolve(f, g)
    np.testing.assert_array_equal(paired.at(np.arange(modulus)), direct)
    points = np.random.default_rng(seed).integers(0, modulus, 20)
    np.testing.assert_array_equal(convolve_at(f, g, points), direct[points])


def test_sparse_lookup_sees_through_equal_low_bits() -> None:
    """Residues that agree in the bits of the first table are told apart."""
    modulus = 2**40
    a = Residues.of(np.array([0, 2**20]), modulus)
    b = Residues.of(np.array([5, 5 + 2**20, 7]), modulus)
    points = np.array([5, 5 + 2**20, 5 + 2**21, 5 + 2**22, 7 + 2**20, 6])
    assert convolve_at(a, b, points).tolist() == [1, 2, 1, 0, 1, 0]


def test_rounding_bound_holds_with_room_at_a_million() -> None:
    """The bound that the exactness rests on, and the error that is seen."""
    modulus = 1_000_003
    single = Residues.of(np.random.default_rng(0).integers(0, modulus, 10**6), modulus).indicator()
    length = residues._length(modulus)
    bound = residues.rounding_bound(single, single, length)
    assert bound < 1e-3
    dense = np.zeros(length)
    dense[single.support] = 1
    spectrum = np.fft.rfft(dense)
    raw = np.fft.irfft(spectrum * spectrum, length)
    assert np.abs(raw - np.rint(raw)).max() < bound


def test_a_million_tokens_in_under_two_seconds() -> None:
    task = tasks.get("match3", tokens=10**6, modulus=1_000_003)
    x = np.random.default_rng(0).integers(0, 1000, 10**6)  # few values: not all tokens match
    x[: 10**6 // 2] += 400_000
    start = time.process_time()
    labels = task.batch(x=x).targets[0]
    assert time.process_time() - start < 2
    present = np.unique(x)
    sums = np.unique((present[:, None] + present) % 1_000_003)
    np.testing.assert_array_equal(labels, np.isin(-x % 1_000_003, sums))
    assert 0 < labels.sum() < len(labels)


def test_too_large_to_be_exact_is_refused() -> None:
    task = tasks.get("match3", tokens=300_000, modulus=2**40)
    with pytest.raises(HeadcountError, match="too many to try"):
        task.batch(x=np.arange(300_000) * 3)


@pytest.mark.parametrize("tokens", [8, 9, 23, 64, 256])
@pytest.mark.parametrize("name, sizes", [("match2", {}), ("match3", {}), ("match-s", {"order": 4})])
def test_balanced_between_40_and_60_percent(name: str, sizes: dict[str, int], tokens: int) -> None:
    smallest = {"match2": 3, "match3": 4, "match-s": 5}[name]
    for modulus in (None, smallest, smallest + 1, 11, 101, 4001, 10**7):
        task = tasks.get(name, tokens=tokens, modulus=modulus, **sizes)
        share = task.sample(1, 6, "balanced").targets.mean(axis=1)
        assert ((share >= 0.4) & (share <= 0.6)).all(), (modulus, share)


def test_balanced_at_the_longest_length() -> None:
    for modulus in (None, 101, 10**8):
        share = tasks.get("match3", tokens=4096, modulus=modulus).sample(0, 1, "balanced").targets.mean()
        assert 0.4 <= share <= 0.6


def test_balanced_with_distinct_indices() -> None:
    for modulus in (4, 50, 10**6):
        task = tasks.get("match3", tokens=32, modulus=modulus, distinct=True)
        share = task.sample(1, 10, "balanced").targets.mean(axis=1)
        assert ((share >= 0.4) & (share <= 0.6)).all()


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_no_balance_exactly_where_the_error_says(order: int) -> None:
    """For M <= s every set of residues matches wholly or not at all; for M > s some set does neither."""
    for modulus in range(2, 9):
        mixed = False
        for size in range(1, modulus + 1):
            for values in itertools.combinations(range(modulus), size):
                matches = residues.tuples_to_zero(np.array(values), modulus, order)
                mixed |= matches.any() and not matches.all()
        assert mixed == (modulus > order)
        task = tasks.get("match-s", tokens=16, modulus=modulus, order=order)
        if mixed:
            task.sample(0, 1, "balanced")
        else:
            with pytest.raises(HeadcountError, match=f"modulus of {order + 1} or more"):
                task.sample(0, 1, "balanced")


def test_thousand_balanced_sequences_in_under_ten_seconds() -> None:
    start = time.process_time()
    tasks.get("match3", tokens=256).sample(0, 100, "balanced")
    assert time.process_time() - start < 1


def test_adversarial_plants_misses_by_one() -> None:
    """Tuples that sum to +-1 are far more frequent than chance, and some tuples do match."""
    task = tasks.get("match3", tokens=24, modulus=100_003)
    batch = task.sample(0, 50, "adversarial")
    sums = np.array([[a + b + c for a, b, c in itertools.combinations(x, 3)] for x in batch.inputs["x"]])
    near = np.isin(sums % 100_003, [1, 100_002]).sum()
    chance = sums.size * 2 / 100_003
    assert near > 10 * chance
    assert 0 < batch.targets.mean() < 0.5


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_same_seed_same_bytes(kind: str) -> None:
    first, again, other = (tasks.get("match3").sample(seed, 3, kind) for seed in (5, 5, 6))
    assert first.inputs["x"].tobytes() == again.inputs["x"].tobytes()
    assert first.inputs["x"].tobytes() != other.inputs["x"].tobytes()


def test_bytes_are_those_of_every_machine() -> None:
    x = tasks.get("match3", tokens=8, modulus=1000).sample(0).inputs["x"]
    assert x.tolist() == [[701, 875, 475, 890, 740, 594, 850, 215]]


def test_score_counts_and_distances() -> None:
    task = tasks.get("match2", tokens=3, modulus=5)
    batch = task.batch(x=[1, 4, 2])
    assert batch.targets.tolist() == [[1, 1, 0]]
    score = task.score(np.array([[0.9, 0.2, math.nan]]), batch)
    assert (score.checked, score.wrong, score.max_error) == (3, 2, math.inf)
    assert task.score(batch.targets, batch).accuracy == 1


@pytest.mark.parametrize(
    "name, sizes, inputs, message",
    [
        ("match3", {"modulus": 1}, None, "modulus must be an integer of at least 2, not 1"),
        ("match3", {"tokens": 0}, None, "tokens must be an integer of at least 1, not 0"),
        ("match3", {"order": 4}, None, "the order of match3 is 3, not 4"),
        ("match-s", {"order": 1}, None, "order must be"),
        ("match3", {"window": 4}, None, "has no size 'window'"),
        ("match33", {}, None, "there is no task 'match33'; did you mean match3?"),
        ("match3", {"tokens": 3, "modulus": 5}, [1, 5, 2], r"token 1 of sequence 0 is 5, outside \[0, 5\)"),
        ("match3", {"tokens": 3, "modulus": 5}, [1, -1, 2], "is -1, outside"),
        ("match3", {"tokens": 3, "modulus": 5}, [1, 2], "has shape"),
        ("match3", {"tokens": 2, "modulus": 5}, [1.5, 2.0], "float64"),
    ],
)
def test_bad_input_is_named(name: str, sizes: dict[str, int], inputs: list[int] | None, message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        task = tasks.get(name, **sizes)
        task.batch(x=inputs)


@pytest.mark.parametrize(("tokens", "modulus"), [(1, 5), (5, 2), (8, None), (40, None), (9, 1000), (20, 7)])
def test_triples_of_many_sequences_at_once(tokens: int, modulus: int | None) -> None:
    """The solver for batches against the one for single sequences, which is held against brute force above."""
    task = tasks.get("match3", tokens=tokens, modulus=modulus)
    batch = task.sample(0, 200)
    assert np.array_equal(batch.targets, np.stack([task.label(row) for row in batch.inputs["x"]]))
