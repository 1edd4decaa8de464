"""``headcount sweep``: grids of training runs from one file, over processes or machines, and their status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from headcount.cli.common import Json, Out, Overwrite, emit_json, progress_bars, show
from headcount.core.payload import JsonObject

if TYPE_CHECKING:
    from headcount.lab.sweep.runner import Row


class _RunByDefault(TyperGroup):
    """Treats ``sweep FILE`` as ``sweep run FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and args[0] not in ("--help",):
            args.insert(0, "run")
        return super().parse_args(ctx, args)


sweep = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Grids of training runs: `sweep FILE.toml`, then `sweep status FOLDER`.",
)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(sweep, name="sweep")


@sweep.command("run")
def run(
    file: Annotated[Path, typer.Argument(help="TOML: seeds, [fixed] fields, [grid] of lists of values.")],
    engine: Annotated[
        Literal["loky", "ray"], typer.Option("--engine", help="Processes of this machine, or a Ray cluster.")
    ] = "loky",
    workers: Annotated[int, typer.Option("--workers", help="Runs at once; -1: as many as processors.")] = -1,
    yes: Annotated[bool, typer.Option("--yes", help="Run more than 10,000.")] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run a grid; `sweep FILE` does the same. Finished runs are kept, so the same command goes on after a kill.

    Fields are the options of `learn`, with underscores. A run that fails is a row with its error. The table is
    table.csv in the folder (--out; FILE's name without its ending by default).
    """
    from headcount.lab.sweep.grid import read_grid
    from headcount.lab.sweep.runner import TABLE
    from headcount.lab.sweep.runner import sweep as run_all

    specs = read_grid(file, allow_many=yes)
    folder = out or Path(file.stem)
    with progress_bars() as progress:
        rows = run_all(specs, folder, engine=engine, workers=workers, overwrite=overwrite, progress=progress)
    failed = [row for row in rows if row.error is not None]
    if as_json:
        emit_json({"folder": str(folder), "runs": len(rows), "failed": len(failed), "rows": _flats(rows)})
        return
    show(f"{len(rows)} runs, {len(failed)} failed; table: {folder / TABLE}")
    for row in failed[:5]:
        show(f"failed: {row.error}")


@sweep.command("status")
def status(folder: Annotated[Path, typer.Argument(help="The folder of a sweep.")], as_json: Json = False) -> None:
    """How many runs are done, failed and missing."""
    from headcount.lab.sweep.runner import status as count

    counts = count(folder)
    if as_json:
        emit_json({"folder": str(folder), **counts})
        return
    show(f"{counts['runs']} runs: {counts['done']} done, {counts['failed']} failed, {counts['missing']} missing")


def _flats(rows: list[Row]) -> list[JsonObject]:
    from headcount.lab.sweep.runner import flat

    return [flat(row) for row in rows]
