"""E_pos: coefficients optimal by duality, searches against closed forms and convex solvers, floors as lower bounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog, minimize
from scipy.special import logsumexp

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.lags.closed import bias_errors, needed_limit, pair
from headcount.lags.descent import descend, polish
from headcount.lags.floor import floor, ones, rotary_floor
from headcount.lags.kernels import best_coefficients
from headcount.lags.newton import Smooth, finish, settle
from headcount.lags.schemes import Buckets, Learned, Linear, Rope, Scheme, Softmax
from headcount.lags.search import search

SCHEMES: list[Scheme] = [Linear(20), Rope(20, 5.0, 8), Learned(20, 4.0), Buckets(40, 4.0, 8, 32)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
def test_kernels_are_probabilities_with_the_right_jacobian(scheme: Scheme) -> None:
    generator = numpy_generator(0, "kernels")
    given = scheme.random(generator, 3, lag=2)
    np.testing.assert_array_equal(scheme.inside(given), given)
    kernels = scheme.kernels(given)
    assert kernels.shape == (3, scheme.context) and (kernels >= 0).all()
    np.testing.assert_allclose(kernels.sum(axis=1), 1.0, atol=1e-14)
    jacobian, small = scheme.jacobian(given), 1e-6
    for index in range(scheme.width):
        step = np.zeros(scheme.width)
        step[index] = small
        differences = (scheme.kernels(given + step) - scheme.kernels(given - step)) / (2 * small)
        # Central differences: an error of step^2 and of rounding / step.
        np.testing.assert_allclose(jacobian[:, :, index], differences, atol=1e-8)
    far = scheme.inside(given * 100 + 3)
    np.testing.assert_allclose(scheme.inside(far), far)


def test_rope_logits_are_those_of_rotated_vectors_within_the_budget() -> None:
    scheme = Rope(30, 5.0, 8)
    generator = numpy_generator(1, "rope")
    query, key = generator.normal(size=(2, 8))
    query *= 5.0 / (np.linalg.norm(query) * np.linalg.norm(key))
    half = 4
    turned = (query[:half] + 1j * query[half:]) * (key[:half] - 1j * key[half:])
    given = np.r_[turned.real, -turned.imag][None]
    angles = np.outer(np.arange(30), 10_000.0 ** (-np.arange(half) / half))
    rotated = np.exp(1j * angles) * turned
    np.testing.assert_allclose((scheme.features @ given.T)[:, 0], rotated.real.sum(axis=1), atol=1e-12)
    np.testing.assert_array_equal(scheme.inside(given), given)  # sum of rho <= ||q|| ||k||


@pytest.mark.parametrize("limit", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("scheme", SCHEMES[:2], ids=lambda s: type(s).__name__)
def test_coefficients_are_optimal_by_duality(scheme: Scheme, limit: float) -> None:
    """Any y with |y| <= 1 bounds the error below by y_lag - C max_h |y . a_h|; the solver's reaches it."""
    given = scheme.random(numpy_generator(2, "dual"), 4, lag=3)
    fit = best_coefficients(scheme, given, 3, limit)
    assert np.abs(fit.multipliers).max() <= 1 + 1e-9
    assert np.abs(fit.coefficients).sum() <= limit * (1 + 1e-9)
    bound = fit.multipliers[3] - limit * np.abs(scheme.kernels(given) @ fit.multipliers).max()
    assert fit.error == pytest.approx(bound, abs=1e-7)


SOFT: list[Softmax] = [Rope(12, 5.0, 8), Rope(12, 5.0, 8, pairs=3), Learned(6, 4.0), Buckets(20, 4.0, 8, 16)]


