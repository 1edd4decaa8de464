"""Figure: the score on fresh sequences during training, as saved by ``headcount learn --out``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from headcount.core import store
from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, Canvas, canvas
from headcount.lab.figures.base import Data, Figure, Inputs, Source
from headcount.lab.train.loop import RESULT, Trained

BESIDE = "attention"
"""Subfolder in which ``headcount learn`` saves the pairwise attention baseline trained alongside other attention."""
COLOURS = (BLUE, ORANGE, GREEN, GREY)


class Learned(pydantic.BaseModel):
    """The part of a run's result that is drawn; exactly one of the three scores is set."""

    task: str
    model: str
    sizes: dict[str, Any]
    curve: list[tuple[int, float]]
    """(steps done, score) at every evaluation."""
    balanced_accuracy: float | None = None
    error: float | None = None
    loss: float | None = None

    @property
    def score_name(self) -> str:
        """The name of the score that is set."""
        names = ("balanced_accuracy", "error", "loss")
        return next(name for name in names if getattr(self, name) is not None)


def learned(runs: Sequence[Trained]) -> list[Learned]:
    """The drawn part of in-memory runs."""
    return [Learned.model_validate(run.summary() | {"curve": run.curve.scores}) for run in runs]


def data(inputs: Inputs) -> list[Learned]:
    """The run in a folder, and the baseline trained alongside it, if there is one."""
    files = [inputs.work / RESULT, inputs.work / BESIDE / RESULT]
    return [store.read_json(file, Learned) for file in files if file == files[0] or file.is_file()]


def rows(data: Sequence[Learned]) -> Data:
    """One row per evaluation of each run."""
    return [{"model": run.model, "step": step, run.score_name: value} for run in data for step, value in run.curve]


def verdict(data: Sequence[Learned]) -> str:
    """The last score of each run."""
    ends = [f"{run.model} {run.curve[-1][1]:.4g} after {run.curve[-1][0]:,} steps" for run in data if run.curve]
    what = f"{data[0].task}, {data[0].score_name.replace('_', ' ')} on fresh sequences"
    return f"{what}: {', '.join(ends) or 'never evaluated'}."


def draw(data: Sequence[Learned]) -> Canvas:
    """One line per run; all runs share one task."""
    figure = canvas(6, 4)
    axes = figure.subplots()
    for run, colour in zip(data, COLOURS, strict=False):
        axes.plot(*zip(*run.curve, strict=True), color=colour, label=run.model)
    first = data[0]
    if first.score_name != "balanced_accuracy":
        axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel(first.score_name.replace("_", " "))
    axes.set_title(f"{first.task}, N = {first.sizes.get('tokens', first.sizes.get('context'))}")
    axes.legend(frameon=False)
    return figure


FIGURE = Figure(
    name="curve",
    title="Score over the training of a run",
    data=data,
    rows=rows,
    verdict=verdict,
    draw=draw,
    source=Source("headcount learn TASK", Path("headcount-runs/learn")),
)
