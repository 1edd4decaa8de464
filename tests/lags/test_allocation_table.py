"""The shipped tables: whole, monotone, between their bounds, the same when computed again."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from headcount.core.errors import HeadcountError
from headcount.core.store import read_json
from headcount.lags.closed import bias_errors
from headcount.lags.decay import decay, decay_rows, lag_decay
from headcount.lags.floor import floor, ones
from headcount.lags.kernels import best_coefficients
from headcount.lags.schemes import Linear
from headcount.lags.table import (
    DIMS,
    HEADS,
    LAGS,
    POSITIONS,
    SHIPPED,
    Position,
    Table,
    compute,
    position_table,
    scheme_of,
    shipped,
    write_table,
)


@pytest.mark.parametrize("position", POSITIONS)
def test_tables_are_whole_monotone_and_above_what_is_proved(position: Position) -> None:
    table = shipped(position)
    dims = DIMS if position == "rope" else (None,)
    assert [(row.lag, row.dim) for row in table.rows] == list(itertools.product(range(LAGS + 1), dims))
    for lag, dim in itertools.product(range(LAGS + 1), dims):
        errors, lower = table.row(lag, dim).reaching(HEADS)
        assert errors.shape == lower.shape == (HEADS,)
        assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
        # Rounded to 9 digits; the floors' programmes end within 5e-7.
        assert (lower <= errors + 1e-9).all() and (errors <= 1 + 1e-9).all() and (lower >= 0).all()


def same(again: Table, heads: int) -> None:
    """All rows of a table are the shipped ones, to 1e-6: searches end there, rounding alone moves them less."""
    for row in again.rows:
        known = shipped(again.position).row(row.lag, row.dim)
        np.testing.assert_allclose(row.reaching(heads), known.reaching(heads), atol=1e-6)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("lag", [2, 17])
def test_cells_are_the_same_when_computed_again(position: Position, lag: int) -> None:
    """Searched rows in part (more heads and dimensions take a minute: see the slow test)."""
    heads = {"alibi": 3, "rope": 2}.get(position, HEADS)
    again = compute(position, lags=(lag,), heads=heads, dims=(6, 16))
    assert again.dims == ((6, 16) if position == "rope" else ())
    same(again, heads)


@pytest.mark.slow
@pytest.mark.parametrize("position", [position for position in POSITIONS if position != "rope"])
def test_whole_tables_are_the_same_when_computed_again(position: Position) -> None:
    same(compute(position), HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("lag", [1, 16])
def test_whole_rotary_rows_are_the_same_when_computed_again(lag: int) -> None:
    same(compute("rope", lags=(lag,)), HEADS)


def test_the_shipped_slopes_give_the_shipped_errors() -> None:
    scheme = scheme_of("alibi")
    for row in shipped("alibi").rows:
        for error, slopes in zip(row.errors, row.kernels, strict=True):
            given = np.array(slopes)[:, None]
            assert best_coefficients(scheme, given, row.lag).error == pytest.approx(error, abs=1e-8)


def test_shipped_floors_are_those_of_duality_and_of_roots() -> None:
    scheme, table = scheme_of("alibi"), shipped("alibi")
    assert isinstance(scheme, Linear)
    for lag in (1, 3, 6, 20):
        lower = table.lower(lag)
        assert lower[-1] == pytest.approx(floor(scheme, lag).error, abs=1e-8)
        assert (lower[: ones(lag, 64)] == 1.0).all()
    for position in ("t5", "learned"):
        scheme_here = scheme_of(position)
        for lag in (0, 4, 31):
            known = bias_errors(scheme_here, lag, 3)  # type: ignore[arg-type]
            np.testing.assert_allclose(shipped(position).errors(lag, 3), known, atol=1e-9)  # type: ignore[arg-type]


def test_one_rotary_head_is_optimal_and_more_are_much_better() -> None:
    table = shipped("rope")
    for row in table.rows:
        # 16 of 32 pairs are searched at 64 dimensions, and the bound's slack is of first order (see rotary_floor).
        assert 0 <= row.errors[0] - row.lower[0] < 5e-6
    for lag in range(LAGS + 1):
        alone, two, *_, all_heads = table.errors(lag, dim=64)
        assert two < 0.1 * alone and all_heads < 1e-4


def test_fits_follow_the_table() -> None:
    table = shipped("alibi")
    rows = decay_rows(table, range(8))
    assert [row["lag"] for row in rows][:2] == [1, 2]
    first = decay(table.errors(1), float(table.lower(1)[-1]))
    assert first is not None and rows[0]["rate"] == first.rate
    shared = sorted(set(rows[0]["heads"]) & set(rows[1]["heads"]))[-1]
    excess = [table.errors(lag)[shared - 1] - table.lower(lag)[-1] for lag in (1, 2)]
    assert rows[0]["growth"] == pytest.approx(excess[1] / excess[0])
    fall = lag_decay(table, range(LAGS + 1))
    assert fall is not None
    gains = [1 - table.lower(lag)[-1] for lag in fall["lags"]]
    steps = [earlier / later for earlier, later in itertools.pairwise(gains)]
    assert min(steps) < fall["factor"] < max(steps)
    narrow, wide = (decay_rows(shipped("rope"), [3], dim)[0] for dim in (16, 64))
    for row, dim in ((narrow, 16), (wide, 64)):  # the search ends at 1e-4, and so does the fit
        assert row["heads"] == [1 + i for i, error in enumerate(shipped("rope").errors(3, 8, dim)) if error > 1e-4]
    assert wide["rate"] > 1.5 * narrow["rate"]
    assert lag_decay(shipped("learned"), range(LAGS + 1)) is None
    assert decay_rows(shipped("learned"), range(LAGS + 1)) == []


def test_tables_are_written_and_checked_when_read(tmp_path: Path) -> None:
    made = compute("learned", lags=(1, 3), limit=32.0)
    write_table(tmp_path / "table.json", made)
    assert read_json(tmp_path / "table.json", Table) == made
    for position in POSITIONS:
        write_table(tmp_path / "shipped.json", shipped(position))
        text = (tmp_path / "shipped.json").read_text(encoding="utf-8")
        assert text == (SHIPPED / f"{position}.json").read_text(encoding="utf-8")
        assert text.count("\n") == len(shipped(position).rows) + 10  # one line for each row
    assert position_table("learned", [3], 32.0, made) is made
    with pytest.raises(HeadcountError, match="lag 2 is not in the table"):
        position_table("learned", [2], 32.0, made)
    with pytest.raises(HeadcountError, match="up to 32"):
        position_table("learned", [3], 64.0, made)
    with pytest.raises(HeadcountError, match="table is of learned"):
        position_table("t5", [3], 32.0, made)
    text = (SHIPPED / "t5.json").read_text(encoding="utf-8").replace('"format"', '"shape"')
    (tmp_path / "table.json").write_text(text, encoding="utf-8")
    with pytest.raises(HeadcountError):
        read_json(tmp_path / "table.json", Table)
