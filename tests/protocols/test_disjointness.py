"""Instances say what they claim: the answer at token 0 against the tasks' own solvers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.protocols.disjointness import (
    FIRST,
    PUBLIC,
    SECOND,
    match3_instance,
    match3_sets,
    qsa_instance,
    set_pairs,
)


def all_sets(n: int) -> list[np.ndarray]:
    return [np.array(bits, dtype=bool) for bits in itertools.product((0, 1), repeat=n)]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_match3_label_is_whether_the_sets_meet_for_every_pair(n: int) -> None:
    for modulus in (2 * n + 2, 2 * n + 3, 2 * n + 4, 4 * n + 9):
        for extra in (0, 1):
            task = tasks.get("match3", tokens=2 * n + 1 + extra, modulus=modulus)
            for first, second in itertools.product(all_sets(n), all_sets(n)):
                instance = match3_instance(first, second, modulus, task.tokens)
                label = task.batch(x=instance.tokens["x"]).targets[0, 0]
                assert bool(label) == instance.meet == bool((first & second).any())


def test_match3_tokens_reveal_only_their_owner_s_set() -> None:
    sets = all_sets(3)
    for first, other in itertools.product(sets, sets):
        one, two = match3_instance(first, sets[5], 8), match3_instance(other, sets[5], 8)
        for owner in (SECOND, PUBLIC):
            assert (one.rows(owner)["x"] == two.rows(owner)["x"]).all()
        one, two = match3_instance(sets[5], first, 8), match3_instance(sets[5], other, 8)
        for owner in (FIRST, PUBLIC):
            assert (one.rows(owner)["x"] == two.rows(owner)["x"]).all()
    assert match3_sets(7) == match3_sets(8) == 3


@pytest.mark.parametrize("q", [1, 2, 4])
def test_qsa_target_counts_common_elements(q: int) -> None:
    task = tasks.get("qsa", tokens=2 * q + 3, sparsity=q, dim=2)
    for first, second in itertools.product(all_sets(q), all_sets(q)):
        instance = qsa_instance(first, second, task.tokens, dim=2)
        targets = task.batch(z=instance.tokens["z"], y=instance.tokens["y"]).targets
        assert targets[0, 0].tolist() == [(first & second).sum() / q, 0.0]
        assert instance.meet == (targets[0, 0, 0] >= 1 / q)
        assert (instance.rows(FIRST)["position"] == [0]).all()


def test_hard_pairs_alternate_and_meet_in_one_element() -> None:
    pairs = list(set_pairs(np.random.default_rng(0), 20, 50))
    assert [int((a & b).sum()) for a, b in pairs] == [0, 1] * 25


def test_impossible_instances_are_refused() -> None:
    sets = np.zeros(3, dtype=bool)
    with pytest.raises(HeadcountError, match="modulus 7 is too small"):
        match3_instance(sets, sets, 7)
    with pytest.raises(HeadcountError, match="tokens"):
        match3_instance(sets, sets, 50, tokens=9)
    with pytest.raises(HeadcountError, match="too few"):
        qsa_instance(sets, sets, tokens=6)
