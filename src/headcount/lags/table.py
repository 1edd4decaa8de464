"""Tables of E_pos(H, tau), or E_pos(H, d, tau) for rotary heads: one table per scheme is shipped, and
``headcount kernels --out`` writes others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.core.store import read_json, write_text
from headcount.lags.closed import bias_errors
from headcount.lags.floor import floor, ones
from headcount.lags.kernels import LIMIT, Fit, check_lag
from headcount.lags.rotary import rotary_cells, searched
from headcount.lags.schemes import Array, Buckets, Learned, Linear, Rope, Scheme
from headcount.lags.search import search

Position = Literal["alibi", "t5", "rope", "learned"]
POSITIONS: tuple[Position, ...] = ("alibi", "t5", "rope", "learned")
HEADS, LAGS, CONTEXT, LOGITS = 32, 32, 64, 8.0
"""The range of the shipped tables: heads 1..32, lags 0..32 of 64, logits within [-8, 8] (ALiBi has no such limit)."""
RANGE = 2 * LOGITS
DIMS = (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 128)
"""The rotary dimensions of the shipped table."""
SHIPPED = Path(__file__).parent / "data"


class LagRow(BaseModel):
    """One lag (for rotary heads: at one dimension), for 1, 2, ... heads as long as they help: errors, proved lower
    bounds, and for ALiBi the values x = exp(-slope) that attain the errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lag: int
    dim: int | None = None
    errors: list[float] = Field(min_length=1)
    lower: list[float] = Field(min_length=1)
    kernels: list[list[float]] = []

    def reaching(self, heads: int) -> tuple[Array, Array]:
        """Errors and lower bounds of 1..``heads`` heads; values beyond the row repeat its last entry."""
        return _extended(self.errors, heads), _extended(self.lower, heads)


class Table(BaseModel):
    """A table of E_pos, with all settings of its computation.

    **Dimensions.** A row of rotary heads applies to heads that rotate all of their d dimensions,
    theta_i = base^(-2i/d). Unless d divides d', d dimensions have frequencies that d' dimensions lack, so these errors
    need not decrease in d. However, a head may rotate an even number of its dimensions and leave the others unrotated
    (``partial_rotary_factor`` of GPT-NeoX and Phi), which add a constant to its logits. So E_pos of heads of dimension
    d is the minimum of the rows up to d, which ``errors`` and ``by_dim`` return. Below the smallest dimension of the
    table it is 1, the error without any head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[3] = 3
    position: Position
    context: int
    limit: float
    logit_budget: float | None = None
    """b: logits within [-b, b]; ``None`` for ALiBi, whose slopes have no limit."""
    seed: int
    rows: list[LagRow]

    @property
    def dims(self) -> tuple[int, ...]:
        """The rotary dimensions, ascending; empty if kernels do not depend on the dimension."""
        return tuple(sorted({row.dim for row in self.rows if row.dim is not None}))

    def errors(self, lag: int, heads: int = HEADS, dim: int | None = None) -> Array:
        """E_pos(1..heads, lag), for rotary heads at dimension ``dim``; values beyond a row repeat its last entry.

        Raises:
            HeadcountError: a lag outside the table.

        >>> [shipped("rope").errors(3, 2, dim).round(2).tolist() for dim in (64, 15)]  # 15: 14 of them are rotated
        [[0.35, 0.02], [0.5, 0.07]]
        """
        return self._least(lag, heads, dim)[0]

    def lower(self, lag: int, heads: int = HEADS, dim: int | None = None) -> Array:
        """Proved lower bounds on ``errors``, for rotary heads that all rotate one of the table's dimensions."""
        return self._least(lag, heads, dim)[1]

    def by_dim(self, lag: int, heads: int = HEADS) -> Array:
        """``errors`` in the form that the solver expects: (H,), or (H, D) for rotary heads of dimensions 1..D."""
        if not self.dims:
            return self.errors(lag, heads)
        columns = [np.ones(heads), *(self.errors(lag, heads, dim) for dim in self.dims)]
        widths = np.diff([1, *self.dims, self.dims[-1] + 1])
        return np.repeat(columns, widths, axis=0).T

    def _least(self, lag: int, heads: int, dim: int | None) -> tuple[Array, Array]:
        if not self.dims:
            return self.row(lag).reaching(heads)
        if dim is None:
            raise HeadcountError("the errors of rotary heads depend on their dimension", fix="name one: dim=64")
        least = np.ones((2, heads))
        for rotated in self.dims:
            if rotated <= dim:
                least = np.minimum(least, self.row(lag, rotated).reaching(heads))
        return least[0], least[1]

    def row(self, lag: int, dim: int | None = None) -> LagRow:
        """The row of a lag; for rotary heads, that of heads that rotate all ``dim`` dimensions.

        Raises:
            HeadcountError: a lag or a dimension outside the table.
        """
        for row in self.rows:
            if (row.lag, row.dim) == (lag, dim):
                return row
        at = "" if dim is None or all(row.lag != lag for row in self.rows) else f" at {dim} dimensions"
        raise HeadcountError(f"lag {lag}{at} is not in the table of {self.position}", fix=self._fix(lag, dim))

    def _fix(self, lag: int, dim: int | None) -> str:
        settings = _settings(self.position, self.limit, self.context, self.logit_budget)
        dims = "" if dim is None or dim in self.dims else f" --dims {dim}"
        return f"compute one: headcount kernels {settings} --lags {lag}{dims} --out FILE; then add --table FILE"


