"""Match3Local and Match3Bigram against loops, and their kinds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount import tasks

TOKENS = st.lists(st.integers(0, 10**6), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(x=TOKENS, modulus=st.integers(2, 60), window=st.integers(0, 14), distinct=st.booleans())
def test_local_equals_loops(x: list[int], modulus: int, window: int, distinct: bool) -> None:
    tokens = np.array(x) % modulus
    n = len(tokens)
    want = [
        int(
            any(
                (tokens[i] + tokens[j] + tokens[k]) % modulus == 0
                for j in range(max(0, i - window), min(n, i + window + 1))
                for k in range(max(0, i - window), min(n, i + window + 1))
                if not distinct or len({i, j, k}) == 3
            )
        )
        for i in range(n)
    ]
    task = tasks.get("match3-local", tokens=n, modulus=modulus, window=window, distinct=distinct)
    assert task.batch(x=tokens).targets[0].tolist() == want


@settings(max_examples=150, deadline=None)
@given(x=TOKENS, modulus=st.integers(2, 60), distinct=st.booleans())
def test_bigram_equals_loops(x: list[int], modulus: int, distinct: bool) -> None:
    tokens = np.array(x) % modulus
    n = len(tokens)
    want = [
        int(
            any(
                (tokens[i] + tokens[j] + tokens[j + 1]) % modulus == 0
                for j in range(n - 1)
                if not distinct or i not in (j, j + 1)
            )
        )
        for i in range(n)
    ]
    task = tasks.get("match3-bigram", tokens=n, modulus=modulus, distinct=distinct)
    assert task.batch(x=tokens).targets[0].tolist() == want


def test_a_window_over_everything_is_match3() -> None:
    batch = tasks.get("match3", tokens=30, modulus=400).sample(0, 20)
    local = tasks.get("match3-local", tokens=30, modulus=400, window=29)
    np.testing.assert_array_equal(local.solve(batch), batch.targets)


@pytest.mark.parametrize("tokens", [8, 9, 64])
@pytest.mark.parametrize("name, windows", [("match3-local", (0, 1, 3, 100)), ("match3-bigram", (None,))])
def test_balanced(name: str, windows: tuple[int | None, ...], tokens: int) -> None:
    for window in windows:
        for modulus in (None, 4, 5, 50, 10**6):
            sizes = {} if window is None else {"window": window}
            task = tasks.get(name, tokens=tokens, modulus=modulus, **sizes)
            share = task.sample(1, 4, "balanced").targets.mean(axis=1)
            assert ((share >= 0.4) & (share <= 0.6)).all(), (window, modulus, share)


@pytest.mark.parametrize("name", ["match3-local", "match3-bigram"])
def test_adversarial_near_misses_are_in_view(name: str) -> None:
    """Among the tuples that the task looks at, sums of +-1 are far more frequent than chance."""
    modulus = 100_003
    task = tasks.get(name, tokens=24, modulus=modulus)
    near = seen = 0
    for x in task.sample(3, 40, "adversarial").inputs["x"]:
        for i in range(24):
            window = x[max(0, i - 4) : i + 5]
            others = window[:, None] + window if name == "match3-local" else x[1:] + x[:-1]
            sums = (x[i] + others) % modulus
            near += np.isin(sums, [1, modulus - 1]).sum()
            seen += sums.size
    assert near > 20 * seen * 2 / modulus
