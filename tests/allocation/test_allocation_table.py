"""The shipped tables: whole, monotone, between their bounds, the same when computed again."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from headcount.allocation.closed import bias_errors
from headcount.allocation.decay import decay, decay_rows, lag_decay
from headcount.allocation.floor import floor, ones
from headcount.allocation.kernels import best_coefficients
from headcount.allocation.schemes import Linear
from headcount.allocation.table import (
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
)
from headcount.errors import HeadcountError
from headcount.store import read_json, write_json


@pytest.mark.parametrize("position", POSITIONS)
def test_tables_are_whole_monotone_and_above_what_is_proved(position: Position) -> None:
    table = shipped(position)
    assert [row.lag for row in table.rows] == list(range(LAGS + 1))
    for lag in range(LAGS + 1):
        errors, lower = table.errors(lag), table.lower(lag)
        assert errors.shape == lower.shape == (HEADS,)
        assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
        # Rounded to 9 digits; the floors' programmes end within 5e-7.
        assert (lower <= errors + 1e-9).all() and (errors <= 1 + 1e-9).all() and (lower >= 0).all()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("lag", [2, 17])
def test_cells_are_the_same_when_computed_again(position: Position, lag: int) -> None:
    """To 1e-6; searched rows in part (more heads take a minute: see the slow test)."""
    heads = {"alibi": 3, "rope": 2}.get(position, HEADS)
    again = compute(position, lags=(lag,), heads=heads)
    np.testing.assert_allclose(again.errors(lag, heads), shipped(position).errors(lag, heads), atol=1e-6)
    np.testing.assert_allclose(again.lower(lag, heads), shipped(position).lower(lag, heads), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("position", POSITIONS)
def test_whole_tables_are_the_same_when_computed_again(position: Position) -> None:
    again = compute(position)
    for lag in range(LAGS + 1):
        np.testing.assert_allclose(again.errors(lag), shipped(position).errors(lag), atol=1e-6)


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


def test_one_rotary_head_is_optimal_and_five_are_exact() -> None:
    table = shipped("rope")
    for lag in range(1, LAGS + 1):
        assert table.errors(lag)[0] - table.lower(lag)[0] < 1e-4
        assert table.errors(lag)[1] < 0.1 * table.errors(lag)[0]
        assert table.errors(lag)[-1] < 1e-4


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
    assert lag_decay(shipped("learned"), range(LAGS + 1)) is None
    assert decay_rows(shipped("learned"), range(LAGS + 1)) == []


def test_tables_are_written_and_checked_when_read(tmp_path: Path) -> None:
    made = compute("learned", lags=(1, 3), limit=32.0)
    write_json(tmp_path / "table.json", made)
    assert read_json(tmp_path / "table.json", Table) == made
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
