"""Tables of E_pos(H, tau): written by ``headcount kernels --out``, read by ``headcount allocate --table``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from headcount.allocation.closed import bias_errors
from headcount.allocation.kernels import LIMIT, check_lag, floor, search
from headcount.allocation.schemes import Array, Buckets, Learned, Linear, Rope, Scheme
from headcount.errors import HeadcountError
from headcount.progress import Progress, silent

Position = Literal["alibi", "t5", "rope", "learned"]
POSITIONS: tuple[Position, ...] = ("alibi", "t5", "rope", "learned")
HEADS, LAGS, CONTEXT, BUDGET = 32, 32, 64, 16.0
"""What tables reach: heads 1..32, lags 0..32 of 64, logits within a budget of 16 (not for ALiBi)."""
_SEARCHED = {"alibi": 32, "rope": 4}
"""Up to how many heads kernels are searched for; more heads repeat the last."""


class LagRow(BaseModel):
    """One lag: errors for 1, 2, ... heads as far as they fall, the floor under any number of heads where it is known,
    and for ALiBi the x = exp(-slope) of each number of heads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lag: int
    errors: list[float] = Field(min_length=1)
    floor: float | None
    kernels: list[list[float]]


class Table(BaseModel):
    """A table of E_pos, with all that computing it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    position: Literal["alibi", "rope"]
    context: int
    limit: float
    budget: float | None
    dim: int | None
    searched_heads: int
    restarts: int | None
    seed: int
    rows: list[LagRow]

    def errors(self, lag: int, heads: int = HEADS) -> Array:
        """E_pos(1..heads, lag); where the row ends, its last value goes on.

        Raises:
            HeadcountError: a lag outside the table.
        """
        found = {row.lag: row for row in self.rows}.get(lag)
        if found is None:
            raise HeadcountError(
                f"lag {lag} is not in the table of {self.position}",
                fix="compute a table that has it: headcount kernels --lags",
            )
        known = found.errors[:heads]
        return np.array(known + [known[-1]] * (heads - len(known)))


def scheme_of(position: str, context: int = CONTEXT) -> Scheme:
    """The kernels of a position scheme as the tables have them: RoPE with 64 dimensions, logits within 16."""
    if position == "alibi":
        return Linear(context)
    if position == "rope":
        return Rope(context, BUDGET, 64)
    if position == "t5":
        return Buckets(context, BUDGET)
    if position == "learned":
        return Learned(context, BUDGET)
    raise HeadcountError(f"unknown position scheme {position!r}", fix=f"use one of {', '.join(POSITIONS)}")


def compute(
    position: Literal["alibi", "rope"],
    *,
    limit: float = LIMIT,
    lags: Sequence[int] = range(LAGS + 1),
    heads: int | None = None,
    restarts: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Table:
    """Search all cells: minutes of one core. Each lag has a generator of its own, so parts agree with the whole."""
    if position not in _SEARCHED:
        raise HeadcountError(
            f"no table of {position!r} is computed", fix="use alibi or rope; t5 and learned are closed"
        )
    scheme = scheme_of(position)
    searched = heads or _SEARCHED[position]
    rows = []
    for done, lag in enumerate(lags):
        progress(f"E_pos of {position}", done, len(lags))
        fits = search(scheme, lag, searched, limit, seed, restarts)
        linear = isinstance(scheme, Linear)
        rows.append(
            LagRow(
                lag=lag,
                errors=[round(fit.error, 9) for fit in fits],
                floor=round(floor(scheme, lag, limit).error, 9) if isinstance(scheme, Linear) else None,
                kernels=[sorted(fit.given.ravel().tolist()) for fit in fits] if linear else [],
            )
        )
    progress(f"E_pos of {position}", len(lags), len(lags))
    return Table(
        position=position,
        context=scheme.context,
        limit=limit,
        budget=getattr(scheme, "budget", None),
        dim=getattr(scheme, "dim", None),
        searched_heads=searched,
        restarts=restarts,
        seed=seed,
        rows=rows,
    )


@cache
def _row(position: Literal["alibi", "rope"], lag: int, limit: float) -> Table:
    return compute(position, limit=limit, lags=(lag,))


def position_errors(
    position: Position, lag: int, heads: int = HEADS, limit: float = LIMIT, table: Table | None = None
) -> Array:
    """E_pos(1..heads, lag) of a position scheme: in closed form, from ``table``, or searched (seconds for a lag).

    >>> position_errors("t5", 20, heads=2).tolist()  # lags 19, 20, 21 share a bucket
    [1.0, 1.0]
    >>> position_errors("alibi", 0, heads=2).tolist()
    [0.0, 0.0]

    Raises:
        HeadcountError: a lag that the context or the table does not hold, a table of another scheme or limit.
    """
    scheme = scheme_of(position)
    check_lag(scheme, lag)
    if not limit > 0:
        raise HeadcountError(f"a limit of {limit:g} on coefficients leaves nothing", fix="use a number above 0")
    if table is not None:
        if (table.position, table.limit) != (position, limit):
            raise HeadcountError(
                f"the table is of {table.position} with coefficients up to {table.limit:g}",
                fix=f"use --position {table.position} --limit {table.limit:g}, or another table",
            )
        return table.errors(lag, heads)
    if isinstance(scheme, Learned):
        return bias_errors(scheme, lag, heads, limit)
    return _row("alibi" if position == "alibi" else "rope", lag, limit).errors(lag, heads)
