"""``headcount allocate`` (splitting a budget of heads and dimensions over lags) and ``headcount kernels`` (E_pos)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headcount.cli.common import Json, Seed, emit_json, offered, progress_bars, show
from headcount.core.payload import JsonObject

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
Context = Annotated[int, typer.Option("--context", help="Tokens that a head attends to.")]
LogitBudget = Annotated[
    float, typer.Option("--logit-budget", help="b: logits lie within [-b, b] (t5, rope, learned; ALiBi has none).")
]


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
    context: Context = 64,
    logit_budget: LogitBudget = 8.0,
    table: Annotated[
        Path | None, typer.Option("--table", help="Position errors that headcount kernels --out wrote.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="A folder for the figure heads_at_fixed_size: all four schemes.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The best heads and dimensions for each lag under a budget, beside the best uniform layer.

    Position errors of rotary heads are those of each head's own dimension.
    """
    from rich.table import Table

    from headcount.core.store import read_json
    from headcount.lags import solver
    from headcount.lags import table as tables
    from headcount.lags.spectra import random_spectra, read_spectra

    asked = _lags(lags)
    solver.check_lags(asked)
    solver.check_budget(asked, budget)
    known = None if table is None else read_json(table, tables.Table)
    errors = tables.position_table(position, asked, limit, known, context, logit_budget)
    rows = [errors.by_dim(lag) for lag in asked]
    content = random_spectra(len(asked), width, seed) if spectra is None else read_spectra(spectra, len(asked), layer)
    allocation = solver.allocate(asked, budget, rows, content)
    if figure is not None:
        from headcount.lab.figures import heads_at_fixed_size as drawing

        drawing.FIGURE.write(drawing.rows(asked, budget, content), figure)
    if as_json:
        settings = {"limit": limit, "context": context, "logit_budget": errors.logit_budget}
        emit_json(allocation.as_json() | {"position": position, "budget": budget} | settings)
        return
    rich_table = Table("lag", "heads", "dim", "E_pos")
    for group in allocation.groups:
        reached = errors.errors(group.lag, dim=group.dim)[group.heads - 1]
        rich_table.add_row(str(group.lag), str(group.heads), str(group.dim), f"{reached:.4g}")
    best = allocation.uniform
    show(
        rich_table,
        f"error {allocation.error:.4g} with {sum(group.heads * group.dim for group in allocation.groups)} of {budget} "
        f"numbers; uniform {best.error:.4g}, with {best.heads} heads of {best.dim}",
    )


def _lags(text: str) -> list[int]:
    return _numbers(text, "lags")


def _numbers(text: str, what: str) -> list[int]:
    from headcount.core.errors import HeadcountError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise HeadcountError(f"{what} {text!r} are no list of whole numbers", fix="write them as 1,2,3,4") from error


