"""Recall, induction, composition, parity and majority: loops, kinds, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.tasks.base import NO_ANSWER


@settings(max_examples=100, deadline=None)
@given(x=st.lists(st.integers(0, 7), min_size=1, max_size=30))
def test_recall_equals_loops(x: list[int]) -> None:
    want = []
    for i, key in enumerate(x):
        values = [x[j + 1] for j in range(i - 1) if x[j] == key < 4 <= x[j + 1]]
        want.append(values[-1] if values else NO_ANSWER)
    assert tasks.get("recall", tokens=len(x), symbols=8).batch(x=x).targets[0].tolist() == want


@settings(max_examples=100, deadline=None)
@given(x=st.lists(st.integers(0, 4), min_size=1, max_size=25), hops=st.integers(1, 4))
def test_induction_equals_loops(x: list[int], hops: int) -> None:
    want = []
    for i in range(len(x)):
        place: int | None = i
        for _ in range(hops):
            earlier = [p for p in range(place) if x[p] == x[place]] if place is not None else []
            place = earlier[-1] + 1 if earlier else None
        want.append(NO_ANSWER if place is None else x[place])
    task = tasks.get("induction", tokens=len(x), symbols=5, hops=hops)
    assert task.batch(x=x).targets[0].tolist() == want
    assert task.solve({"x": np.array([x, x[::-1]])})[0].tolist() == want


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), domain=st.integers(2, 6), kind=st.sampled_from(tasks.KINDS))
def test_composition_equals_lookup(seed: int, domain: int, kind: str) -> None:
    batch = tasks.get("composition", tokens=2 * domain + 1).sample(seed, 5, kind)
    for x, target in zip(batch.inputs["x"].tolist(), batch.targets.tolist(), strict=True):
        f, g, a = x[:domain], x[domain:-1], x[-1]
        assert target == [NO_ANSWER] * (2 * domain) + [g[f[a]]]


@settings(max_examples=50, deadline=None)
@given(x=st.lists(st.integers(0, 1), min_size=1, max_size=20))
def test_controls_count_ones(x: list[int]) -> None:
    n = len(x)
    assert tasks.get("parity", tokens=n).batch(x=x).targets[0].tolist() == [sum(x) % 2] * n
    assert tasks.get("majority", tokens=n).batch(x=x).targets[0].tolist() == [int(sum(x) > n / 2)] * n


@pytest.mark.parametrize("tokens", [8, 9, 10, 11, 64, 1000, 4096])
@pytest.mark.parametrize("name, sizes", [("recall", {}), *(("induction", {"hops": k}) for k in (1, 2, 5))])
def test_balanced_sequences_have_answers_at_half_of_their_tokens(name: str, sizes: dict[str, int], tokens: int) -> None:
    task = tasks.get(name, tokens=tokens, **sizes)
    share = task.positive(task.sample(0, 5, "balanced").targets).mean(axis=1)
    assert ((share >= 0.4) & (share <= 0.6)).all(), share


@pytest.mark.parametrize("name, tokens", [("parity", 8), ("majority", 9), ("composition", 9)])
def test_balanced_batches_are_half_positive(name: str, tokens: int) -> None:
    task = tasks.get(name, tokens=tokens)
    assert task.positive(task.sample(0, 50, "balanced").targets[:, -1]).mean() == 0.5


@pytest.mark.parametrize("name", ["induction", "composition", "parity"])
def test_adversarial_pairs_differ_in_one_token_and_in_the_answer(name: str) -> None:
    task = tasks.get(name, tokens=33)
    batch = task.sample(0, 60, "adversarial")
    x, last = batch.inputs["x"], batch.targets[:, -1]
    differ = (x[::2] != x[1::2]).sum(axis=1)
    assert (differ <= 1).all()
    # An induction chain may pass through the changed token and come out elsewhere with the same symbol.
    assert (last[::2] != last[1::2]).mean() >= (0.9 if name == "induction" else 1)


def test_adversarial_majority_is_one_bit_from_the_threshold() -> None:
    ones = tasks.get("majority", tokens=11).sample(0, 10, "adversarial").inputs["x"].sum(axis=1)
    assert set(ones.tolist()) == {5, 6}


def test_adversarial_recall_rebinds_keys() -> None:
    """Answering with the first binding instead of the last fails on about half of the queries."""
    batch = tasks.get("recall", tokens=64, symbols=32).sample(0, 20, "adversarial")
    right = asked = 0
    for x, target in zip(batch.inputs["x"].tolist(), batch.targets.tolist(), strict=True):
        for i in np.flatnonzero(np.array(target) != NO_ANSWER):
            first = next(x[j + 1] for j in range(i) if x[j] == x[i] and x[j + 1] >= 16)
            right += first == target[i]
            asked += 1
    assert asked > 0 and 0.2 < right / asked < 0.8


@pytest.mark.parametrize("name", ["recall", "induction", "composition", "parity", "majority"])
@pytest.mark.parametrize("kind", tasks.KINDS)
def test_same_seed_same_bytes(name: str, kind: str) -> None:
    first, again, other = (tasks.get(name).sample(seed, 3, kind).inputs["x"].tobytes() for seed in (1, 1, 2))
    assert first == again != other


def test_class_scores_skip_unasked_tokens() -> None:
    task = tasks.get("induction", tokens=4, symbols=3)
    batch = task.batch(x=[0, 1, 0, 1])
    assert batch.targets.tolist() == [[-100, -100, 1, 0]]
    assert task.score(np.array([[9, 9, 1, 1]]), batch).wrong == 1
    logits = np.zeros((1, 4, 3))
    logits[0, 2, 1] = logits[0, 3, 0] = 1
    score = task.score(logits, batch)
    assert (score.checked, score.wrong, score.accuracy) == (2, 0, 1.0)
    logits[0, 3, 2] = np.nan
    assert task.score(logits, batch).wrong == 1
    with pytest.raises(HeadcountError, match="the outputs have shape"):
        task.score(np.zeros((1, 3)), batch)


@pytest.mark.parametrize(
    "name, sizes, kind, message",
    [
        ("composition", {"tokens": 8}, "uniform", "tokens 8 is even"),
        ("composition", {"tokens": 3}, "balanced", "only one answer"),
        ("recall", {"symbols": 7}, "uniform", "symbols 7 is odd"),
        ("recall", {"tokens": 2}, "balanced", "8 or more"),
        ("induction", {"symbols": 4}, "balanced", "use 32 symbols or more"),
        ("induction", {"hops": 0}, "uniform", "hops must be"),
        ("match2", {"tokens": 3}, "balanced", "of 3 tokens no number is 40 to 60%"),
    ],
)
def test_refusals(name: str, sizes: dict[str, int], kind: str, message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        tasks.get(name, **sizes).sample(0, 2, kind)
