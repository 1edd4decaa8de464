"""A figure is one file: a toy one is found by its place, listed, and made by ``headcount figure``, like all."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, same_table

from headcount.cli import main
from headcount.lab import figures
from headcount.lab.figures import base, curve, registry
from headcount.lab.specs.run import RunSpec
from headcount.lab.train.loop import train

TOY = """
from headcount.core.drawing import canvas
from headcount.lab.figures.base import Figure

def draw(data):
    picture = canvas(3, 2)
    picture.subplots().plot([row["n"] for row in data], [row["square"] for row in data])
    return picture

FIGURE = Figure(
    name="toy-squares",
    title="Squares",
    data=lambda inputs: [{"n": n, "square": n * n} for n in range(4)],
    verdict=lambda data: f"The largest square is {data[-1]['square']}.",
    draw=draw,
)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One file beside the others, which no registry names."""
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "toy_squares.py").write_text(TOY)
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(tmp_path / "toys")])
    registry._figures.cache_clear()
    yield
    registry._figures.cache_clear()
    sys.modules.pop(f"{figures.__name__}.toy_squares", None)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["figure", *arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.mark.usefixtures("toy")
def test_a_new_figure_is_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "--json")
    listed = {row["name"]: row for row in json.loads(out)["figures"]}
    assert code == 0 and listed["toy-squares"]["title"] == "Squares" and listed["toy-squares"]["needs"] == "nothing"
    code, out, err = run(capsys, "toy-squares", "--out", str(tmp_path / "out"), "--json")
    got = json.loads(out)
    assert code == 0 and err == "" and got["verdict"] == "The largest square is 9." and got["scale"] is None
    assert (tmp_path / "out" / "toy-squares.csv").read_text() == "n,square\n0,0\n1,1\n2,4\n3,9\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"toy-squares.{suffix}" for suffix in ("svg", "png", "csv", "txt")
    }
    with pytest.raises(ValueError, match="the figure 'toy-squares' is registered twice"):
        (tmp_path / "toys" / "again.py").write_text(TOY)
        registry._figures.cache_clear()
        registry.names()


def test_without_its_file_it_is_gone() -> None:
    assert "toy-squares" not in registry.names()


def test_every_figure_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    assert code == 0 and all(name in out for name in registry.names())
    assert {"cliff", "dimensions", "position-errors", "heads-at-fixed-size", "saturation", "curve"} < set(
        registry.names()
    )


def test_every_file_with_a_figure_is_found() -> None:
    folder = ROOT / "src" / "headcount" / "lab" / "figures"
    declaring = [path for path in folder.glob("*.py") if "\nFIGURE = " in path.read_text()]
    assert len(declaring) == len(registry.names())


@pytest.mark.parametrize("name", ["position-errors", "heads-at-fixed-size"])
def test_committed_figures_are_made_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, name, "--out", str(tmp_path))[0] == 0
    file = str(registry.get(name).file)
    texts = [(folder / f"{file}.csv").read_text() for folder in (tmp_path, ROOT / "results")]
    assert same_table(*texts)
    assert (tmp_path / f"{file}.txt").read_bytes() == (ROOT / "results" / f"{file}.txt").read_bytes()


@pytest.mark.parametrize("name", [name for name in registry.names() if registry.get(name).source is None])
def test_committed_verdicts_are_those_of_the_committed_rows(name: str) -> None:
    figure = registry.get(name)
    file = ROOT / "results" / (figure.file or name)
    with file.with_suffix(".csv").open(newline="") as rows:
        data = [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(rows)]
    assert file.with_suffix(".txt").read_text() == figure.verdict(data) + "\n"


def _value(text: str) -> float | int | str | None:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text or None


def test_options_of_training_are_ignored_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--scale", "full", "--workers", "2", "--finished", "--work", str(tmp_path))
    code, out, err = run(capsys, "heads-at-fixed-size", "--out", str(tmp_path), *options)
    assert code == 0 and "Best equal heads" in out
    assert err == "heads-at-fixed-size trains nothing: --scale, --workers, --finished, --work ignored\n"


def test_a_figure_of_another_commands_run_names_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "saturation", "--work", str(tmp_path / "none"))
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "there is no folder" in err and "headcount audit demo --saturation --out" in err
    (tmp_path / "empty").mkdir()
    for name in ("saturation", "curve"):
        code, out, err = run(capsys, name, "--work", str(tmp_path / "empty"))
        assert code == 2 and out == "" and err.count("\n") == 1 and str(tmp_path / "empty") in err


def test_the_curve_of_a_kept_run_is_the_one_that_was_drawn_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = RunSpec(task="qsa", tokens=6, sparsity=2, dim=2, parameters=2000, steps=6, batch=4, evaluate_every=2)
    trained = train(spec, tmp_path / "run")
    before = curve.FIGURE.write(curve.learned([trained]), tmp_path / "before")
    made = base.make(curve.FIGURE, "quick", tmp_path / "run", tmp_path / "after")
    for suffix, path in before.items():
        assert made.files[suffix].read_bytes() == path.read_bytes()
    last = trained.curve.scores[-1][1]
    assert made.verdict == f"qsa, error on fresh sequences: attention {last:.4g} after 6 steps."
    assert run(capsys, "curve", "--work", str(tmp_path / "run"), "--out", str(tmp_path / "cli"))[0] == 0
    assert (tmp_path / "cli" / "curve.csv").read_bytes() == before["csv"].read_bytes()