def kernels(
    position: Position = "alibi",
    limit: Limit = 64.0,
    context: Context = 64,
    logit_budget: LogitBudget = 8.0,
    lags: Annotated[str | None, typer.Option("--lags", help="Which lags, as 1,2,3; 0 to 32 by default.")] = None,
    dims: Annotated[
        str | None,
        typer.Option("--dims", help="rope: the rotary dimensions to search, as 16,32; 2 to 128 by default."),
    ] = None,
    dim: Annotated[
        int | None, typer.Option("--dim", help="rope: the dimension of the heads that are shown; 64 by default.")
    ] = None,
    recompute: Annotated[bool, typer.Option("--recompute", help="Search again, not the shipped table.")] = False,
    decay: Annotated[
        bool, typer.Option("--decay", help="How fast the errors fall, with heads and with the lag.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A file for the table, which is searched again, or completed if it was begun."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="A folder for the figure position_errors: all four schemes.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """E_pos: how well 1, 2, ... heads single out each lag.

    The shipped table, or a new search: with --out, --recompute, --seed, --dims, or another --limit, --context or
    --logit-budget; for rope it takes about two minutes a lag. A table that --out began is completed.
    """
    from headcount.core.errors import HeadcountError
    from headcount.core.store import read_json
    from headcount.lags import solver
    from headcount.lags import table as tables
    from headcount.lags.kernels import LIMIT

    if position != "rope" and (dim is not None or dims is not None):
        raise HeadcountError(
            f"the kernels of {position} do not depend on the dimension", fix="leave out --dim and --dims"
        )
    if dim is not None and dim < 1:
        raise HeadcountError(f"heads of dimension {dim} are not possible", fix="use --dim 1 or more")
    asked = _lags(lags) if lags is not None else list(range(tables.LAGS + 1))
    solver.check_lags(asked)
    usual = (limit, context, logit_budget) == (LIMIT, tables.CONTEXT, tables.LOGITS)
    if out is not None or recompute or seed or dims is not None or not usual:
        widths = tables.DIMS if dims is None else sorted(set(_numbers(dims, "dimensions")))
        begun = read_json(out, tables.Table) if out is not None and out.exists() else None

        def save(table: tables.Table) -> None:
            if out is not None:
                tables.write_table(out, table)

        with progress_bars() as progress:
            position_table = tables.compute(
                position, limit=limit, lags=asked, seed=seed, context=context, logit_budget=logit_budget, dims=widths,
                begun=begun, save=save, progress=progress,
            )  # fmt: skip
    else:
        position_table = tables.position_table(position, asked, limit)
    if figure is not None:
        from headcount.lab.figures import position_errors as drawing

        drawing.FIGURE.write(drawing.rows(), figure)
    shown = min(64, position_table.dims[-1]) if dim is None and position_table.dims else dim
    answer = {
        "position": position,
        "limit": limit,
        "context": position_table.context,
        "logit_budget": position_table.logit_budget,
    }
    if shown is not None:
        answer["dim"] = shown
    if decay:
        _show_decay(position_table, asked, shown, answer, as_json)
        return
    if as_json:
        errors = {str(lag): position_table.errors(lag, dim=shown).tolist() for lag in asked}
        lower = {str(lag): position_table.lower(lag, dim=shown).tolist() for lag in asked}
        emit_json(answer | {"errors": errors, "lower": lower})
        return
    _show_errors(position_table, asked, shown)


def _show_errors(position_table: Any, lags: list[int], dim: int | None) -> None:
    from rich.table import Table

    shown = (1, 2, 3, 4, 6)

    def short(value: float) -> str:
        return f"{value:.3g}" if value == 0 or value >= 1e-6 else "<1e-6"

    table = Table("lag", "1 head", *(f"{heads}" for heads in shown[1:]), "32", "at least")
    for lag in lags:
        row = position_table.errors(lag, dim=dim)
        table.add_row(
            str(lag), *(short(row[heads - 1]) for heads in (*shown, 32)), short(position_table.lower(lag, dim=dim)[-1])
        )
    heads = "" if dim is None else f"heads of dimension {dim}\n"
    show(table, f"{heads}at least: what is proved for 32 heads; a found error is an upper bound")


def _show_decay(position_table: Any, lags: list[int], dim: int | None, answer: JsonObject, as_json: bool) -> None:
    from rich.table import Table

    from headcount.lags.decay import decay_rows, lag_decay

    rows, fall = decay_rows(position_table, lags, dim), lag_decay(position_table, lags, dim=dim)
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
            *(f"{fit:.3g}" for fit in (row["power"], row["power_misfit"], row["rate"], row["rate_misfit"])),
            *grown,
        )
    show(table if rows else "nothing to fit: no lag has three errors between 1 and its floor")
    if fall is not None:
        show(
            f"what any number of heads gains, 1 - E_pos, falls {fall['factor']:.3g}-fold from lag to lag "
            f"(lags {fall['lags'][0]} to {fall['lags'][-1]}, misfit {fall['misfit']:.2g} in the logarithm)"
        )
