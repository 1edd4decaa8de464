"""One spelling for one option: the old ones still work, in no help, with the same effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import run

from headcount.cli.app import app
from headcount.core.errors import HeadcountError
from headcount.lab.sweep.grid import runs

TINY = ["learn", "qsa", "--tokens", "6", "--sparsity", "2", "--dim", "2", "--steps", "2", "--batch", "2"]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    assert run(*arguments, "--json") == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return {name: value for name, value in found.items() if not name.startswith(("seconds", "shares"))}


@pytest.mark.parametrize("size", [["--parameters", "2000"], ["--parameters=2000"]])
def test_parameters_is_params(size: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    new = answer(capsys, *TINY, "--params", "2000")
    assert answer(capsys, *TINY, *size) == new
    assert 1900 <= int(str(new["parameters"])) <= 2100  # within 5%


def test_save_is_out_for_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ["task", "sample", "match2", "--tokens", "6", "--modulus", "7"]
    assert answer(capsys, *sample, "--save", tmp_path / "old") == answer(capsys, *sample, "--out", tmp_path / "new")
    assert (tmp_path / "old").read_bytes() == (tmp_path / "new").read_bytes() != b""


def test_save_is_out_for_constructions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    construct = ["construct", "match2", "--tokens", "6", "--modulus", "7", "--count", "2"]
    assert answer(capsys, *construct, f"--save={tmp_path / 'old'}") == answer(
        capsys, *construct, "--out", tmp_path / "new"
    )
    old, new = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("old", "new"))
    assert old == new and len(new) == 2


def test_the_last_spelling_wins_as_a_repeated_option_does(capsys: pytest.CaptureFixture[str]) -> None:
    last = answer(capsys, *TINY, "--params", "2000")
    assert answer(capsys, *TINY, "--params", "3000", "--parameters", "2000") == last
    assert answer(capsys, *TINY, "--parameters", "3000", "--params", "2000") == last


def test_no_help_shows_an_old_spelling() -> None:
    def commands(command: Any) -> list[Any]:
        below = getattr(command, "commands", {}).values()
        return [command, *(deeper for own in below for deeper in commands(own))]

    every = commands(typer.main.get_command(app))
    assert len(every) > 40
    for command in every:
        context = typer.Context(command)
        spelled = {name for parameter in command.get_params(context) for name in parameter.opts}
        assert spelled.isdisjoint({"--save", "--parameters"}), command.name


def test_sweeps_take_the_option_and_the_field() -> None:
    fixed = {"task": "qsa"}
    assert runs(fixed | {"params": 2000}, {}) == runs(fixed | {"parameters": 2000}, {})
    assert runs(fixed, {"params": [2000, 3000]}) == runs(fixed, {"parameters": [2000, 3000]})
    with pytest.raises(HeadcountError, match="params and parameters are one field"):
        runs(fixed | {"params": 2000, "parameters": 2000}, {})
    with pytest.raises(HeadcountError, match="parameters is given twice"):
        runs(fixed | {"params": 2000}, {"parameters": [2000]})
