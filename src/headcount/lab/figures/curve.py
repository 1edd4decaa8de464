"""The curve of single runs: the score on fresh sequences over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, write_figure
from headcount.lab.train.loop import Trained


def draw(runs: Sequence[Trained], folder: Path, name: str = "curve") -> dict[str, Path]:
    """Draw the runs, which share their task, and write the figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rows = []
    for run, colour in zip(runs, (BLUE, ORANGE, GREEN, GREY), strict=False):
        axes.plot(*zip(*run.curve.scores, strict=True), color=colour, label=run.spec.model)
        rows += [{"model": run.spec.model, "step": s, run.spec.score_name: v} for s, v in run.curve.scores]
    first = runs[0].spec
    sizes = first.described()["sizes"]
    tokens = sizes.get("tokens", sizes.get("context"))
    if not first.higher_is_better:
        axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel(first.score_name.replace("_", " "))
    axes.set_title(f"{first.task}, N = {tokens}")
    axes.legend(frameon=False)
    return write_figure(figure, rows, folder, name)