@pytest.mark.parametrize("scheme", SOFT, ids=repr)
def test_the_smoothed_error_has_the_right_derivatives(scheme: Softmax) -> None:
    """Also the barrier's, which are part of it. With multipliers r / d the Hessian is the exact one."""
    generator, mu, small = numpy_generator(4, "smooth"), 0.05, 1e-5
    given = scheme.inside(scheme.random(generator, 2, 2)) * 0.6
    smooth = Smooth(scheme, 2, 2, 8.0)
    point = np.concatenate([given.ravel(), [1.7, -0.6]])

    def gradient(at: np.ndarray) -> np.ndarray:
        own = smooth.at(at, mu)
        assert own is not None
        return smooth.model(at, own, mu, own.residuals / own.rounded)[0]

    def value(at: np.ndarray) -> float:
        own = smooth.at(at, mu)
        assert own is not None
        return own.value

    own = smooth.at(point, mu)
    assert own is not None
    found, hessian, _, _ = smooth.model(point, own, mu, own.residuals / own.rounded)
    steps = small * np.eye(len(point))
    # Central differences: an error of step^2 times third derivatives, here of the barrier's rounded norms.
    np.testing.assert_allclose(found, [(value(point + s) - value(point - s)) / (2 * small) for s in steps], atol=1e-7)
    bent = [(gradient(point + s) - gradient(point - s)) / (2 * small) for s in steps]
    np.testing.assert_allclose(hessian, bent, atol=1e-6 * np.abs(hessian).max())
    assert smooth.at(point * 100, mu) is None


@pytest.mark.parametrize(("lag", "budget"), [(2, 12.0), (5, 12.0), (0, 6.0), (0, 3.0)])
def test_one_rotary_head_is_the_convex_optimum(lag: int, budget: float) -> None:
    """E_pos(1) = min(1, sum_{s != lag} e^(l_s - l_lag)), whose logarithm is convex: SLSQP finds it, too."""
    scheme = Rope(12, budget, 6)
    features = np.delete(scheme.features, lag, axis=0) - scheme.features[lag]

    def rest(given: np.ndarray) -> float:
        return float(logsumexp(features @ given))  # SLSQP may try points far outside

    def left(given: np.ndarray) -> float:
        return budget - float(np.sqrt(given[:3] ** 2 + given[3:] ** 2 + 1e-18).sum())

    start = scheme.features[lag] / 3
    solved = minimize(
        rest, start, method="SLSQP", constraints={"type": "ineq", "fun": left}, options={"maxiter": 500, "ftol": 1e-12}
    )
    # SLSQP may end outside the budget by its tolerance; the point is scaled back, so that its value can be reached.
    feasible = solved.x * min(1.0, budget / (budget - left(solved.x)))
    truth = min(1.0, float(np.exp(rest(feasible))))
    fit = search(scheme, lag, 1, limit=64.0)[0]
    # The barrier leaves 1e-6 of the budget unused, and programmes are solved to 1e-9.
    assert fit.error == pytest.approx(truth, abs=2e-6, rel=2e-6)
    proved = rotary_floor(scheme, fit.given[0], lag)
    assert proved <= truth + 1e-9
    assert (truth < 1.0) == (budget > 3.0)
    if truth < 1.0:  # else no head at all is as good, and the search stays anywhere
        # Its slack is the spread of the slopes at the end, of first order, where the error's own is of second.
        assert proved == pytest.approx(fit.error, abs=2e-4)


def test_pairs_left_out_are_the_slowest_and_the_bound_takes_them_in() -> None:
    part, whole = Rope(16, 4.0, 16, pairs=3), Rope(16, 4.0, 16)
    np.testing.assert_allclose(part.frequencies, whole.frequencies[:3])
    given = np.array([1.0, 0.5, 0.2, 0.0, 0.3, -0.4])
    padded = np.r_[given[:3], np.zeros(5), given[3:], np.zeros(5)]
    np.testing.assert_allclose(part.kernels(given[None]), whole.kernels(padded[None]))
    assert rotary_floor(part, given, 1) == pytest.approx(rotary_floor(whole, padded, 1))
    generator = numpy_generator(0, "rotary mixtures")
    bound = rotary_floor(part, search(part, 1, 1)[0].given[0], 1)
    for _ in range(20):
        head = whole.inside(whole.random(generator, 1, 1) * 3)
        assert best_coefficients(whole, head, 1).error >= bound - 1e-9


