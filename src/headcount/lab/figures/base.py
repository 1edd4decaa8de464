"""The definition of a figure: its data, CSV rows, verdict and drawing, and the training runs it needs, if any.

A figure is one file of this folder whose ``FIGURE`` is a ``Figure``; ``registry`` finds it there, and
``headcount figure NAME`` makes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from scipy.stats import t as student

from headcount.core import store
from headcount.core.drawing import Canvas, write_figure
from headcount.core.errors import HeadcountError
from headcount.core.extras import require
from headcount.core.progress import Progress, silent
from headcount.lab.specs.run import RunSpec
from headcount.lab.specs.text import AnySpec
from headcount.lab.sweep import runner as sweep
from headcount.lab.sweep.runner import Row
from headcount.lab.train.loop import time_of_a_step

Scale = Literal["quick", "full"]
Data = list[dict[str, Any]]
"""Rows of a CSV; most figures are also drawn from them."""
T = TypeVar("T")


@dataclass(frozen=True)
class Training:
    """The runs that a figure needs. plan: the runs at a scale. keep: whether their weights are needed as well."""

    plan: Callable[[Scale], Sequence[AnySpec]]
    keep: bool = False


@dataclass(frozen=True)
class Source:
    """A folder written by another command that a figure reads: the command, and the default folder."""

    command: str
    folder: Path


@dataclass(frozen=True)
class Inputs:
    """The inputs from which a figure computes its data.

    runs: rows of finished runs, in the order of the plan. work: the folder of the runs, including any saved weights,
    or the folder of a ``Source``. Both are empty for a figure that needs no inputs.
    """

    runs: Sequence[Row] = ()
    work: Path = Path()
    progress: Progress = silent


def _as_they_are(data: Any) -> Data:
    """The data of most figures are the rows of their CSV."""
    return list(data)


@dataclass(frozen=True, kw_only=True)
class Figure(Generic[T]):
    """One figure: ``data`` is computed once, and everything else is derived from it.

    rows: the rows of the CSV. verdict: a sentence computed from the data. draw: the picture. training: the runs that
    must be trained first. source: the folder that is read instead. file: the name of the files without their
    suffix; ``name`` by default.
    """

    name: str
    title: str
    data: Callable[[Inputs], T]
    verdict: Callable[[T], str]
    draw: Callable[[T], Canvas]
    rows: Callable[[T], Data] = _as_they_are
    training: Training | None = None
    source: Source | None = None
    file: str = ""

    def __post_init__(self) -> None:
        assert self.training is None or self.source is None, f"{self.name} reads one folder"

    def write(self, data: T, folder: Path) -> dict[str, Path]:
        """Write SVG, PNG and CSV files to ``folder``; the same data produce the same bytes."""
        return write_figure(self.draw(data), self.rows(data), folder, self.file or self.name)


@dataclass(frozen=True)
class Made:
    """The result of making a figure. failed, missing: the numbers of runs left out."""

    rows: Data
    verdict: str
    files: Mapping[str, Path]
    failed: int = 0
    missing: int = 0


def make(
    figure: Figure[Any],
    scale: Scale,
    work: Path,
    out: Path,
    *,
    workers: int = -1,
    finished_only: bool = False,
    progress: Progress = silent,
) -> Made:
    """Execute the runs missing from ``work``, then write the figure and its verdict to ``out``.

    finished_only: execute nothing, and draw from the finished runs of the plan; missing runs are counted.
    A figure without training ignores scale, workers and finished_only.
    """
    require("matplotlib", *(() if figure.training is None or finished_only else ("joblib",)))
    good: Sequence[Row] = ()
    failed = missing = 0
    if figure.training is not None:
        specs = figure.training.plan(scale)
        if finished_only:
            rows = [row for spec in specs if (row := sweep.read_row(work, spec)) is not None]
        else:
            rows = sweep.sweep(specs, work, workers=workers, keep=figure.training.keep, progress=progress)
        good = [row for row in rows if row.error is None]
        failed, missing = len(rows) - len(good), len(specs) - len(rows)
        if not rows:
            raise HeadcountError(f"no run of {figure.name} is finished in {work}", fix="leave out --finished")
        if not good:
            raise HeadcountError(f"all runs of {figure.name} failed: {rows[0].error}", fix="run it again")
    elif figure.source is not None and not work.is_dir():
        fix = f"run {figure.source.command} --out {work}, or give its folder with --work"
        raise HeadcountError(f"there is no folder {work}", fix=fix)
    data = figure.data(Inputs(good, work, progress))
    verdict = figure.verdict(data)
    files = figure.write(data, out)
    files["txt"] = files["csv"].with_suffix(".txt")
    store.write_text(files["txt"], verdict + "\n")
    return Made(figure.rows(data), verdict, files, failed, missing)


@dataclass(frozen=True)
class Estimate:
    """Estimated duration of runs. starts: number of runs with a computed start, whose cost is not in ``seconds``."""

    seconds: float
    starts: int


def estimate(training: Training, scale: Scale, work: Path, workers: int) -> Estimate:
    """Estimate the duration of the missing runs by timing one step of every distinct configuration.

    The estimate is too high where runs stop early at their target, and too low on a machine with other load.
    """
    require("matplotlib", "joblib")
    missing = [
        spec for spec in training.plan(scale) if (row := sweep.read_row(work, spec)) is None or row.error is not None
    ]
    seconds: dict[AnySpec, float] = {}
    total = 0.0
    for spec in missing:
        sort = spec.model_copy(update={"seed": 0, "samples": None, "steps": 1000, "snapshots": ()})
        if sort not in seconds:
            seconds[sort] = time_of_a_step(sort)
        total += spec.steps * seconds[sort]
    return Estimate(total / max(1, workers), sum(isinstance(run, RunSpec) and run.start is not None for run in missing))


def mean_and_half_width(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's confidence interval; the half-width of a single value is nan.

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
    """Group rows by the values of the named fields of their runs, in the order of the plan."""
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        grouped.setdefault(tuple(row.spec.get(name) for name in names), []).append(row)
    return grouped