def _settings(position: str, limit: float, context: int, logit_budget: float | None) -> str:
    """The command-line options that differ from the defaults, and ``--position``."""
    parts = [f"--position {position}"]
    if limit != LIMIT:
        parts.append(f"--limit {limit:g}")
    if context != CONTEXT:
        parts.append(f"--context {context}")
    if logit_budget is not None and logit_budget != LOGITS:
        parts.append(f"--logit-budget {logit_budget:g}")
    return " ".join(parts)


def _extended(values: list[float], heads: int) -> Array:
    return np.array(values[:heads] + [values[-1]] * (heads - len(values)))


def scheme_of(
    position: str, context: int = CONTEXT, logit_budget: float | None = None, dim: int | None = None
) -> Scheme:
    """The kernels of a position scheme as in the tables; except for ALiBi, logits lie within [-b, b], b = 8 by default.

    Slow rotary pairs are omitted (``rotary.searched``); ``LagRow.lower`` of one head includes all pairs and bounds
    the effect of the omission.
    """
    budget = LOGITS if logit_budget is None else logit_budget
    if position == "alibi":
        if logit_budget not in (None, LOGITS):
            raise HeadcountError("linear biases have no logit budget", fix="leave out --logit-budget")
        return Linear(context)
    if position == "rope":
        return searched(Rope(context, budget, DIMS[-1] if dim is None else dim))
    if position == "t5":
        return Buckets(context, 2 * budget)
    if position == "learned":
        return Learned(context, 2 * budget)
    raise HeadcountError(f"unknown position scheme {position!r}", fix=f"use one of {', '.join(POSITIONS)}")


def compute(
    position: Position,
    *,
    limit: float = LIMIT,
    lags: Sequence[int] = range(LAGS + 1),
    heads: int = HEADS,
    seed: int = 0,
    context: int = CONTEXT,
    logit_budget: float = LOGITS,
    dims: Sequence[int] = DIMS,
    begun: Table | None = None,
    save: Callable[[Table], object] = lambda table: None,
    progress: Progress = silent,
) -> Table:
    """Compute all cells for lags (and rotary dimensions). Each lag has a separate generator, so partial tables agree.

    Args:
        position, limit, lags, heads, seed, context, logit_budget, dims: settings of the table (``dims``: rotary heads).
        begun: a partial table with the same settings, whose rows are reused.
        save: called with the partial table after each lag; it may stop the computation by raising.
        progress: reports the completed lags.

    Raises:
        HeadcountError: for a lag outside the context, an odd dimension, or ``begun`` with other settings.

    >>> compute("t5", lags=(3, 20), heads=2).errors(20).tolist()[:2]  # lags 19, 20, 21 share a bucket
    [1.0, 1.0]
    """
    check_limit(limit)
    schemes = {dim: scheme_of(position, context, logit_budget, dim) for dim in (dims if position == "rope" else [None])}
    table = Table(
        position=position, context=context, limit=limit, seed=seed, rows=[],
        logit_budget=None if position == "alibi" else logit_budget,
    )  # fmt: skip
    if begun is not None:
        if begun.model_copy(update={"rows": []}) != table:
            raise HeadcountError("the table that was begun has other settings", fix="name another file")
        table = begun
    for done, lag in enumerate(lags):
        progress(f"E_pos of {position}", done, len(lags))
        check_lag(next(iter(schemes.values())), lag)
        computed = {row.dim for row in table.rows if row.lag == lag}
        missing = [dim for dim in schemes if dim not in computed]
        if not missing:
            continue
        if position == "rope":
            # Kernels of the dimensions that divide a missing one are starting points of its search.
            searched_dims = {*missing, *(part for part in DIMS for dim in missing if dim and dim % part == 0)}
            ropes = {dim: scheme_of(position, context, logit_budget, dim) for dim in searched_dims if dim}
            cells = rotary_cells(ropes, lag, heads, limit, seed)  # type: ignore[arg-type]
            rows = [_row(_Cells(*cells[dim], []), lag, dim) for dim in missing if dim]
        else:
            rows = [_row(_cells(schemes[None], lag, heads, limit, seed), lag)]
        merged = sorted([*table.rows, *rows], key=lambda row: (row.lag, row.dim or 0))
        table = table.model_copy(update={"rows": merged})
        save(table)
    progress(f"E_pos of {position}", len(lags), len(lags))
    return table


