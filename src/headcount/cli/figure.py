"""``headcount figure``: any figure by name, from its runs to the image and its verdict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcount.cli.common import Json, Out, emit_json, named_table, progress_bars, show

if TYPE_CHECKING:
    from headcount.lab.figures.base import Estimate, Figure, Scale


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("figure")(figure)


def figure(
    name: Annotated[str, typer.Argument(help="A name of `headcount figure list`, or list.")],
    scale: Annotated[
        Literal["quick", "full"] | None,
        typer.Option("--scale", help="Of figures that train; quick, the default: under 3 minutes on 2 cores."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Of figures that train: runs at once; -1: as many as processors.")
    ] = None,
    out: Out = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            help="Where the runs are kept (headcount-runs/NAME-SCALE by default), or the finished run to draw.",
        ),
    ] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Run nothing; draw from the runs in --work that are finished.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a figure: its CSV, SVG, PNG and verdict (in --out; results by default). `figure list` names them all.

    Where it needs runs, how long they will take is said first. They are kept, so the same command goes on after a kill.
    """
    from headcount.lab.figures import registry
    from headcount.lab.figures.base import Estimate, make

    if name == "list":
        _list(as_json)
        return
    chosen = registry.get(name)
    if chosen.training is None:
        ignored = {"--scale": scale is not None, "--workers": workers is not None, "--finished": finished}
        ignored["--work"] = work is not None and chosen.source is None
        _warn(name, [option for option, is_set in ignored.items() if is_set])
    size: Scale = scale or "quick"
    folder = work or (chosen.source.folder if chosen.source else Path("headcount-runs") / f"{name}-{size}")
    at_once = -1 if workers is None else workers
    needed = Estimate(0.0, 0) if chosen.training is None or finished else _estimate(chosen, size, folder, at_once)
    with progress_bars() as progress:
        made = make(
            chosen, size, folder, out or Path("results"), workers=at_once, finished_only=finished, progress=progress
        )
    if as_json:
        emit_json(
            {
                "figure": name,
                "scale": size if chosen.training else None,
                "estimated_seconds": needed.seconds,
                "verdict": made.verdict,
                "failed_runs": made.failed,
                "missing_runs": made.missing,
                "files": {suffix: str(path) for suffix, path in made.files.items()},
                "rows": made.rows,
            }
        )
        return
    show(made.verdict)
    if made.missing:
        show(f"{made.missing} runs are not finished and are left out")
    if made.failed:
        show(f"{made.failed} runs failed and are left out; the same command tries them again")
    show(f"written to {', '.join(str(path) for path in made.files.values())}")


def _warn(name: str, options: list[str]) -> None:
    """Report on stderr which options are ignored by a figure without training."""
    if options:
        typer.echo(f"{name} trains nothing: {', '.join(options)} ignored", err=True)


def _estimate(chosen: Figure[Any], scale: Scale, folder: Path, workers: int) -> Estimate:
    """The estimated duration of the runs, also printed on stderr."""
    from headcount.lab.figures.base import estimate

    assert chosen.training is not None
    processors = (os.cpu_count() or 1) if workers < 1 else workers
    needed = estimate(chosen.training, scale, folder, processors)
    more = f", and {needed.starts} starts to compute" if needed.starts else ""
    minutes = f"{needed.seconds / 60:.1f} minutes on {processors} processors"
    typer.echo(f"{chosen.title}: about {minutes}{more}", err=True)
    return needed


def _list(as_json: bool) -> None:
    """List all figures with their content and requirements."""
    from headcount.lab.figures import registry

    rows = [_described(registry.get(name)) for name in registry.names()]
    if as_json:
        emit_json({"figures": rows})
        return
    table = named_table("figure", "shows", "needs")
    for row in rows:
        table.add_row(row["name"], row["title"], row["needs"])
    show(table)


def _described(figure: Figure[Any]) -> dict[str, Any]:
    needs = "nothing"
    if figure.training is not None:
        counts = [len(figure.training.plan(scale)) for scale in ("quick", "full")]
        needs = f"training: {counts[0]} runs, at --scale full {counts[1]}"
    elif figure.source is not None:
        needs = f"--work FOLDER, which {figure.source.command} --out FOLDER writes"
    return {"name": figure.name, "title": figure.title, "needs": needs, "file": figure.file or figure.name}