def test_two_rotary_heads_from_many_starts_end_at_one_error() -> None:
    scheme, lag = Rope(32, 6.0, 16), 4
    generator, found = numpy_generator(0, "starts"), []
    smoothings = 10.0 ** -np.arange(1.0, 7.1, 0.5)
    for _ in range(4):
        given = scheme.inside(scheme.random(generator, 2, lag)) * 0.8
        ended = settle(scheme, given, np.array([2.0, -1.0]), lag, 64.0, smoothings)[0]
        found.append(finish(scheme, ended, lag).error)
    assert max(found) - min(found) < 1e-5
    assert max(found) < search(scheme, lag, 1)[0].error / 2


def test_searches_find_the_closed_form_of_learned_positions() -> None:
    scheme = Learned(8, 4.0)
    closed = bias_errors(scheme, 3, 3)
    assert closed.tolist() == [pytest.approx(7 / np.exp(4.0)), 0.0, 0.0]
    fits = search(scheme, 3, 2, restarts=1)
    assert fits[0].error == pytest.approx(closed[0], abs=1e-6)
    assert fits[-1].error < 1e-6


@pytest.mark.parametrize("scheme", [Learned(64, 6.0), Buckets(64, 6.0)], ids=lambda s: type(s).__name__)
def test_two_kernels_make_the_spike_from_the_needed_limit_on(scheme: Learned) -> None:
    enough = needed_limit(scheme)
    assert best_coefficients(scheme, pair(scheme, 5), 5, enough * (1 + 1e-9)).error < 1e-7
    short = best_coefficients(scheme, pair(scheme, 5), 5, 0.99 * enough).error
    assert short > 1e-3
    assert bias_errors(scheme, 5, 2, 0.99 * enough)[1] == pytest.approx(short)
    up = np.exp(6.0)
    assert bias_errors(scheme, 5, 1)[0] == pytest.approx(63 / up)


def test_one_learned_head_under_a_small_limit_or_a_small_budget() -> None:
    for scheme, limit in ((Learned(64, 6.0), 0.5), (Learned(64, 2.0), 64.0)):
        own = best_coefficients(scheme, pair(scheme, 5)[:1], 5, limit).error
        assert bias_errors(scheme, 5, 1, limit)[0] == pytest.approx(own, abs=1e-9)


def test_lags_that_share_a_bucket_are_never_singled_out() -> None:
    scheme = Buckets(40, 4.0, 8, 32)
    assert (
        scheme.bucket_of()[[9, 10, 12]].tolist() == [5, 5, 6]
        or (scheme.bucket_of() == scheme.bucket_of()[12]).sum() > 1
    )
    assert bias_errors(scheme, 12, 4).tolist() == [1.0] * 4
    given = scheme.random(numpy_generator(0, "buckets"), 6, 12)
    assert best_coefficients(scheme, given, 12, 1e3).error == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("lag", [1, 2])
def test_without_a_limit_linear_biases_need_lag_plus_one_heads(lag: int) -> None:
    """x_h = h eps: the error falls like eps and the coefficients grow like eps^(-lag)."""
    scheme, errors, sizes = Linear(32), [], []
    for small in (0.02, 0.01):
        given = small * np.arange(1, lag + 2)[:, None]
        fit = best_coefficients(scheme, given, lag, limit=1e7)
        errors.append(fit.error)
        sizes.append(np.abs(fit.coefficients).sum())
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.1)
    assert sizes[1] / sizes[0] == pytest.approx(2.0**lag, rel=0.1)


