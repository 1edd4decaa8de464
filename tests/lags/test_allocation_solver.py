"""The exact split: equal to brute force, beside the best uniform layer, refusing what cannot be split."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.lags.solver import allocate, group_error, tails
from headcount.lags.spectra import random_spectra


def instance(number: int) -> tuple[list[int], int, list[list[float]], list[list[float]]]:
    """A small instance; every third one has position errors that are not convex and values that tie."""
    generator = numpy_generator(number, "allocation instance")
    lags = int(generator.integers(1, 4))
    budget = int(generator.integers(lags, 13))
    heads, ties = int(generator.integers(1, 5)), number % 3 == 0
    position, spectra = [], []
    for _ in range(lags):
        row = np.sort(generator.uniform(size=heads))[::-1]
        spectrum = np.sort(generator.exponential(size=int(generator.integers(1, 5))))[::-1]
        position.append((np.round(row, 1) if ties else row).tolist())
        spectra.append((np.round(spectrum) if ties else spectrum).tolist())
    return generator.permutation(20)[:lags].tolist(), budget, position, spectra


def error_of(choice: tuple[tuple[int, int], ...], position: list[list[float]], spectra: list[list[float]]) -> float:
    total = 0.0
    for (heads, dim), row, spectrum in zip(choice, position, spectra, strict=True):
        norm = sum(value**2 for value in spectrum) ** 0.5
        total += norm * row[heads - 1] + sum(value**2 for value in spectrum[dim:]) ** 0.5
    return total


@pytest.mark.parametrize("number", range(200))
def test_equal_to_brute_force(number: int) -> None:
    lags, budget, position, spectra = instance(number)
    found = allocate(lags, budget, position, spectra)
    options = [
        [(h, d) for h in range(1, len(row) + 1) for d in range(1, len(spectrum) + 1)]
        for row, spectrum in zip(position, spectra, strict=True)
    ]
    feasible = [choice for choice in itertools.product(*options) if sum(h * d for h, d in choice) <= budget]
    best = min(error_of(choice, position, spectra) for choice in feasible)
    # Sums of six float64 numbers below 20.
    assert found.error == pytest.approx(best, abs=1e-12)
    groups = tuple((group.heads, group.dim) for group in found.groups)
    assert [group.lag for group in found.groups] == lags
    assert sum(h * d for h, d in groups) <= budget
    assert error_of(groups, position, spectra) == pytest.approx(found.error, abs=1e-12)


@pytest.mark.parametrize("number", range(60))
def test_uniform_is_the_best_of_one_dimension(number: int) -> None:
    lags, budget, position, spectra = instance(number)
    found = allocate(lags, budget, position, spectra)
    best = {}
    for shares in itertools.product(*[range(1, len(row) + 1) for row in position]):
        for heads in range(sum(shares), budget + 1):
            own = tuple((h, min(budget // heads, len(s))) for h, s in zip(shares, spectra, strict=True))
            best[heads] = min(best.get(heads, np.inf), error_of(own, position, spectra))
    for point in found.curve:
        assert point.error == pytest.approx(best[point.heads], abs=1e-12)
        assert point.heads * point.dim <= budget and sum(point.heads_of_lag) <= point.heads
    assert [point.heads for point in found.curve] == sorted(set(best) & {point.heads for point in found.curve})
    assert found.uniform.error == pytest.approx(min(best.values()), abs=1e-12)
    # A uniform layer is a split too.
    assert found.error <= found.uniform.error + 1e-12


def jointly(number: int) -> tuple[list[int], int, list[np.ndarray], list[list[float]]]:
    """An instance whose position errors fall with heads and dimension, up to dimensions beyond the content's rank."""
    generator = numpy_generator(number, "joint instance")
    lags, budget, _, spectra = instance(number)
    position = []
    for _ in lags:
        shape = tuple(int(size) for size in generator.integers(1, 6, size=2))
        grid = generator.uniform(size=shape)
        grid = np.minimum.accumulate(np.minimum.accumulate(grid, axis=0), axis=1)
        position.append(np.round(grid, 1) if number % 3 == 0 else grid)
    return lags, budget, position, spectra


def joint_error(choice: tuple[tuple[int, int], ...], position: list[np.ndarray], spectra: list[list[float]]) -> float:
    total = 0.0
    for (heads, dim), grid, spectrum in zip(choice, position, spectra, strict=True):
        norm = sum(value**2 for value in spectrum) ** 0.5
        total += norm * grid[heads - 1][min(dim, len(grid[0])) - 1] + sum(value**2 for value in spectrum[dim:]) ** 0.5
    return total


