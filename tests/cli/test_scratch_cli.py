"""``plan --scratch`` and ``build``: the JSON of the issue, a folder that loads, one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run
from transformers import AutoModelForCausalLM

ISSUE = ["--scratch", "llama", "--layers", "8", "--hidden", "256", "--params", "6e6", "--context", "512"]
SMALL = ["--scratch", "llama", "--layers", "3", "--hidden", "64", "--params", "2e5", "--context", "64"]


def test_the_command_of_the_issue(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *ISSUE, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["layers"]) == 8 and 0.97 * 6e6 <= found["params"] <= 6e6
    for layer in found["layers"]:
        assert {"n_heads", "n_kv_heads", "qk_dim", "v_dim", "reason"} <= layer.keys()
        assert layer["n_heads"] % layer["n_kv_heads"] == 0


def test_from_plan_to_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *SMALL, "--vocab", "128", "--out", tmp_path / "plan") == 0
    shown = capsys.readouterr().out
    assert "late-keys" in shown and "parameters" in shown
    assert run("build", tmp_path / "plan", "--out", tmp_path / "model", "--seed", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.num_parameters() == found["params"] <= 2e5 and found["seed"] == 3
    assert run("build", tmp_path / "plan", "--out", tmp_path / "model", "--seed", "4") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to plan"),
        (["folder", *ISSUE], "two plans"),
        (["folder", "--layers", "3"], "--layers belongs to a new model"),
        ([*ISSUE, "--form", "small"], "--form belongs to the plan of an audit"),
        (["--scratch", "llama", "--layers", "3"], "--scratch needs --hidden, --context"),
        (["--scratch", "bert", *ISSUE[2:]], "family 'bert'"),
        ([*ISSUE, "--layers", "0"], "--layers 0"),
        ([*ISSUE, "--params", "6e4"], "the smallest budget is"),
        ([*ISSUE, "--cache-bytes", "10"], "the smallest budget is 512"),
        ([*ISSUE, "--from", "nowhere"], "holds no finished audit"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *arguments, "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err


def test_a_folder_without_a_plan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", tmp_path) == 2
    assert "holds no plan of a new model" in capsys.readouterr().err
