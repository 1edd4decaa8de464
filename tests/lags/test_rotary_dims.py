"""E_pos of rotary heads at their own dimension: nested kernels, explicit vectors, grids of kernels, resumed tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.lags.floor import rotary_floor
from headcount.lags.kernels import best_coefficients
from headcount.lags.newton import best_single
from headcount.lags.rotary import rotary_cells, searched
from headcount.lags.schemes import Rope
from headcount.lags.search import embedded, search
from headcount.lags.table import DIMS, HEADS, LAGS, Table, compute, position_table, shipped


@pytest.mark.parametrize(("part", "whole"), [(2, 6), (4, 8), (6, 12), (8, 64), (16, 128)])
def test_kernels_of_a_dimension_are_kernels_of_its_multiples(part: int, whole: int) -> None:
    narrow, wide = Rope(40, 6.0, part), Rope(40, 6.0, whole)
    given = narrow.random(numpy_generator(0, "embedded", part), 3, 5)
    moved = embedded(given, narrow, wide)
    np.testing.assert_allclose(wide.kernels(moved), narrow.kernels(given), atol=1e-14)
    np.testing.assert_allclose(wide.inside(moved), moved)  # no larger than they were


def test_kernels_of_other_dimensions_are_not() -> None:
    """6 dimensions have the frequency base^(-1/3), which 8 do not have; E_pos does not fall from 6 to 8."""
    with pytest.raises(HeadcountError, match="frequencies of 6 rotary dimensions are none of 8"):
        embedded(np.zeros((1, 6)), Rope(dim=6), Rope(dim=8))
    table = shipped("rope")
    assert (
        table.row(3, 8).errors[0] > table.row(3, 6).errors[0] and table.row(3, 8).lower[0] > table.row(3, 6).errors[0]
    )


def attention(query: np.ndarray, key: np.ndarray, context: int, rotated: int) -> np.ndarray:
    """Softmax over lags of <R_0 q, R_{-s} k>, the first ``rotated`` dimensions turned in pairs (2i, 2i + 1)."""
    logits = []
    for lag in range(context):
        turned = key.copy()
        for i in range(rotated // 2):
            angle = lag * 10_000.0 ** (-2 * i / rotated)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            turned[2 * i : 2 * i + 2] = turn @ key[2 * i : 2 * i + 2]
        logits.append(query @ turned)
    powers = np.exp(np.array(logits) - max(logits))
    return np.asarray(powers / powers.sum())


@pytest.mark.parametrize(("dim", "rotated"), [(8, 8), (10, 8), (7, 6)])
def test_found_errors_are_those_of_queries_and_keys_within_the_budget(dim: int, rotated: int) -> None:
    """Vectors of ``dim`` numbers with ||q|| ||k|| <= 8 are made for the kernels found, and attend by themselves."""
    context, lag, scheme = 24, 3, Rope(24, 8.0, rotated)
    fit = search(scheme, lag, 2)[-1]
    mixture = np.zeros(context)
    for numbers, coefficient in zip(fit.given, fit.coefficients, strict=True):
        cosines, sines = numbers.reshape(2, -1)
        norms = np.sqrt(np.hypot(cosines, sines))
        query, key = np.zeros(dim), np.zeros(dim)
        # rho cos(theta s + phi) with rho cos phi, -rho sin phi given: q = (norm, 0), k = norm (cos phi, sin phi).
        query[0:rotated:2] = norms
        key[0:rotated:2] = cosines / np.maximum(norms, 1e-300)
        key[1:rotated:2] = -sines / np.maximum(norms, 1e-300)
        query[rotated:], key[rotated:] = 0.01, 0.3  # not rotated: the same for every lag
        length = np.linalg.norm(query[:rotated]) * np.linalg.norm(key[:rotated])
        assert length <= 8.0 * (1 + 1e-9)
        mixture += coefficient * attention(query, key, context, rotated)
    spike = np.eye(context)[lag]
    # Logits near 8 in float64, and coefficients up to 64.
    assert np.abs(mixture - spike).sum() == pytest.approx(fit.error, abs=1e-10)
    assert np.abs(fit.coefficients).sum() <= 64 * (1 + 1e-9)


def test_the_search_beats_all_pairs_of_a_grid() -> None:
    """One pair of dimensions, 8 lags: two kernels out of 60, every pair of them with its best coefficients."""
    scheme, lag = Rope(6, 4.0, 2), 2
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    grid = [[rho * np.cos(a), rho * np.sin(a)] for rho in (4.0, 2.0, 0.5) for a in angles]
    best = min(best_coefficients(scheme, np.array(two), lag).error for two in itertools.combinations(grid, 2))
    fits = search(scheme, lag, 2, restarts=8)
    assert best < 0.9 and fits[1].error <= best + 1e-9
    one = min(best_coefficients(scheme, np.array([own]), lag).error for own in grid)
    assert fits[0].error <= one + 1e-9


def test_no_single_head_is_better_than_the_convex_optimum() -> None:
    generator = numpy_generator(0, "single heads")
    for dim, lag in ((4, 1), (6, 3), (16, 8)):
        scheme = Rope(32, 8.0, dim)
        proved = rotary_floor(scheme, best_single(scheme, lag), lag)
        found = best_coefficients(scheme, best_single(scheme, lag)[None], lag).error
        assert found == pytest.approx(proved, abs=5e-6)
        for _ in range(30):
            head = scheme.inside(scheme.random(generator, 1, lag) * generator.uniform(0.2, 3))
            assert best_coefficients(scheme, head, lag).error >= proved - 1e-9


def test_shipped_rows_fall_with_the_dimensions_that_divide() -> None:
    table = shipped("rope")
    for lag in range(LAGS + 1):
        for part, whole in itertools.combinations(DIMS, 2):
            if whole % part == 0:
                narrow, wide = (table.row(lag, dim).reaching(HEADS)[0] for dim in (part, whole))
                assert (wide <= narrow + 1e-9).all()  # rounded to 9 digits


def test_a_head_rotates_the_best_even_number_of_its_dimensions() -> None:
    table = shipped("rope")
    for lag in (0, 3, 31):
        grid = table.by_dim(lag)
        assert grid.shape == (HEADS, 128)
        assert (grid[:, 0] == 1).all()  # one dimension has no pair
        assert (np.diff(grid, axis=0) <= 0).all() and (np.diff(grid, axis=1) <= 0).all()
        for dim in (2, 5, 15, 16, 63, 128):
            rows = [table.row(lag, own) for own in DIMS if own <= dim]
            np.testing.assert_array_equal(grid[:, dim - 1], np.min([row.reaching(HEADS)[0] for row in rows], axis=0))
            np.testing.assert_array_equal(table.errors(lag, dim=dim), grid[:, dim - 1])
            assert (table.lower(lag, dim=dim) <= grid[:, dim - 1] + 1e-9).all()
    assert table.errors(3, dim=16)[0] == table.row(3, 14).errors[0] < table.row(3, 16).errors[0]
    np.testing.assert_array_equal(table.errors(3, dim=1000), table.errors(3, dim=128))
    with pytest.raises(HeadcountError, match="depend on their dimension"):
        table.errors(3)
    with pytest.raises(HeadcountError, match="lag 3 at 18 dimensions is not in the table of rope"):
        table.row(3, 18)
    with pytest.raises(HeadcountError, match="lag 40 is not in the table of rope"):
        position_table("rope", [40])


def test_a_dimension_alone_has_the_cells_of_the_whole_chain() -> None:
    whole = rotary_cells({dim: Rope(16, 6.0, dim) for dim in (2, 4, 6, 8)}, 2, 2, 64.0)
    alone = compute("rope", lags=(2,), heads=2, dims=(8,), context=16, logit_budget=6.0)
    assert [row.dim for row in alone.rows] == [8]
    np.testing.assert_allclose(alone.row(2, 8).errors, whole[8][0], atol=1e-9)  # rounded to 9 digits
    assert all(wide <= narrow + 1e-9 for wide, narrow in zip(whole[8][0], whole[4][0], strict=False))
    assert searched(Rope(64, 8.0, 12)).pairs == 6


def test_a_table_that_was_begun_is_completed() -> None:
    saved: list[Table] = []
    settings = {"heads": 2, "context": 12, "logit_budget": 5.0, "dims": (2, 4)}
    first = compute("rope", lags=(1, 2), save=saved.append, **settings)  # type: ignore[arg-type]
    assert [len(table.rows) for table in saved] == [2, 4] and saved[-1] == first
    marked = saved[0].rows[0].model_copy(update={"errors": [0.5, 0.25]})  # not what a search gives
    begun = saved[0].model_copy(update={"rows": [marked, saved[0].rows[1]]})
    later: list[Table] = []
    done = compute("rope", lags=(1, 2), begun=begun, save=later.append, **settings)  # type: ignore[arg-type]
    assert len(later) == 1 and done.row(1, 2) == marked and done.rows[1:] == first.rows[1:]
    with pytest.raises(HeadcountError, match="other settings"):
        compute("rope", lags=(1,), begun=begun, **settings | {"context": 13})  # type: ignore[arg-type]


def test_other_settings_are_refused_with_the_command_that_computes_them() -> None:
    with pytest.raises(HeadcountError) as refused:
        position_table("rope", [1, 2], limit=16.0, context=128)
    assert "headcount kernels --position rope --limit 16 --context 128 --lags 1,2 --out FILE" in str(refused.value)
    made = compute("rope", lags=(1,), heads=1, dims=(4,), context=12, logit_budget=5.0)
    assert position_table("rope", [1], table=made, context=12, logit_budget=5.0) is made
    with pytest.raises(HeadcountError, match="context 12, logits up to 5"):
        position_table("rope", [1], table=made)
    assert position_table("alibi", [0], context=20).context == 20
