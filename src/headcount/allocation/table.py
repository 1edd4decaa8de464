"""Tables of E_pos(H, tau): one of each scheme is shipped, ``headcount kernels --out`` writes others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from headcount.allocation.closed import bias_errors
from headcount.allocation.floor import floor, ones, rotary_floor
from headcount.allocation.kernels import LIMIT, Fit, check_lag
from headcount.allocation.schemes import Array, Buckets, Learned, Linear, Rope, Scheme
from headcount.allocation.search import search
from headcount.errors import HeadcountError
from headcount.progress import Progress, silent
from headcount.store import read_json

Position = Literal["alibi", "t5", "rope", "learned"]
POSITIONS: tuple[Position, ...] = ("alibi", "t5", "rope", "learned")
HEADS, LAGS, CONTEXT, RANGE, DIM, PAIRS = 32, 32, 64, 16.0, 64, 16
"""What tables reach: heads 1..32 and lags 0..32 of 64; logits within [-8, 8] (not for ALiBi), 64 rotary dimensions.

Of their 32 pairs the 16 slowest turn by less than 0.65 over 64 tokens. The search leaves them out, which is five times
as fast; ``LagRow.lower`` of one head takes all pairs and says what that costs (below 1e-4)."""
SHIPPED = Path(__file__).parent / "data"


class LagRow(BaseModel):
    """One lag, for 1, 2, ... heads as far as they help: errors, what is proved to lie below them, and for ALiBi the
    x = exp(-slope) that reach them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lag: int
    errors: list[float] = Field(min_length=1)
    lower: list[float] = Field(min_length=1)
    kernels: list[list[float]]


class Table(BaseModel):
    """A table of E_pos, with all that computing it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    position: Position
    context: int
    limit: float
    seed: int
    rows: list[LagRow]

    def errors(self, lag: int, heads: int = HEADS) -> Array:
        """E_pos(1..heads, lag); where the row ends, its last value goes on.

        Raises:
            HeadcountError: a lag outside the table.
        """
        return _extended(self.row(lag).errors, heads)

    def lower(self, lag: int, heads: int = HEADS) -> Array:
        """What is proved to lie below ``errors``."""
        return _extended(self.row(lag).lower, heads)

    def row(self, lag: int) -> LagRow:
        """The row of a lag."""
        found = {row.lag: row for row in self.rows}.get(lag)
        if found is None:
            raise HeadcountError(
                f"lag {lag} is not in the table of {self.position}",
                fix=f"compute one: headcount kernels --position {self.position} --lags {lag} --out FILE; then --table",
            )
        return found


def _extended(known: list[float], heads: int) -> Array:
    return np.array(known[:heads] + [known[-1]] * (heads - len(known)))


def scheme_of(position: str, context: int = CONTEXT) -> Scheme:
    """The kernels of a position scheme as the tables have them; all but ALiBi with logits within [-8, 8]."""
    if position == "alibi":
        return Linear(context)
    if position == "rope":
        return Rope(context, RANGE / 2, DIM, pairs=PAIRS)
    if position == "t5":
        return Buckets(context, RANGE)
    if position == "learned":
        return Learned(context, RANGE)
    raise HeadcountError(f"unknown position scheme {position!r}", fix=f"use one of {', '.join(POSITIONS)}")


class _Cells(NamedTuple):
    errors: list[float]
    lower: list[float]
    kernels: list[list[float]]


def compute(
    position: Position,
    *,
    limit: float = LIMIT,
    lags: Sequence[int] = range(LAGS + 1),
    heads: int = HEADS,
    seed: int = 0,
    progress: Progress = silent,
) -> Table:
    """All cells of some lags. Each lag has a generator of its own, so parts agree with the whole.

    >>> compute("t5", lags=(3, 20), heads=2).errors(20).tolist()[:2]  # lags 19, 20, 21 share a bucket
    [1.0, 1.0]
    """
    check_limit(limit)
    scheme = scheme_of(position)
    rows = []
    for done, lag in enumerate(lags):
        progress(f"E_pos of {position}", done, len(lags))
        check_lag(scheme, lag)
        cells = _cells(scheme, lag, heads, limit, seed)
        errors, lower = ([round(value, 9) for value in part] for part in (cells.errors, cells.lower))
        rows.append(LagRow(lag=lag, errors=errors, lower=lower, kernels=cells.kernels))
    progress(f"E_pos of {position}", len(lags), len(lags))
    return Table(position=position, context=scheme.context, limit=limit, seed=seed, rows=rows)


def _cells(scheme: Scheme, lag: int, heads: int, limit: float, seed: int) -> _Cells:
    if isinstance(scheme, Learned):
        found = bias_errors(scheme, lag, min(heads, 2), limit).tolist()
        return _Cells(found, found, [])
    fits = search(scheme, lag, heads, limit, seed)
    errors = [fit.error for fit in fits]
    if isinstance(scheme, Rope):
        first = min(errors[0], rotary_floor(scheme, fits[0].given[0], lag))
        return _Cells(errors, [first] + [0.0] * (len(fits) - 1), [])
    assert isinstance(scheme, Linear)
    bottom = min(floor(scheme, lag, limit).error, errors[-1])
    proved = ones(lag, scheme.context)
    counts = range(1, min(heads, max(len(fits), proved + 1)) + 1)
    lower = [1.0 if count <= proved else bottom for count in counts]
    return _Cells(errors, lower, [_sorted(fit) for fit in fits])


def _sorted(fit: Fit) -> list[float]:
    return sorted(float(x) for x in fit.given.ravel())


def check_limit(limit: float) -> None:
    """Refuse a limit on coefficients that leaves none."""
    if not limit > 0:
        raise HeadcountError(f"a limit of {limit:g} on coefficients leaves nothing", fix="use a number above 0")


@cache
def shipped(position: Position) -> Table:
    """The table that comes with headcount: all lags, coefficients up to 64 in sum.

    >>> shipped("alibi").errors(1, heads=3).round(4).tolist()
    [1.0, 0.0328, 0.0087]
    """
    scheme_of(position)
    return read_json(SHIPPED / f"{position}.json", Table)


def position_table(position: Position, lags: Sequence[int], limit: float = LIMIT, table: Table | None = None) -> Table:
    """Where the position errors of ``lags`` come from: ``table`` if given, the shipped one, or for another limit a new
    one of these lags (seconds a lag for alibi and rope).

    Raises:
        HeadcountError: a lag that the context or the table does not hold, a table of another scheme or limit.
    """
    scheme = scheme_of(position)
    check_limit(limit)
    for lag in lags:
        check_lag(scheme, lag)
    if table is None:
        table = shipped(position) if limit == LIMIT else compute(position, limit=limit, lags=lags)
    if (table.position, table.limit) != (position, limit):
        raise HeadcountError(
            f"the table is of {table.position} with coefficients up to {table.limit:g}",
            fix=f"use --position {table.position} --limit {table.limit:g}, or another table",
        )
    for lag in lags:
        table.row(lag)
    return table