def test_the_floor_is_the_optimum_of_many_slopes() -> None:
    """A programme over 300 slopes is an upper bound on the infimum; the floor lies below it and close."""
    scheme, lag, limit = Linear(16), 1, 8.0
    found = floor(scheme, lag, limit)
    kernels = scheme.kernels(np.linspace(0, 1, 300)[:, None]).T
    spike = np.eye(16)[lag]
    # In variables (c+, c-, t): t >= +-(kernels c - spike).
    rows = np.block([[kernels, -kernels, -np.eye(16)], [-kernels, kernels, -np.eye(16)]])
    total = np.r_[np.ones(600), np.zeros(16)]
    solved = linprog(np.r_[np.zeros(600), np.ones(16)], A_ub=np.vstack([rows, total]), b_ub=np.r_[spike, -spike, limit])
    assert found.error <= solved.fun + 1e-7
    assert found.error == pytest.approx(solved.fun, abs=1e-3)
    reached = best_coefficients(scheme, found.given, lag, limit)
    assert reached.error == pytest.approx(found.error, abs=1e-5)
    # Random mixtures of many heads within the limit stay above it.
    generator = numpy_generator(0, "mixtures")
    for heads in (3, 10, 40):
        given = scheme.random(generator, heads, lag)
        assert best_coefficients(scheme, given, lag, limit).error >= found.error - 1e-7


def test_more_heads_are_never_worse_and_seeds_repeat() -> None:
    scheme = Linear(12)
    fits = search(scheme, 1, 4, limit=32.0, seed=5)
    errors = [fit.error for fit in fits]
    assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
    again = search(scheme, 1, 2, limit=32.0, seed=5)
    assert [fit.error for fit in again] == errors[:2]
    assert errors[-1] >= floor(scheme, 1, 32.0).error - 1e-6
    assert errors[-1] < 0.5 * errors[0]


def test_few_heads_are_never_better_than_proved() -> None:
    """The polynomials of ``ones``, checked by duality: any mixture of that many slopes has an error of at least 1."""
    generator, scheme = numpy_generator(0, "ones"), Linear(40)
    for lag in (1, 2, 3, 5, 6, 11, 23):
        heads = ones(lag, scheme.context)
        assert heads >= 1
        for _ in range(12):
            given = generator.uniform(size=(heads, 1)) ** generator.choice([0.1, 0.5, 2.0])
            assert best_coefficients(scheme, given, lag, 1e4).error == pytest.approx(1.0, abs=1e-6)
    # One head more than the lag does better, where the limit allows it.
    assert search(scheme, 2, 3)[2].error < 0.8
    assert (ones(0, 8), ones(6, 8), ones(7, 8)) == (0, 3, 1)


@pytest.mark.parametrize(("lag", "heads"), [(1, 2), (1, 3), (2, 3)])
def test_the_search_beats_all_slopes_of_a_grid(lag: int, heads: int) -> None:
    scheme = Linear(16)
    grid = np.linspace(0.0, 1.0, 15)
    best = min(
        best_coefficients(scheme, np.array(given)[:, None], lag, 64.0).error
        for given in itertools.combinations(grid, heads)
    )
    assert search(scheme, lag, heads, 64.0)[-1].error <= best + 1e-9


def test_descents_do_not_rise() -> None:
    scheme = Linear(12)
    start = np.array([[0.1], [0.4], [0.8]])
    first = best_coefficients(scheme, start, 1, 64.0).error
    assert polish(scheme, start, 1, 64.0).error <= first
    assert descend(scheme, start, 1, 64.0).error <= first + 1e-9


def test_misuse_is_refused() -> None:
    with pytest.raises(HeadcountError, match="lag 16 is outside a context of 16"):
        search(Linear(16), 16, 1)
    with pytest.raises(HeadcountError, match="lag -1"):
        floor(Linear(16), -1)
    with pytest.raises(HeadcountError, match="context of 1"):
        Linear(1)
    with pytest.raises(HeadcountError, match="logit budget of 0"):
        Learned(8, 0.0)
    with pytest.raises(HeadcountError, match="rotary dimension of 5"):
        Rope(8, 1.0, 5)
