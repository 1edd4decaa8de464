"""``headcount figure``: a figure of the learning lab, from its runs to the picture and its verdict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from headcount.cli.common import Json, Out, emit_json, progress_bars, show


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("figure")(figure)


def figure(
    name: Annotated[
        str,
        typer.Argument(help="qsa-pattern, qsa-samples, qsa-width, match3-orders, memory, heads-vs-dim or scratch-lm."),
    ],
    scale: Annotated[
        Literal["quick", "full"], typer.Option("--scale", help="quick: under 3 minutes on 2 cores.")
    ] = "quick",
    workers: Annotated[int, typer.Option("--workers", help="Runs at once; -1: as many as processors.")] = -1,
    out: Out = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="Where the runs are kept (headcount-runs/NAME-SCALE by default).")
    ] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Run nothing; draw from the runs in --work that are finished.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the runs of a figure, then its CSV, SVG, PNG and verdict (in --out; results by default).

    How long the runs will take is said first. They are kept, so the same command goes on after a kill.
    """
    from headcount.lab.figures import registry
    from headcount.lab.figures.base import Estimate, estimate, make

    chosen = registry.get(name)
    folder = work or Path("headcount-runs") / f"{name}-{scale}"
    processors = (os.cpu_count() or 1) if workers < 1 else workers
    needed = Estimate(0.0, 0) if finished else estimate(chosen, scale, folder, processors)
    if not finished:
        more = f", and {needed.starts} starts to compute" if needed.starts else ""
        minutes = f"{needed.seconds / 60:.1f} minutes on {processors} processors"
        typer.echo(f"{chosen.title}: about {minutes}{more}", err=True)
    with progress_bars() as progress:
        made = make(
            chosen, scale, folder, out or Path("results"), workers=workers, finished_only=finished, progress=progress
        )
    if as_json:
        emit_json(
            {
                "figure": name,
                "scale": scale,
                "estimated_seconds": needed.seconds,
                "verdict": made.verdict,
                "failed_runs": made.failed,
                "missing_runs": made.missing,
                "files": {suffix: str(path) for suffix, path in made.files.items()},
                "rows": made.data,
            }
        )
        return
    show(made.verdict)
    if made.missing:
        show(f"{made.missing} runs are not finished and are left out")
    if made.failed:
        show(f"{made.failed} runs failed and are left out; the same command tries them again")
    show(f"written to {', '.join(str(path) for path in made.files.values())}")
