"""``headcount learn``, ``sweep`` and ``figure`` end to end: fields, tables, files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headcount.cli import main

TOY = ["qsa", "--tokens", "6", "--sparsity", "2", "--dim", "2", "--steps", "20", "--batch", "8", "--params", "2000"]
FIELDS = {"task", "model", "parameters", "samples", "steps", "seconds", "seed"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_learn_answers_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "learn", *TOY, "--model", "lstm", "--samples", "50", "--seed", "3", "--json")
    got = json.loads(out)
    assert code == 0 and err == "" and FIELDS | {"error"} <= set(got)
    assert (got["task"], got["model"], got["seed"], got["steps"], got["samples"]) == ("qsa", "lstm", 3, 20, 50)
    assert abs(got["parameters"] - 2000) <= 100 and 0 < got["error"] < 1
    assert sum(got["shares_of_time"].values()) == pytest.approx(1)


def test_pairwise_attention_is_printed_beside_third_order(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["learn", "match3", "--model", "third-order", "--tokens", "6", "--steps", "5", "--batch", "8"]
    arguments += ["--params", "2000"]
    code, out, _ = run(capsys, *arguments, "--json")
    got = json.loads(out)
    assert code == 0 and 0 <= got["balanced_accuracy"] <= 1
    assert got["beside"]["model"] == "attention" and abs(got["beside"]["parameters"] - 2000) <= 100
    code, out, _ = run(capsys, *arguments)
    assert "third-order" in out and "attention" in out and "Always the most frequent answer" in out


def test_out_keeps_the_run_and_its_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    code, out, _ = run(capsys, "learn", *TOY, "--out", folder)
    assert code == 0 and "written to" in " ".join(out.split())
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"weights.safetensors", "result.json", "curve.svg", "curve.png", "curve.csv"} <= names
    code, _, err = run(capsys, "learn", *TOY, "--out", folder, "--seed", "1")
    assert code == 2 and "seed: 0 then, 1 now" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("learn qsaa", "did you mean qsa"),
        ("learn qsa --model lstn", "did you mean lstm"),
        ("learn qsa --model lstm --heads 2", "no option 'heads'"),
        ("learn qsa --params 12", "no width gives attention 12 parameters"),
        ("learn qsa --steps 0", "steps:"),
        ("learn match3 --sparsity 3", "no size 'sparsity'"),
        ("figure qsa", "no figure 'qsa'"),
        ("sweep nothing.toml", "cannot be read"),
        ("sweep status nowhere", "is no sweep's folder"),
    ],
)
def test_mistakes_exit_with_two(capsys: pytest.CaptureFixture[str], arguments: str, message: str) -> None:
    code, out, err = run(capsys, *arguments.split())
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_huge_rates_exit_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "learn", *TOY, "--learning-rate", "1e30")
    assert code == 1 and "is not finite" in err


def test_sweep_and_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        'seeds = 1\n[fixed]\ntask = "qsa"\ntokens = 6\nsparsity = 2\nsteps = 3\nbatch = 4\n'
        '[grid]\nmodel = ["mlp", "gru"]\nparameters = [10, 3000]\n'
    )
    folder = str(tmp_path / "out")
    code, out, _ = run(capsys, "sweep", str(file), "--out", folder, "--workers", "1", "--json")
    got = json.loads(out)
    assert code == 0 and (got["runs"], got["failed"]) == (4, 2) and len(got["rows"]) == 4
    code, out, _ = run(capsys, "sweep", "status", folder, "--json")
    assert code == 0 and json.loads(out) == {"folder": folder, "runs": 4, "done": 2, "failed": 2, "missing": 0}
    code, out, _ = run(capsys, "sweep", "--workers", "1", str(file), "--out", folder)
    assert code == 0 and "4 runs, 2 failed" in out
    file.write_text(file.read_text().replace("steps", "step"))
    code, _, err = run(capsys, "sweep", str(file), "--out", folder)
    assert code == 2 and "'step' is no field of a run" in err
