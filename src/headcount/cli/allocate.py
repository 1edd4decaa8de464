"""``headcount allocate`` (a budget of heads and dimensions split over lags) and ``headcount kernels`` (E_pos)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headcount.cli.common import Json, Seed, emit_json, offered, progress_bars, show

Position = Annotated[
    Any,
    typer.Option(
        "--position",
        parser=str,
        metavar="SCHEME",
        autocompletion=offered("alibi", "t5", "rope", "learned"),
        help="alibi, t5, rope or learned.",
    ),
]
Limit = Annotated[float, typer.Option("--limit", help="C: the sum of the coefficients' absolute values, at most.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(allocate)
    app.command()(kernels)


def allocate(
    lags: Annotated[str, typer.Option("--lags", help="Lags to extract, with commas between them: 1,2,3,4.")],
    budget: Annotated[int, typer.Option("--budget", help="Sum of heads times dimension, at most.")],
    position: Position = "alibi",
    width: Annotated[int, typer.Option("--width", help="Rows of the random matrix that each lag carries.")] = 32,
    spectra: Annotated[
        Path | None, typer.Option("--spectra", help="JSON: a list of singular values for each lag, not random ones.")
    ] = None,
    limit: Limit = 64.0,
    table: Annotated[
        Path | None, typer.Option("--table", help="Position errors that headcount kernels --out wrote.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The best heads and dimensions for each lag under a budget, beside the best uniform layer."""
    from rich.table import Table

    from headcount.allocation import solver
    from headcount.allocation import table as tables
    from headcount.allocation.spectra import random_spectra, read_spectra
    from headcount.store import read_json

    asked = _lags(lags)
    solver.check_lags(asked)
    solver.check_budget(asked, budget)
    known = None if table is None else read_json(table, tables.Table)
    rows = [tables.position_errors(position, lag, limit=limit, table=known) for lag in asked]
    content = random_spectra(len(asked), width, seed) if spectra is None else read_spectra(spectra)
    found = solver.allocate(asked, budget, rows, content)
    if as_json:
        emit_json(found.as_json() | {"position": position, "budget": budget, "limit": limit})
        return
    rich_table = Table("lag", "heads", "dim", "E_pos")
    for group, row in zip(found.groups, rows, strict=True):
        rich_table.add_row(str(group.lag), str(group.heads), str(group.dim), f"{row[group.heads - 1]:.4g}")
    best = found.uniform
    show(
        rich_table,
        f"error {found.error:.4g} with {sum(group.heads * group.dim for group in found.groups)} of {budget} numbers; "
        f"uniform {best.error:.4g}, with {best.heads} heads of {best.dim}",
    )


def _lags(text: str) -> list[int]:
    from headcount.errors import HeadcountError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise HeadcountError(f"lags {text!r} are no list of whole numbers", fix="write them as 1,2,3,4") from error


def kernels(
    position: Position = "alibi",
    limit: Limit = 64.0,
    lags: Annotated[str | None, typer.Option("--lags", help="Which lags, as 1,2,3; 0 to 32 by default.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A file for the table (alibi and rope).")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """E_pos: how well 1, 2, ... heads single out each lag; minutes for all lags of alibi and rope."""
    from rich.table import Table

    from headcount.allocation import table as tables
    from headcount.store import write_json

    asked = _lags(lags) if lags is not None else list(range(tables.LAGS + 1))
    if position in ("alibi", "rope") or out is not None:
        with progress_bars() as progress:
            found = tables.compute(position, limit=limit, lags=asked, seed=seed, progress=progress)
        if out is not None:
            write_json(out, found)
        rows = [found.errors(lag) for lag in asked]
    else:
        rows = [tables.position_errors(position, lag, limit=limit) for lag in asked]
    if as_json:
        errors = {str(lag): row.tolist() for lag, row in zip(asked, rows, strict=True)}
        emit_json({"position": position, "limit": limit, "context": tables.CONTEXT, "errors": errors})
        return
    shown = (1, 2, 3, 4, 6, 8, 12, 16, 32)
    table = Table("lag", *(f"{heads} heads" if heads > 1 else "1 head" for heads in shown))
    for lag, row in zip(asked, rows, strict=True):
        table.add_row(str(lag), *(f"{row[heads - 1]:.4g}" for heads in shown))
    show(table)
