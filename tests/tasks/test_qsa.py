"""qSA and sparse selection against loops, the kinds, speed, and what is refused."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.tasks import subsets
from headcount.tasks.qsa import GRID
from headcount.tasks.subsets import random_subsets


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(2, 12),
    share=st.floats(0, 1),
    dim=st.integers(1, 5),
    kind=st.sampled_from(tasks.KINDS),
    seed=st.integers(0, 10**6),
)
def test_solver_equals_loops(tokens: int, share: float, dim: int, kind: str, seed: int) -> None:
    sparsity = 1 + int(share * (tokens - 2))  # 1 .. tokens - 1
    task = tasks.get("qsa", tokens=tokens, sparsity=sparsity, dim=dim)
    batch = task.sample(seed, 2, kind)
    for b in range(2):
        z, y = batch.inputs["z"][b], batch.inputs["y"][b]
        assert (np.linalg.norm(z, axis=1) <= 1).all()
        for i in range(tokens):
            assert len(set(y[i])) == sparsity
            mean = sum(z[j].astype(np.float64) for j in y[i]) / sparsity
            np.testing.assert_array_equal(batch.targets[b, i], mean)


def test_sampled_vectors_add_up_exactly() -> None:
    z = tasks.get("qsa", dim=7).sample(0, 4).inputs["z"].astype(np.float64)
    assert (z * GRID == np.rint(z * GRID)).all()
    assert z.std() == pytest.approx(1 / np.sqrt(3 * 7), rel=0.05)  # uniform in the cube


@pytest.mark.parametrize("way", ["list", "network", "sort"])
def test_subsets_are_uniform(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All C(6, 3) subsets appear equally often: chi-squared with 19 degrees of freedom below its 1 - 1e-6."""
    if way != "list":
        monkeypatch.setattr(subsets, "_LIST_LIMIT", 0)
    if way == "sort":
        monkeypatch.setattr(subsets, "_NETWORK_LIMIT", 0)
    drawn = random_subsets(np.random.default_rng(0), 20_000, 6, 3)
    assert (np.diff(drawn) > 0).all()
    counts = dict.fromkeys(itertools.combinations(range(6), 3), 0)
    for row in drawn.tolist():
        counts[tuple(row)] += 1
    expected = 20_000 / 20
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < 65.4


def test_large_subsets_come_from_permutations() -> None:
    drawn = random_subsets(np.random.default_rng(0), 50, 100, 80)
    assert all(len(set(row)) == 80 and min(row) >= 0 and max(row) < 100 for row in drawn.tolist())
    assert drawn.mean() == pytest.approx(49.5, abs=1.5)


@pytest.mark.parametrize("tokens, sparsity", [(8, 1), (8, 4), (8, 7), (9, 3), (9, 6), (64, 4), (255, 200)])
def test_balanced_is_half_positive_in_every_coordinate(tokens: int, sparsity: int) -> None:
    batch = tasks.get("qsa", tokens=tokens, sparsity=sparsity, dim=3).sample(2, 20, "balanced")
    share = (batch.targets > 0).mean(axis=1)
    assert ((share >= 0.4) & (share <= 0.6)).all()


@pytest.mark.parametrize("tokens, sparsity", [(8, 1), (8, 3), (9, 8), (32, 5), (32, 20)])
def test_adversarial_neighbours_are_two_over_q_apart(tokens: int, sparsity: int) -> None:
    batch = tasks.get("qsa", tokens=tokens, sparsity=sparsity).sample(0, 10, "adversarial")
    y, targets = batch.inputs["y"], batch.targets
    for i in range(0, tokens - 1, 2):
        for b in range(10):
            assert len(set(y[b, i]) & set(y[b, i + 1])) == sparsity - 1
        gap = np.linalg.norm(targets[:, i] - targets[:, i + 1], axis=-1)
        np.testing.assert_allclose(gap, 2 / sparsity, rtol=1e-12)


def test_adversarial_holds_disjointness_instances() -> None:
    """In every second pair one set holds no positive vector and the other exactly one."""
    batch = tasks.get("qsa", tokens=32, sparsity=5).sample(0, 10, "adversarial")
    ones = (5 * batch.targets[..., 0] + 5) / 2  # positive vectors in the set
    pairs = np.sort(ones.reshape(160, 2), axis=1)
    np.testing.assert_allclose(pairs[1::2], [[0, 1]] * 80, atol=1e-12)


@pytest.mark.parametrize("tokens, sparsity, dim", [(4096, 16, 8), (64, 4, 8)])
def test_ten_million_floats_a_second(tokens: int, sparsity: int, dim: int) -> None:
    task = tasks.get("qsa", tokens=tokens, sparsity=sparsity, dim=dim)
    count = 600_000 // (tokens * dim)
    best = min(_seconds(lambda: task.sample(0, count)) for _ in range(5))
    assert count * tokens * dim / best > 10e6


def test_sums_of_any_vectors_are_those_of_float64() -> None:
    """Vectors off the grid take the float64 way; float32 sums would be off by 1e-8."""
    rng = np.random.default_rng(0)
    z = (rng.uniform(-1, 1, (20, 3)) / 2).astype(np.float32)
    y = np.stack([np.sort(rng.permutation(20)[:9]) for _ in range(20)])
    task = tasks.get("qsa", tokens=20, sparsity=9, dim=3)
    want = z.astype(np.float64)[y].sum(1) / 9
    assert np.abs(task.batch(z=z, y=y).targets[0] - want).max() < 1e-15
    drawn = task.sample(0, 1)
    as_float64 = {"z": drawn.inputs["z"].astype(np.float64), "y": drawn.inputs["y"]}
    np.testing.assert_array_equal(task.solve(as_float64), drawn.targets)


