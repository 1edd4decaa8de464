"""n-grams of white noise: exact sums, spectra, power, pairs, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.tasks.ngram import CONTENT_GRID, DECAY, GRID, NGram


@pytest.mark.parametrize("order", [1, 3, 5])
def test_targets_equal_loops_to_the_bit(order: int) -> None:
    """Sums of multiples of 2^-26 with fewer than 53 bits are exact in any order."""
    task = NGram(tokens=7, order=order, dim=4)
    batch = task.sample(3, 2)
    z = batch.inputs["z"].astype(np.float64)
    want = np.zeros_like(z)
    for t in range(7):
        for lag in range(order):
            if t >= lag:
                for i in range(4):
                    want[:, t, i] += sum(task.content[lag, i, j] * z[:, t - lag, j] for j in range(4))
    np.testing.assert_array_equal(batch.targets, want)
    assert (z * GRID == np.rint(z * GRID)).all()
    assert (task.content * CONTENT_GRID == np.rint(task.content * CONTENT_GRID)).all()


def test_spectra_fall_as_they_should() -> None:
    """Rounding to 2^-16 moves a singular value by at most 16 * 2^-17."""
    task = NGram(order=3)
    for spectrum in task.spectra:
        wanted = DECAY ** np.arange(16)
        wanted *= np.sqrt(1 / 3 / (wanted**2).sum())
        assert np.abs(np.array(spectrum) - wanted).max() < 16 / 2**17
    assert not np.allclose(task.content[0], task.content[1])
    assert not task.content.flags.writeable


@pytest.mark.parametrize("nonlinear", [False, True])
def test_power_is_the_mean_square(nonlinear: bool) -> None:
    """2,000 sequences of 8 tokens: 16 coordinates, so a standard error below 0.3%."""
    task = NGram(tokens=8, order=4, nonlinear=nonlinear)
    targets = task.sample(0, 2000).targets
    assert np.square(targets).sum(-1).mean() == pytest.approx(task.power, rel=0.02)
    if not nonlinear:
        assert task.power == pytest.approx(1 - (3 + 2 + 1) / (4 * 8), abs=1e-3)  # lag k is missing at k of 8 tokens
        assert targets.var() == pytest.approx(task.power / 16, rel=0.02)


def test_nonlinear_targets_are_the_bent_linear_ones() -> None:
    linear, bent = (tasks.get("ngram", tokens=6, nonlinear=flag) for flag in (False, True))
    z = linear.sample(1, 3).inputs["z"]
    found = bent.batch(z=z).targets
    np.testing.assert_allclose(found, np.tanh(2 * 4 * linear.batch(z=z).targets) / 4, rtol=1e-12)


def test_balanced_targets_come_in_pairs() -> None:
    for nonlinear in (False, True):
        task = NGram(tokens=5, nonlinear=nonlinear)
        batch = task.sample(2, 6, "balanced")
        np.testing.assert_array_equal(batch.targets[::2], -batch.targets[1::2])
        assert task.positive(batch.targets).mean() == 0.5


@pytest.mark.parametrize("tokens", [2, 4, 9])
def test_near_misses_differ_in_the_oldest_token_read(tokens: int) -> None:
    task = NGram(tokens=tokens, order=4)
    batch = task.sample(5, 4, "adversarial")
    first, second = batch.inputs["z"][::2], batch.inputs["z"][1::2]
    lag = min(4, tokens) - 1
    place = tokens - 1 - lag
    differs = (first != second).any(axis=(0, 2))
    assert differs.tolist() == [t == place for t in range(tokens)]
    change = batch.targets[1::2, -1] - batch.targets[::2, -1]
    np.testing.assert_allclose(change, -2 * first[:, place].astype(np.float64) @ task.content[lag].T, atol=1e-12)


def test_what_is_no_input_is_refused() -> None:
    task = NGram(tokens=3, dim=2)
    with pytest.raises(HeadcountError, match=r"shape \(1, 2, 2\), not \(count, 3, 2\)"):
        task.batch(z=np.zeros((2, 2)))
    with pytest.raises(HeadcountError, match="no finite numbers"):
        task.batch(z=np.full((3, 2), np.nan))
    with pytest.raises(HeadcountError, match="order must be an integer of at least 1"):
        NGram(order=0)


def test_tokens_are_white() -> None:
    z = NGram(tokens=4, dim=3).sample(numpy_generator(0, "white"), 5000).inputs["z"].reshape(5000, 12)
    # The largest of 144 sample covariances of 5,000: 5 standard errors.
    assert np.abs(z.T @ z / 5000 - np.eye(12)).max() < 5 * (2 / 5000) ** 0.5
