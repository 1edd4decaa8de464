"""The boundary rule on series with and without one, and the verdicts that follow from intervals."""

from __future__ import annotations

import numpy as np
import pytest

from headcount.core.seeds import numpy_generator
from headcount.probes.saturation.changepoint import best_step, find_boundary
from headcount.probes.saturation.claims import Measured, block_sums, claims_of, draws_of, loss_draws
from headcount.probes.saturation.ranks import saturation_ranks


def resampled(series: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    return series + numpy_generator(seed, "noise").normal(size=(200, len(series))) * noise


def test_the_best_step_is_that_of_brute_force() -> None:
    generator = numpy_generator(0, "series")
    for _ in range(30):
        series = generator.normal(size=12)
        found = {
            at: ((series[:at] - series[:at].mean()) ** 2).sum() + ((series[at:] - series[at:].mean()) ** 2).sum()
            for at in range(2, 11)
        }
        assert best_step(series).layer == min(found, key=lambda at: found[at])


def test_a_step_is_found_and_a_drift_or_noise_is_none() -> None:
    generator = numpy_generator(1, "series")
    step = np.where(np.arange(30) < 18, 50.0, 40.0) + generator.normal(size=30)
    found = find_boundary(step, resampled(step, 0.5))
    assert found is not None and found.layer == 18 and found.low <= 18 <= found.high <= 20
    assert found.after < found.before
    drift = 50.0 - 0.3 * np.arange(30) + generator.normal(size=30)
    none = find_boundary(drift, resampled(drift, 0.5))
    assert none is not None and none.layer is None
    alarms = 0
    for _ in range(100):
        noise = generator.normal(size=30)
        own = find_boundary(noise, resampled(noise, 0.5)[:20])
        alarms += own is not None and own.layer is not None
    assert alarms <= 5
    assert find_boundary(np.zeros(4), np.zeros((3, 4))) is None


def test_a_step_that_resamples_do_not_bear_out_is_no_boundary() -> None:
    step = np.where(np.arange(20) < 10, 5.0, 4.0)
    found = find_boundary(step, resampled(step, 3.0))
    assert found is not None and found.layer is None and found.candidate == 10 and found.share < 0.9


def made(context: int, knee: np.ndarray, logit_range: float) -> Measured:
    """Heads whose error is 1 - r/k below their knee k and nothing from there on; 16 dimensions."""
    layers, heads, windows = len(knee), 6, 8
    wiggle = numpy_generator(0, "knees", context).integers(-1, 2, size=(layers, heads))
    knees = knee[:, None] + wiggle
    errors = np.clip(1 - np.arange(17) / knees[..., None], 0, 1)
    squares = np.repeat((errors**2)[:, None], windows, 1)
    return Measured(context, squares, np.ones((layers, windows, heads)), np.full((layers, windows, heads), logit_range))


def test_verdicts_follow_planted_saturation() -> None:
    late = np.where(np.arange(12) < 6, 12, 6)
    # The knee falls as the context doubles; ranges grow by 2 per unit of ln L.
    measured = [made(c, late - i, 2.0 * np.log(c)) for i, c in enumerate((32, 64, 128))]
    draws = [draws_of(own, numpy_generator(0, own.context)) for own in measured]
    boundary = find_boundary(draws[-1].ranks[0, :, 1], draws[-1].ranks[1:, :, 1])
    generator = numpy_generator(0, "losses")
    dense = generator.exponential(size=4096)
    losses = {
        "dense": dense,
        "own 5%": dense + 0.02,
        "uniform 5%": dense + 0.03,
        "first half d/4": dense + 0.1,
        "second half d/4": dense + 0.3 + 0.1 * generator.normal(size=4096),
    }
    verdicts = {claim.name: claim.verdict for claim in claims_of(draws, boundary, losses, generator)}
    assert boundary is not None and boundary.layer == 6
    assert verdicts == {
        "diminishing returns": "holds",  # in straight lines to knees at 10 and 4, then no more: 0.175, 0.05, 0.0125
        "later is narrower": "holds",
        "longer saturates more": "holds",
        "logits are bounded": "does not hold",
        "the long-context bound falls": "does not hold",
        "the absolute error falls": "holds",
        "a boundary layer": "holds",
        "cutting later costs less": "does not hold",
        "all at once": "holds",
        "unequal beats uniform": "holds",
    }
    alone = {claim.name: claim.verdict for claim in claims_of(draws[:1], None, {}, generator)}
    assert alone["longer saturates more"] == alone["all at once"] == alone["a boundary layer"] == "not decided"


def test_draws_begin_with_the_measurement_itself() -> None:
    own = made(64, np.full(6, 8), 3.0)
    found = draws_of(own, numpy_generator(0, "x"))
    errors = np.sqrt(own.squares.sum(1) / own.lengths.sum(1)[..., None])
    np.testing.assert_allclose(found.errors[0], errors.mean(1))
    np.testing.assert_allclose(found.ranks[0, :, 1], saturation_ranks(errors, 0.05).mean(1))
    assert found.ranks[1:, :, 1].std(0).min() > 0, "heads are drawn again"
    np.testing.assert_allclose(found.ranges, 3.0)
    # Squares are sums over the queries of all windows, 8 windows of one query each.
    np.testing.assert_allclose(found.absolute[0], np.sqrt(own.squares.sum(1) / 8).mean(1))


def test_the_absolute_error_may_rise_where_the_relative_one_falls() -> None:
    """Outputs that double with the context, errors that fall by a tenth of themselves beside them."""
    draws = []
    for turn, context in enumerate((32, 64, 128)):
        own = made(context, np.full(6, 8), 3.0)
        scale = 4.0**turn
        grown = Measured(context, own.squares * scale * 0.9 ** (2 * turn), own.lengths * scale, own.ranges)
        draws.append(draws_of(grown, numpy_generator(0, context)))
    claims = {claim.name: claim for claim in claims_of(draws, None, {}, numpy_generator(0, "x"))}
    assert claims["longer saturates more"].estimate is not None
    rises = claims["the absolute error falls"]
    assert rises.verdict == "does not hold"
    # Each doubling multiplies it by 2 * 0.9; heads' knees are drawn by context, which moves the mean a little.
    assert rises.estimate == pytest.approx(np.log(1.8) / np.log(2), abs=0.1)


def test_blocks_cover_every_token_once() -> None:
    losses = numpy_generator(0, "tokens").normal(size=1000)
    assert len(block_sums(losses)) == 7 and np.isclose(block_sums(losses).sum(), losses.sum())
    assert np.isclose(loss_draws(losses, numpy_generator(0, "b"))[0], losses.mean())
    assert block_sums(np.ones(50)).tolist() == [50.0]
