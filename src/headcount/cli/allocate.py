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
        Path | None,
        typer.Option(
            "--spectra", help="JSON of singular values, a list a lag; or an audit folder. Random if not given."
        ),
    ] = None,
    layer: Annotated[int, typer.Option("--layer", help="Which layer of an audit folder.")] = 0,
    limit: Limit = 64.0,
    table: Annotated[
        Path | None, typer.Option("--table", help="Position errors that headcount kernels --out wrote.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="A folder for the figure heads_at_fixed_size: all four schemes.")
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
    errors = tables.position_table(position, asked, limit, known)
    rows = [errors.errors(lag) for lag in asked]
    content = random_spectra(len(asked), width, seed) if spectra is None else read_spectra(spectra, len(asked), layer)
    found = solver.allocate(asked, budget, rows, content)
    if figure is not None:
        from headcount.experiments import position as drawings

        drawings.draw_sizes(drawings.size_rows(asked, budget, content), figure)
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
    recompute: Annotated[bool, typer.Option("--recompute", help="Search again, not the shipped table.")] = False,
    decay: Annotated[
        bool, typer.Option("--decay", help="How fast the errors fall, with heads and with the lag.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="A file for the table, which is searched again.")] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="A folder for the figure position_errors: all four schemes.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """E_pos: how well 1, 2, ... heads single out each lag.

    The shipped table, or a new search: with --out, --recompute, another --limit or --seed; minutes for all lags.
    """
    from headcount.allocation import solver
    from headcount.allocation import table as tables
    from headcount.store import write_json

    asked = _lags(lags) if lags is not None else list(range(tables.LAGS + 1))
    solver.check_lags(asked)
    if out is not None or recompute or seed or limit != tables.LIMIT:
        with progress_bars() as progress:
            found = tables.compute(position, limit=limit, lags=asked, seed=seed, progress=progress)
        if out is not None:
            write_json(out, found)
    else:
        found = tables.position_table(position, asked, limit)
    if figure is not None:
        from headcount.experiments import position as drawings

        drawings.draw_errors(drawings.error_rows(), figure)
    answer = {"position": position, "limit": limit, "context": found.context}
    if decay:
        _show_decay(found, asked, answer, as_json)
        return
    if as_json:
        errors = {str(lag): found.errors(lag).tolist() for lag in asked}
        emit_json(answer | {"errors": errors, "lower": {str(lag): found.lower(lag).tolist() for lag in asked}})
        return
    _show_errors(found, asked)


def _show_errors(found: Any, lags: list[int]) -> None:
    from rich.table import Table

    shown = (1, 2, 3, 4, 6)

    def short(value: float) -> str:
        return f"{value:.3g}" if value == 0 or value >= 1e-6 else "<1e-6"

    table = Table("lag", "1 head", *(f"{heads}" for heads in shown[1:]), "32", "at least")
    for lag in lags:
        row = found.errors(lag)
        table.add_row(str(lag), *(short(row[heads - 1]) for heads in (*shown, 32)), short(found.lower(lag)[-1]))
    show(table, "at least: what is proved for 32 heads; a found error is an upper bound")


def _show_decay(found: Any, lags: list[int], answer: dict[str, Any], as_json: bool) -> None:
    from rich.table import Table

    from headcount.allocation.decay import decay_rows, lag_decay

    rows, fall = decay_rows(found, lags), lag_decay(found, lags)
    if as_json:
        emit_json(answer | {"decay": rows, "gain_by_lag": fall})
        return
    table = Table(
        "lag", "heads fitted", "H^-n: n", "misfit", "e^-kH: k", "misfit", "excess, next lag", "bound, next lag"
    )
    for row in rows:
        grown = [f"{value:.3g}" if value is not None else "" for value in (row["growth"], row["bound_growth"])]
        table.add_row(
            str(row["lag"]),
            f"{row['heads'][0]} to {row['heads'][-1]}",
            *(f"{row[key]:.3g}" for key in ("power", "power_misfit", "rate", "rate_misfit")),
            *grown,
        )
    show(table if rows else "nothing to fit: no lag has three errors between 1 and its floor")
    if fall is not None:
        show(
            f"what any number of heads gains, 1 - E_pos, falls {fall['factor']:.3g}-fold from lag to lag "
            f"(lags {fall['lags'][0]} to {fall['lags'][-1]}, misfit {fall['misfit']:.2g} in the logarithm)"
        )
