"""Sweeps: the grid's order and its mistakes, rows, restarts, failures, both engines."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headcount.core.errors import HeadcountError
from headcount.lab.specs.run import RunSpec
from headcount.lab.sweep import runner as sweep
from headcount.lab.sweep.grid import read_grid, runs

FIXED = {
    "task": "qsa", "tokens": 6, "sparsity": 2, "dim": 2, "steps": 4, "batch": 4, "evaluations": 8, "width": 8,
}  # fmt: skip
FILE = """
seeds = 2
[fixed]
task = "qsa"
tokens = 6
sparsity = 2
dim = 2
steps = {steps}
batch = 4
evaluations = 8
width = 8
[grid]
model = ["gru", "mlp-tokenwise"]
"""


def test_the_grid_in_order(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(FILE.format(steps=4) + "learning_rate = [0.1, 0.01]\n")
    got = [(spec.model.name, spec.learning_rate, spec.seed) for spec in read_grid(file)]
    assert got == [(m, r, s) for m in ("gru", "mlp-tokenwise") for r in (0.1, 0.01) for s in (0, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\nmodel = []\n[fixed]\ntask = 'qsa'", "the grid is empty: model has no values"),
        ("seeds = []\n[fixed]\ntask = 'qsa'", "the grid is empty: seeds has no values"),
        ("seeds = 10001\n[fixed]\ntask = 'qsa'", r"the grid has 10,001 runs, more than 10,000; pass --yes"),
        ("[fixed]\ntask = 'qsa'\nlearning_rat = 1", "'learning_rat' is no field of a run"),
        ("[grids]\nmodel = []", "'grids' at its top"),
        ("[fixed]\ntask = 'qsa'\nmodel = 'gru'\n[grid]\nmodel = ['gru']", "model is given twice"),
        ("[fixed]\ntask = 'qsa'\nseed = 3", "seeds = "),
        ("[fixed]\ntask = 'qsa'\n[grid]\ndepth = 3", "depth in the grid is 3"),
        ("[fixed]\ntask = 'qsa'\n[grid]\nsteps = [5, -5]", "steps: .* not -5"),
        ("seeds = 'all'\n[fixed]\ntask = 'qsa'", "seeds is 'all'"),
        ("fixed = 3", "fixed in .* is no table"),
        ("[[", "is no TOML file"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    with pytest.raises(HeadcountError, match=message):
        read_grid(file)


def test_many_runs_are_allowed_when_meant() -> None:
    assert len(runs({"task": "qsa"}, {}, 10_001, allow_many=True)) == 10_001


def test_rows_table_and_restart(tmp_path: Path) -> None:
    specs = runs(FIXED, {"model": ["gru", "mlp-tokenwise"]}, seeds=2)
    rows = sweep.sweep(specs, tmp_path / "s", workers=1)
    assert [(row.spec["model"], row.spec["seed"]) for row in rows] == [(s.model.name, s.seed) for s in specs]
    assert all(row.error is None and 0 < float(row.score or 0) < 2 for row in rows)
    table = (tmp_path / "s" / "table.csv").read_bytes()
    assert table.decode().count("\n") == 5
    # A row is lost: that run alone is made again, and the table is the same.
    row_file = tmp_path / "s" / "rows" / f"{sweep.digest(specs[0])}.json"
    lost = tmp_path / "s" / "rows" / f"{sweep.digest(specs[2])}.json"
    when = row_file.stat().st_mtime_ns
    lost.unlink()
    assert sweep.status(tmp_path / "s") == {"runs": 4, "done": 3, "failed": 0, "missing": 1}
    sweep.sweep(specs, tmp_path / "s", workers=1)
    assert (
        (tmp_path / "s" / "table.csv").read_bytes() == table and row_file.stat().st_mtime_ns == when and lost.exists()
    )
    with pytest.raises(HeadcountError, match="other inputs"):
        sweep.sweep(specs[:2], tmp_path / "s", workers=1)


def test_failures_are_rows_and_run_again(tmp_path: Path) -> None:
    specs = runs({key: value for key, value in FIXED.items() if key != "width"}, {"parameters": [10, 2000]})
    rows = sweep.sweep(specs, tmp_path / "s", workers=1)
    assert "no width gives attention 10 parameters" in str(rows[0].error) and rows[1].error is None
    assert sweep.status(tmp_path / "s") == {"runs": 2, "done": 1, "failed": 1, "missing": 0}
    assert "no width gives attention" in (tmp_path / "s" / "table.csv").read_text()
    again = sweep.sweep(specs, tmp_path / "s", workers=1)
    assert again[0].error == rows[0].error and again[1] == rows[1]


def test_kept_runs_leave_their_weights(tmp_path: Path) -> None:
    (spec,) = runs(FIXED, {})
    sweep.sweep([spec], tmp_path / "s", workers=1, keep=True)
    assert (sweep.run_folder(tmp_path / "s", spec) / "weights.safetensors").exists()


def test_a_killed_sweep_gives_the_same_table(tmp_path: Path) -> None:
    """Two worker processes; kill -9 once a row is there; restarted, the table is that of a whole sweep."""
    file = tmp_path / "grid.toml"
    file.write_text(FILE.format(steps=60).replace("seeds = 2", "seeds = 4"))
    command = [sys.executable, "-m", "headcount", "sweep", str(file), "--workers", "2", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [*command, str(killed)], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not list((killed / "rows").glob("*.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = len(list((killed / "rows").glob("*.json")))
    assert done > 0 and not (killed / "table.csv").exists()
    specs = read_grid(file)
    sweep.sweep(specs, killed, workers=1)
    sweep.sweep(specs, whole, workers=1)
    assert (killed / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()


def test_unknown_engines_and_folders(tmp_path: Path) -> None:
    with pytest.raises(HeadcountError, match="no engine 'dask'"):
        sweep.sweep([RunSpec.checked(FIXED)], tmp_path / "s", engine="dask")  # type: ignore[arg-type]
    with pytest.raises(HeadcountError, match="is no sweep's folder"):
        sweep.status(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_ray_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(HeadcountError, match=r"ray is not installed; pip install 'headcount\[ray\]'"):
        sweep.sweep([RunSpec.checked(FIXED)], tmp_path / "s", engine="ray")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_local_ray_gives_the_same_table(tmp_path: Path) -> None:
    code = (
        "import ray, sys, json; from pathlib import Path\n"
        "from headcount.lab.sweep.grid import runs; from headcount.lab.sweep.runner import sweep\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "specs = runs(json.loads(sys.argv[1]), {'model': ['gru', 'mlp-tokenwise']})\n"
        "sweep(specs, Path(sys.argv[2]), engine='ray', workers=2)\n"
        "ray.shutdown()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(FIXED), str(tmp_path / "ray")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    specs = runs(FIXED, {"model": ["gru", "mlp-tokenwise"]})
    sweep.sweep(specs, tmp_path / "loky", workers=1)
    assert (tmp_path / "ray" / "table.csv").read_bytes() == (tmp_path / "loky" / "table.csv").read_bytes()