@pytest.mark.parametrize("number", range(100))
def test_heads_and_dimension_are_chosen_jointly(number: int) -> None:
    """Against all (H, d) of all lags, and against all uniform layers of H d <= budget, not only the largest d."""
    lags, budget, position, spectra = jointly(number)
    found = allocate(lags, budget, position, spectra)
    options = [[(h, d) for h in range(1, len(grid) + 1) for d in range(1, budget + 1)] for grid in position]
    feasible = [choice for choice in itertools.product(*options) if sum(h * d for h, d in choice) <= budget]
    best = min(joint_error(choice, position, spectra) for choice in feasible)
    # Sums of six float64 numbers below 20.
    assert found.error == pytest.approx(best, abs=1e-12)
    groups = tuple((group.heads, group.dim) for group in found.groups)
    assert sum(h * d for h, d in groups) <= budget
    assert joint_error(groups, position, spectra) == pytest.approx(best, abs=1e-12)
    uniform: dict[int, float] = {}
    for shares in itertools.product(*[range(1, len(grid) + 1) for grid in position]):
        for heads in range(sum(shares), budget + 1):
            for dim in range(1, budget // heads + 1):
                own = joint_error(tuple((h, dim) for h in shares), position, spectra)
                uniform[heads] = min(uniform.get(heads, np.inf), own)
    for point in found.curve:
        assert point.error == pytest.approx(uniform[point.heads], abs=1e-12)
        assert point.heads * point.dim <= budget
        dealt = tuple((h, point.dim) for h in point.heads_of_lag)
        assert joint_error(dealt, position, spectra) == pytest.approx(point.error, abs=1e-12)
    assert found.uniform.error == pytest.approx(min(uniform.values()), abs=1e-12)


def test_errors_that_do_not_depend_on_the_dimension_are_one_row() -> None:
    lags, budget, position, spectra = instance(4)
    grids = [np.repeat(np.array(row)[:, None], 3, axis=1) for row in position]
    assert allocate(lags, budget, grids, spectra).error == allocate(lags, budget, position, spectra).error


def test_more_budget_is_never_worse() -> None:
    lags, _, position, spectra = instance(7)
    errors = [allocate(lags, budget, position, spectra).error for budget in range(len(lags), 30)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(errors))


def test_of_equal_errors_the_cheapest_is_taken() -> None:
    found = allocate([3], 100, [[0.0, 0.0]], [[1.0, 0.0, 0.0]])
    assert (found.groups[0].heads, found.groups[0].dim) == (1, 1)
    assert (found.uniform.heads, found.error) == (1, 0.0)


def test_tails_are_root_sums_of_squares() -> None:
    spectrum = [3.0, 2.0, 1.0]
    np.testing.assert_allclose(tails(spectrum), [14**0.5, 5**0.5, 1.0, 0.0])


def test_the_error_bounds_what_a_layer_does() -> None:
    """Extract two lags from white noise with concrete kernels and ranks: the measured error stays below the sum."""
    generator = numpy_generator(0, "layer")
    width, context, lags = 6, 12, [1, 4]
    maps = generator.normal(size=(2, width, width))
    spectra = [np.linalg.svd(own, compute_uv=False).tolist() for own in maps]
    mixtures = np.zeros((2, context))
    for mixture, lag in zip(mixtures, lags, strict=True):
        mixture[lag] = 0.9
        mixture += generator.normal(size=context) * 0.01
    errors = [[float(np.abs(own - np.eye(context)[lag]).sum())] for own, lag in zip(mixtures, lags, strict=True)]
    found = allocate(lags, 8, errors, spectra)
    noise = generator.normal(size=(20_000, context, width))
    missed = np.zeros((20_000, width))
    for own, mixture, group in zip(maps, mixtures, found.groups, strict=True):
        u, s, vt = np.linalg.svd(own)
        cut = (u[:, : group.dim] * s[: group.dim]) @ vt[: group.dim]
        missed += noise[:, group.lag] @ own.T - np.einsum("s,nsw->nw", mixture, noise) @ cut.T
    root_mean_square = float(np.sqrt((missed**2).sum(axis=1).mean()))
    assert 0.3 * found.error < root_mean_square < found.error
    assert found.error == group_error(found.groups, [np.array(row) for row in errors], [tails(s) for s in spectra])


@pytest.mark.parametrize(
    ("lags", "budget", "message"),
    [
        ([1, 2, 3], 2, "budget of 2 is too small for 3 lags; the smallest is 3"),
        ([1, 2], 0, "budget of 0 is too small for 2 lags; the smallest is 2"),
        ([1, 2, 1], 9, "lag 1 is there more than once"),
        ([1, -2], 9, "lag -2 is negative"),
        ([], 9, "no lags"),
    ],
)
def test_what_cannot_be_split_is_refused(lags: list[int], budget: int, message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        allocate(lags, budget, [[0.1]] * len(lags), [[1.0]] * len(lags))


def test_evidence_is_checked() -> None:
    with pytest.raises(HeadcountError, match="does not descend"):
        allocate([1], 4, [[0.1]], [[1.0, 2.0]])
    with pytest.raises(HeadcountError, match="does not descend"):
        allocate([1], 4, [[0.1]], [[]])
    with pytest.raises(HeadcountError, match="no position errors"):
        allocate([1], 4, [[]], [[1.0]])
    with pytest.raises(HeadcountError, match="lag 1 rise with the dimension"):
        allocate([1], 4, [[[0.1, 0.2]]], [[1.0]])
    with pytest.raises(HeadcountError, match="1 lags have 2 rows"):
        allocate([1], 4, [[0.1], [0.2]], [[1.0]])
    with pytest.raises(HeadcountError, match="content width of 0"):
        random_spectra(1, 0)


def test_random_spectra_are_of_one_norm_and_seeded() -> None:
    first, second = random_spectra(2, 16, seed=3)
    assert sum(value**2 for value in first) == pytest.approx(1.0) == pytest.approx(sum(v**2 for v in second))
    assert random_spectra(2, 16, seed=3) == [first, second] != random_spectra(2, 16, seed=4)
