"""Many runs, spread over processes or machines; what is finished is never run again.

A finished run is one file, ``rows/<digest>.json``, named by the run's fields and written in one piece: any
number of processes may write to one folder, and a sweep that was killed goes on with what is missing. When
all are there, ``table.csv`` lists them in the grid's order; times stand apart in ``timing.csv``, so that a
sweep that was killed and restarted gives the same table as one that was not.
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
    """One run's outcome: ``result`` (``Trained.summary``), or ``error`` in a line."""

    spec: JsonObject
    result: JsonObject | None = None
    error: str | None = None
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """The error, the balanced accuracy, or the loss, on what was not trained on."""
        found = self.result or {}
        return found.get("error", found.get("balanced_accuracy", found.get("loss")))


class _Runs(pydantic.BaseModel):
    runs: list[JsonObject]


def digest(spec: AnySpec) -> str:
    """The name of a run: a hash of its fields (of text, of the planned model besides)."""
    return store.digest(spec.identity())


def run_one(spec: AnySpec, folder: Path | None = None, keep: bool = False) -> Row:
    """Train one run in this process; an error becomes a row. Its row is written where the folder is in reach.

    keep: the weights stay in ``runs/<digest>``, and a run that was killed goes on from its checkpoint there.
    """
    started = time.perf_counter()
    own = run_folder(folder, spec) if keep and folder is not None else None
    try:
        row = Row(spec=spec.inputs(), result=train(spec, own).summary())
    except Exception as error:  # whatever it is, the other runs go on, and the row tells
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
    """Run what is not finished yet in ``folder``, and write the table; the rows in the order of ``specs``.

    engine: ``loky``, processes of this machine, one thread each; ``ray``, joblib's Ray backend, on the cluster
    that Ray is connected to or would start. workers: how many at once; -1 takes all processors. keep: see
    ``run_one``. Runs that failed are rows with an error; they are run again when the sweep is.
    """
    require("joblib")
    store.open_run_folder(folder, "sweep", {"runs": [digest(spec) for spec in specs]}, overwrite)
    store.write_json(folder / RUNS, {"runs": [spec.inputs() for spec in specs]})
    (folder / ROWS).mkdir(exist_ok=True)
    done = {digest(spec): row for spec in specs if (row := read_row(folder, spec)) and row.error is None}
    missing = list({digest(spec): spec for spec in specs if digest(spec) not in done}.values())
    progress("sweep", len(done), len(done) + len(missing))
    for spec, row in _spread(missing, folder, engine, workers, keep):
        if not _row_file(folder, spec).exists():  # the worker was another machine
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
    """Rows as they are finished."""
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
    """The row of a run, None where there is none."""
    path = _row_file(folder, spec)
    return store.read_json(path, Row) if path.exists() else None


def run_folder(folder: Path, spec: AnySpec) -> Path:
    """Where a sweep keeps what belongs to one run besides its row."""
    return folder / "runs" / digest(spec)


def _row_file(folder: Path, spec: AnySpec) -> Path:
    return folder / ROWS / f"{digest(spec)}.json"


def status(folder: Path) -> dict[str, int]:
    """How many runs of a sweep are done, failed and missing."""
    if store.run_kind(folder) != "sweep":
        raise HeadcountError(f"{folder} is no sweep's folder", fix="give the --out of a sweep")
    specs = [checked(fields) for fields in store.read_json(folder / RUNS, _Runs).runs]
    rows = [read_row(folder, spec) for spec in specs]
    failed = sum(row is not None and row.error is not None for row in rows)
    missing = sum(row is None for row in rows)
    return {"runs": len(rows), "done": len(rows) - failed - missing, "failed": failed, "missing": missing}


def flat(row: Row) -> JsonObject:
    """A row as the columns of a table: the fields of the run, then what it came to, without times."""
    found = row.result or {}
    scores = {
        f"{kind} {name}": value
        for kind, entry in found.get("scores", {}).items()
        for name, value in entry.items()
        if name in ("error", "balanced_accuracy", "majority_accuracy", "loss", "bits_per_byte")
    }
    sized = {f"used {name}": found.get("config", {}).get(name) for name in ("width", "inner")} if found else {}
    counts = {f"found {name}": found[name] for name in ("parameters", "samples", "steps") if name in found}
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
