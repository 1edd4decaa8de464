"""Many runs, distributed over processes or machines; finished runs are never repeated.

A finished run is one file, ``rows/<digest>.json``, named after a digest of the run's fields and written atomically, so
any number of processes may write to one folder, and an interrupted sweep resumes with the missing runs. When all runs
are finished, ``table.csv`` lists them in grid order. Times are stored separately in ``timing.csv``, so that an
interrupted and resumed sweep gives the same table as an uninterrupted one.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from headcount.core import store
from headcount.core.errors import HeadcountError
from headcount.core.extras import optional_imports, require
from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent
from headcount.lab.specs.text import AnySpec, checked
from headcount.lab.train.loop import train

Engine = Literal["loky", "ray"]
ROWS, RUNS, TABLE, TIMING = "rows", "runs.json", "table.csv", "timing.csv"


class Row(pydantic.BaseModel):
    """The outcome of one run: ``result`` (``Trained.summary``), or a one-line ``error``."""

    spec: JsonObject
    result: JsonObject | None = None
    error: str | None = None
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """The error, balanced accuracy or loss on held-out data."""
        result = self.result or {}
        return result.get("error", result.get("balanced_accuracy", result.get("loss")))


class _Runs(pydantic.BaseModel):
    runs: list[JsonObject]


def digest(spec: AnySpec) -> str:
    """The name of a run: a hash of its fields, and for text also of the planned model."""
    return store.digest(spec.identity())


def run_one(spec: AnySpec, folder: Path | None = None, keep: bool = False) -> Row:
    """Train one run in this process; errors are recorded in the row, which is written if the folder is accessible.

    keep: save the weights in ``runs/<digest>``; an interrupted run resumes from its checkpoint there.
    """
    started = time.perf_counter()
    weights_folder = run_folder(folder, spec) if keep and folder is not None else None
    try:
        row = Row(spec=spec.inputs(), result=train(spec, weights_folder).summary())
    except Exception as error:  # any error is recorded in the row, and the other runs continue
        row = Row(spec=spec.inputs(), error=f"{type(error).__name__}: {error}".splitlines()[0])
    row.seconds = time.perf_counter() - started
    if folder is not None and folder.is_dir():
        store.write_json(_row_file(folder, spec), row)
    return row


def sweep(
    specs: Sequence[AnySpec],
    folder: Path,
    *,
    engine: Engine = "loky",
    workers: int = -1,
    keep: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[Row]:
    """Execute the unfinished runs in ``folder`` and write the table; returns the rows in the order of ``specs``.

    engine: ``loky``, processes on this machine with one thread each; ``ray``, joblib's Ray backend, on the cluster
    that Ray is connected to or starts. workers: number of parallel runs; -1 uses all processors. keep: see
    ``run_one``. Failed runs have rows with an error and are repeated when the sweep is run again.
    """
    require("joblib")
    store.open_run_folder(folder, "sweep", {"runs": [digest(spec) for spec in specs]}, overwrite)
    store.write_json(folder / RUNS, {"runs": [spec.inputs() for spec in specs]})
    (folder / ROWS).mkdir(exist_ok=True)
    done = {digest(spec): row for spec in specs if (row := read_row(folder, spec)) and row.error is None}
    missing = list({digest(spec): spec for spec in specs if digest(spec) not in done}.values())
    progress("sweep", len(done), len(done) + len(missing))
    for spec, row in _spread(missing, folder, engine, workers, keep):
        if not _row_file(folder, spec).exists():  # the worker ran on another machine
            store.write_json(_row_file(folder, spec), row)
        done[digest(spec)] = row
        progress("sweep", len(done), len({digest(spec) for spec in specs}))
    rows = [done[digest(spec)] for spec in specs]
    store.write_text(folder / TABLE, table(rows))
    store.write_text(folder / TIMING, "run,seconds\n" + "".join(f"{i},{r.seconds:.3f}\n" for i, r in enumerate(rows)))
    return rows


def _spread(
    specs: Sequence[AnySpec], folder: Path, engine: Engine, workers: int, keep: bool
) -> Iterator[tuple[AnySpec, Row]]:
    """Yield rows as runs finish."""
    if not specs:
        return
    with optional_imports():
        import joblib
    options: dict[str, Any] = {"inner_max_num_threads": 1} if engine == "loky" else {}
    if engine == "ray":
        _register_ray()
    elif engine != "loky":
        raise HeadcountError(f"there is no engine {engine!r}", fix="choose loky or ray")
    with joblib.parallel_config(backend=engine, n_jobs=workers, **options):
        jobs = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
        yield from jobs(joblib.delayed(_numbered)(spec, folder.resolve(), keep) for spec in specs)


def _numbered(spec: AnySpec, folder: Path, keep: bool) -> tuple[AnySpec, Row]:
    return spec, run_one(spec, folder, keep)


def _register_ray() -> None:
    try:
        from ray.util.joblib import register_ray
    except ImportError:
        raise HeadcountError("ray is not installed", fix="pip install 'headcount[ray]', or use --engine loky") from None
    register_ray()


def read_row(folder: Path, spec: AnySpec) -> Row | None:
    """The row of a run, or None if there is none."""
    path = _row_file(folder, spec)
    return store.read_json(path, Row) if path.exists() else None


def run_folder(folder: Path, spec: AnySpec) -> Path:
    """The folder in which a sweep stores the files of one run other than its row."""
    return folder / "runs" / digest(spec)


def _row_file(folder: Path, spec: AnySpec) -> Path:
    return folder / ROWS / f"{digest(spec)}.json"


def status(folder: Path) -> dict[str, int]:
    """The numbers of finished, failed and missing runs of a sweep."""
    if store.run_kind(folder) != "sweep":
        raise HeadcountError(f"{folder} is no sweep's folder", fix="give the --out of a sweep")
    specs = [checked(fields) for fields in store.read_json(folder / RUNS, _Runs).runs]
    rows = [read_row(folder, spec) for spec in specs]
    failed = sum(row is not None and row.error is not None for row in rows)
    missing = sum(row is None for row in rows)
    return {"runs": len(rows), "done": len(rows) - failed - missing, "failed": failed, "missing": missing}


def flat(row: Row) -> JsonObject:
    """A row as table columns: the fields of the run, then its results, without times."""
    result = row.result or {}
    scores = {
        f"{kind} {name}": value
        for kind, entry in result.get("scores", {}).items()
        for name, value in entry.items()
        if name in ("error", "balanced_accuracy", "majority_accuracy", "loss", "bits_per_byte")
    }
    sized = {f"used {name}": result.get("config", {}).get(name) for name in ("width", "inner")} if result else {}
    counts = {f"found {name}": result[name] for name in ("parameters", "samples", "steps") if name in result}
    return {**row.spec, **sized, **counts, **scores, "failure": row.error}


def table(rows: Sequence[Row]) -> str:
    """The rows as CSV."""
    flats = [flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flats for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flats)
    return text.getvalue()