class _Cells(NamedTuple):
    errors: list[float]
    lower: list[float]
    kernels: list[list[float]]


def _row(cells: _Cells, lag: int, dim: int | None = None) -> LagRow:
    errors, lower = ([round(value, 9) for value in part] for part in (cells.errors, cells.lower))
    return LagRow(lag=lag, dim=dim, errors=errors, lower=lower, kernels=cells.kernels)


def _cells(scheme: Scheme, lag: int, heads: int, limit: float, seed: int) -> _Cells:
    if isinstance(scheme, Learned):
        closed_form = bias_errors(scheme, lag, min(heads, 2), limit).tolist()
        return _Cells(closed_form, closed_form, [])
    assert isinstance(scheme, Linear)
    fits = search(scheme, lag, heads, limit, seed)
    errors = [fit.error for fit in fits]
    bottom = min(floor(scheme, lag, limit).error, errors[-1])
    proved = ones(lag, scheme.context)
    counts = range(1, min(heads, max(len(fits), proved + 1)) + 1)
    lower = [1.0 if count <= proved else bottom for count in counts]
    return _Cells(errors, lower, [_sorted(fit) for fit in fits])


def _sorted(fit: Fit) -> list[float]:
    return sorted(float(x) for x in fit.given.ravel())


def check_limit(limit: float) -> None:
    """Raise if the limit on coefficients is not positive."""
    if not limit > 0:
        raise HeadcountError(f"a limit of {limit:g} on coefficients leaves nothing", fix="use a number above 0")


def write_table(path: Path, table: Table) -> None:
    """Write a table as JSON, one line for each row."""
    head = table.model_dump_json(exclude={"rows"}, indent=1).removesuffix("\n}")
    rows = ",\n".join("  " + row.model_dump_json(exclude_defaults=True) for row in table.rows)
    write_text(path, f'{head},\n "rows": [\n{rows}\n ]\n}}\n')


@cache
def shipped(position: Position) -> Table:
    """The table shipped with headcount: all lags, coefficients with absolute sum at most 64.

    >>> shipped("alibi").errors(1, heads=3).round(4).tolist()
    [1.0, 0.0328, 0.0087]
    """
    scheme_of(position)
    return read_json(SHIPPED / f"{position}.json", Table)


def position_table(
    position: Position,
    lags: Sequence[int],
    limit: float = LIMIT,
    table: Table | None = None,
    context: int = CONTEXT,
    logit_budget: float = LOGITS,
) -> Table:
    """The table with the position errors of ``lags``: ``table`` if passed, else the shipped table, or for other
    settings a new table of these lags (immediate for t5 and learned, seconds per lag for alibi). A table of rope for
    other settings takes about two minutes per lag and must be passed.

    Raises:
        HeadcountError: for a lag outside the context or the table, a table of another scheme or other settings,
            or non-default rotary settings without a table.
    """
    scheme = scheme_of(position, context, logit_budget)
    check_limit(limit)
    for lag in lags:
        check_lag(scheme, lag)
    budget = None if position == "alibi" else logit_budget
    if table is None:
        if (limit, context, logit_budget) == (LIMIT, CONTEXT, LOGITS):
            table = shipped(position)
        elif position == "rope":
            options = f"{_settings(position, limit, context, budget)} --lags {','.join(str(lag) for lag in lags)}"
            raise HeadcountError(
                "no table of rotary kernels is shipped for these settings",
                fix=f"compute one (two minutes a lag): headcount kernels {options} --out FILE; then add --table FILE",
            )
        else:
            table = compute(position, limit=limit, lags=lags, context=context, logit_budget=logit_budget)
    if (table.position, table.limit, table.context, table.logit_budget) != (position, limit, context, budget):
        logits = "" if table.logit_budget is None else f", logits up to {table.logit_budget:g}"
        options = f"--position {table.position} --limit {table.limit:g} --context {table.context}"
        options += "" if table.logit_budget is None else f" --logit-budget {table.logit_budget:g}"
        raise HeadcountError(
            f"the table is of {table.position} with coefficients up to {table.limit:g}, "
            f"context {table.context}{logits}",
            fix=f"use {options}, or another table",
        )
    for lag in lags:
        table.row(lag, table.dims[0] if table.dims else None)
    return table
