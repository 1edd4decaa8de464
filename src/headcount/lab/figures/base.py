"""What the learning lab's figures share: a plan of runs, the data drawn from them, a verdict, a drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from headcount.core import store
from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.lab.specs.run import RunSpec
from headcount.lab.specs.text import AnySpec
from headcount.lab.sweep import runner as sweep
from headcount.lab.sweep.runner import Row
from headcount.lab.train.loop import time_of_a_step

Scale = Literal["quick", "full"]
Data = list[dict[str, Any]]


@dataclass(frozen=True)
class LabFigure:
    """One figure.

    plan: the runs at a scale. data: their rows, and the folder where weights are kept, as the rows of the
    CSV. verdict: a sentence computed from the data. draw: writes SVG, PNG and CSV. keep: whether the weights
    are needed.
    """

    name: str
    title: str
    plan: Callable[[Scale], Sequence[AnySpec]]
    data: Callable[[Sequence[Row], Path], Data]
    verdict: Callable[[Data], str]
    draw: Callable[[Data, Path], Mapping[str, Path]]
    keep: bool = False


@dataclass(frozen=True)
class Made:
    """What making a figure gave."""

    data: Data
    verdict: str
    files: Mapping[str, Path]
    failed: int
    missing: int


def make(
    figure: LabFigure,
    scale: Scale,
    work: Path,
    out: Path,
    *,
    workers: int = -1,
    finished_only: bool = False,
    progress: Progress = silent,
) -> Made:
    """Run what is missing in ``work``, then write the figure and its verdict to ``out``.

    finished_only: run nothing, and draw from the runs of the plan that are there; how many are missing is
    counted.
    """
    specs = figure.plan(scale)
    if finished_only:
        rows = [row for spec in specs if (row := sweep.read_row(work, spec)) is not None]
    else:
        rows = sweep.sweep(specs, work, workers=workers, keep=figure.keep, progress=progress)
    good = [row for row in rows if row.error is None]
    if not rows:
        raise HeadcountError(f"no run of {figure.name} is finished in {work}", fix="leave out --finished")
    if not good:
        raise HeadcountError(f"all runs of {figure.name} failed: {rows[0].error}", fix="run it again")
    data = figure.data(good, work)
    verdict = figure.verdict(data)
    files = dict(figure.draw(data, out))
    files["txt"] = out / f"{figure.name}.txt"
    store.write_text(files["txt"], verdict + "\n")
    return Made(data, verdict, files, len(rows) - len(good), len(specs) - len(rows))


@dataclass(frozen=True)
class Estimate:
    """How long runs will take. starts: of how many runs the start is computed first, which is not in ``seconds``."""

    seconds: float
    starts: int


def estimate(figure: LabFigure, scale: Scale, work: Path, workers: int) -> Estimate:
    """How long the missing runs will take: one step of every sort of run is timed, and multiplied out.

    Too long where runs stop early at their target; too short where the machine does other things.
    """
    missing = [
        spec for spec in figure.plan(scale) if (row := sweep.read_row(work, spec)) is None or row.error is not None
    ]
    seconds: dict[AnySpec, float] = {}
    total = 0.0
    for spec in missing:
        sort = spec.model_copy(update={"seed": 0, "samples": None, "steps": 1000, "snapshots": ()})
        if sort not in seconds:
            seconds[sort] = time_of_a_step(sort)
        total += spec.steps * seconds[sort]
    return Estimate(total / max(1, workers), sum(isinstance(own, RunSpec) and own.start is not None for own in missing))


def mean_and_half_width(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half the width of Student's confidence interval; nan for the width of a single value.

    >>> mean, half = mean_and_half_width([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.484)
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return mean, math.nan
    spread = float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean, float(student.ppf(0.5 + level / 2, count - 1)) * spread


def groups(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some fields of their runs, in the order of the plan."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.spec.get(name) for name in names), []).append(row)
    return found