def _seconds(work) -> float:  # type: ignore[no-untyped-def]
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize("name", ["qsa", "sparse-selection"])
@pytest.mark.parametrize("kind", tasks.KINDS)
def test_same_seed_same_bytes(name: str, kind: str) -> None:
    first, again = (tasks.get(name).sample(7, 3, kind) for _ in range(2))
    for key in ("z", "y"):
        assert first.inputs[key].tobytes() == again.inputs[key].tobytes()
    assert first.targets.tobytes() == again.targets.tobytes()


def test_bytes_are_those_of_every_machine() -> None:
    batch = tasks.get("qsa", tokens=3, sparsity=2, dim=1).sample(0)
    assert (batch.inputs["z"][0, :, 0] * GRID).tolist() == [26917.0, -6695.0, -25991.0]
    assert batch.inputs["y"][0].tolist() == [[0, 1], [0, 1], [0, 2]]


def test_model_input_has_vector_set_and_position() -> None:
    task = tasks.get("qsa", tokens=5, sparsity=2, dim=3)
    batch = task.sample(0, 2)
    x = task.model_input(batch)
    assert x.shape == (2, 5, 6)
    np.testing.assert_array_equal(x[..., :3], batch.inputs["z"])
    np.testing.assert_array_equal(x[..., 3:5], batch.inputs["y"])
    np.testing.assert_array_equal(x[1, :, 5], np.arange(5))


def test_selection_is_qsa_with_equal_sets() -> None:
    task = tasks.get("sparse-selection", tokens=12, sparsity=3, dim=2)
    for kind in tasks.KINDS:
        batch = task.sample(1, 6, kind)
        y = np.repeat(batch.inputs["y"][:, None], 12, axis=1)
        qsa = tasks.get("qsa", tokens=12, sparsity=3, dim=2)
        np.testing.assert_array_equal(qsa.batch(z=batch.inputs["z"], y=y).targets, batch.targets)
        assert task.model_input(batch).shape == (6, 12, 6)
    balanced = task.sample(1, 40, "balanced")
    assert task.positive(balanced.targets).mean() == 0.5
    near = task.sample(1, 10, "adversarial").targets[:, 0]
    np.testing.assert_allclose(np.linalg.norm(near[::2] - near[1::2], axis=1), 2 / 3, rtol=1e-12)


def test_score_uses_epsilon() -> None:
    task = tasks.get("qsa", tokens=4, sparsity=2, dim=2)
    batch = task.sample(0)
    outputs = batch.targets.copy()
    outputs[0, 1] += [3e-3, 4e-3]
    outputs[0, 2, 0] = np.nan
    loose, tight = task.score(outputs, batch, epsilon=0.01), task.score(outputs, batch, epsilon=0.001)
    assert (loose.wrong, tight.wrong, tight.checked) == (1, 2, 4)
    finite = task.score(np.nan_to_num(outputs, nan=batch.targets[0, 2, 0]), batch)
    assert finite.max_error == pytest.approx(5e-3)
    with pytest.raises(HeadcountError, match="epsilon must be positive"):
        task.score(outputs, batch, epsilon=0.0)


def _qsa(**changes: object) -> dict[str, object]:
    return {"z": np.zeros((3, 2)), "y": np.array([[0, 1], [1, 2], [0, 2]])} | changes


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            _qsa(y=np.array([[0, 1], [1, 1], [0, 2]])),
            "the set of token 1 in sequence 0 has a repeated element",
        ),
        (_qsa(y=np.array([[0, 1], [1, 3], [0, 2]])), r"a set holds token 3, outside \[0, 3\)"),
        (_qsa(y=np.array([[0.0, 1], [1, 2], [0, 2]])), "y holds float64 numbers"),
        (_qsa(z=np.full((3, 2), 0.8)), "norm 1.13137, above 1"),
        (_qsa(z=np.full((3, 2), np.nan)), "no finite numbers"),
        (_qsa(z=np.zeros((3, 3))), "z has shape"),
        ({"z": np.zeros((3, 2))}, "takes the inputs z, y"),
    ],
)
def test_bad_input_is_named(inputs: dict[str, object], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        tasks.get("qsa", tokens=3, sparsity=2, dim=2).batch(**inputs)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"sparsity": 65}, "sparsity 65 is larger than the number of tokens 64"),
        ({"sparsity": 0}, "sparsity must be an integer of at least 1"),
        ({"dim": 0}, "dim must be an integer of at least 1, not 0"),
    ],
)
def test_bad_sizes_are_named(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        tasks.get("qsa", **sizes)


def test_unbalanceable_sizes_say_which_range_works() -> None:
    task = tasks.get("qsa", tokens=4, sparsity=4)
    for kind in ("balanced", "adversarial"):
        with pytest.raises(HeadcountError, match="choose a sparsity below 4"):
            task.sample(0, 1, kind)
    with pytest.raises(HeadcountError, match="kind 'hard' is unknown"):
        task.sample(0, 1, "hard")
    with pytest.raises(HeadcountError, match="count must be at least 1"):
        task.sample(0, 0)


def test_many_sequences_at_once_and_one_by_one_are_the_same_bits() -> None:
    """Long sequences are solved one by one, short ones together; both sum in the same order."""
    short = tasks.get("qsa", tokens=50, sparsity=5, dim=6)
    batch = short.sample(0, 300)
    together = short.solve(batch)
    for row in (0, 137, 299):
        z, y = batch.inputs["z"][row].astype(np.float64), batch.inputs["y"][row]
        total = z[y[:, 0]].copy()
        for k in range(1, 5):
            total += z[y[:, k]]
        assert np.array_equal(together[row], total / 5)
