"""``headcount task`` end to end: lists, samples, solves, refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcount import tasks
from headcount.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0 and err == "" and out.count("\n") == 1
    return dict(json.loads(out))


def test_list_names_all_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "task", "list")
    assert [row["name"] for row in got["tasks"]] == list(tasks.names())
    code, out, _ = run(capsys, "task", "list")
    assert code == 0 and "sparse-selection" in out


@pytest.mark.parametrize("name", tasks.names())
def test_samples_solve_to_their_own_targets(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    file = tmp_path / "batch.json"
    drawn = answer(capsys, "task", "sample", name, "--tokens", "9", "--count", "2", "--out", str(file))
    assert len(drawn["targets"]) == 2 and json.loads(file.read_text()) == drawn
    solved = answer(capsys, "task", "solve", name, "--input", str(file))
    key = "targets" if tasks.get(name).answer == "vector" else "labels"
    assert solved[key] == drawn["targets"]
    assert solved["sizes"] == drawn["sizes"]


@pytest.mark.parametrize("form", ["text", "json", "npy", "stdin"])
def test_solve_reads_integers_in_four_forms(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "x"
    if form == "npy":
        with file.open("wb") as out:
            np.save(out, np.array([1, 2, 4, 98]))
    else:
        file.write_text("[1, 2, 4, 98]" if form == "json" else "\n1 2 4,98\n")
    if form == "stdin":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    source = "-" if form == "stdin" else str(file)
    got = answer(capsys, "task", "solve", "match3", "--modulus", "101", "--input", source)
    assert got["labels"] == [1, 1, 0, 1]  # 1 + 2 + 98 = 101


def test_several_sequences_and_vectors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("[[1, 4], [2, 2]]")
    got = answer(capsys, "task", "solve", "match2", "--modulus", "5", "--input", str(file))
    assert got["labels"] == [[1, 1], [0, 0]]
    file.write_text('{"z": [[0.5], [-0.5], [0.25]], "y": [[0, 1], [1, 2], [0, 2]]}')
    got = answer(capsys, "task", "solve", "qsa", "--input", str(file))
    assert got["targets"] == [[0.0], [-0.125], [0.375]]


@pytest.mark.parametrize(
    "content", ["1 4\n2,2\n", "[1, 4]\n[2, 2]\n", "\n[1, 4]\n\n[2, 2]", '{"x": [1, 4]}\n{"x": [2, 2]}\n']
)
def test_each_line_is_a_sequence(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str) -> None:
    """1 + 4 = 0 mod 5; no pair of 2, 2 is. As one sequence 1, 4, 2, 2 would answer the same: 3 at the end tells."""
    file = tmp_path / "x.jsonl"
    file.write_text(content)
    got = answer(capsys, "task", "solve", "match2", "--modulus", "5", "--input", str(file))
    assert got["labels"] == [[1, 1], [0, 0]] and got["sizes"]["tokens"] == 2
    file.write_text("2 2\n3 1\n")  # read as one sequence, 2 + 3 = 0 mod 5 would match
    got = answer(capsys, "task", "solve", "match2", "--modulus", "5", "--input", str(file))
    assert got["labels"] == [[0, 0], [0, 0]]


def test_each_line_may_hold_vectors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    rows = [{"z": [[0.5], [-0.5]], "y": [[0], [0]]}, {"z": [[0.25], [1]], "y": [[1], [0]]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    got = answer(capsys, "task", "solve", "qsa", "--input", str(file))
    assert got["targets"] == [[[0.5], [0.5]], [[1.0], [0.25]]]


def test_the_nonlinear_task_can_be_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    sizes = ("--tokens", "5", "--dim", "3", "--order", "2", "--out", str(file))
    linear = answer(capsys, "task", "sample", "ngram", *sizes)
    bent = answer(capsys, "task", "sample", "ngram", "--nonlinear", *sizes)
    assert bent["inputs"] == linear["inputs"]
    want = np.tanh(2 * np.sqrt(3) * np.array(linear["targets"])) / np.sqrt(3)
    np.testing.assert_allclose(bent["targets"], want, rtol=1e-12)  # rounding of tanh alone
    assert answer(capsys, "task", "solve", "ngram", "--input", str(file))["targets"] == bent["targets"]


@pytest.mark.parametrize("group", ["task", "construct", "bound"])
def test_names_are_not_cut_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = answer(capsys, group, "list")
    (rows,) = listed.values()
    code, out, _ = run(capsys, group, "list")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    words = {line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")}
    assert {row.get("id") or row["name"] for row in rows} <= words


def test_people_see_the_first_sequence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    code, out, _ = run(capsys, "task", "sample", "match2", "--tokens", "6", "--modulus", "7", "--out", str(file))
    assert code == 0 and "x[0] =" in out and "written to" in out
    code, out, _ = run(capsys, "task", "solve", "match2", "--input", str(file))
    assert code == 0 and "answers[0] =" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("sample", "match3", "--modulus", "1"), "modulus must be an integer of at least 2, not 1"),
        (("sample", "qsa", "--sparsity", "65"), "sparsity 65 is larger than the number of tokens 64"),
        (("sample", "qsa", "--dim", "0"), "dim must be"),
        (("sample", "match3", "--sparsity", "3"), "match3 has no size 'sparsity'"),
        (("sample", "match3", "--modulus", "3", "--kind", "balanced"), "choose a modulus of 4 or more"),
        (("sample", "match3", "--kind", "nasty"), "nasty"),
        (("sample", "match3", "--count", "0"), "count must be at least 1"),
        (("sample", "nothing"), "there is no task 'nothing'"),
        (("solve", "match3", "--input", "nowhere.txt", "--modulus", "5"), "cannot read nowhere.txt"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, "task", *arguments, "--json")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("match3", "1 2 7", "token 2 of sequence 0 is 7, outside [0, 5)"),
        ("match3", "1 two 3", "holds no integers"),
        ("match3", "", "is empty"),
        ("match3", "[1, [2]]", "unequal length"),
        ("match3", '[1, "2"]', "no numbers"),
        ("match3", "[1, 2", "no valid JSON"),
        ("match3", "{}", "holds no inputs"),
        ("match3", "1 2\n3", "line 2 of "),
        ("match3", "1 2\n3", "has 1 numbers, line 1 has 2"),
        ("match3", "[1, 2]\n\n[3]", "line 3 of "),
        ("match3", "[1, 2]\n[3", "no valid JSON"),
        ("match3", "[1, 2]\n[]", "line 2 of "),
        ("match3", "[1, 2]\n3", "holds no single sequence"),
        ("match3", '{"inputs": {"x": [[1]]}}\n{"inputs": {"x": [[1]]}}', "holds no single sequence"),
        ("qsa", '{"z": [[0.5]], "y": [[0]]}\n{"z": [[0.5]]}', "line 2 of "),
        ("match3", "[1.5, 2]", "float64"),
        ("qsa", '{"z": [[0.5], [0.5]], "y": [[0, 0], [0, 1]]}', "a repeated element"),
        ("qsa", '{"z": [[0.5], [0.5]], "y": [[0, 2], [0, 1]]}', "outside [0, 2)"),
        ("qsa", '{"z": [[0.5], [0.5]]}', "qsa takes the inputs z, y, not z"),
        ("qsa", '{"z": [0.5, 0.5], "y": [[0], [1]]}', "too few axes"),
        ("qsa", "[1, 2]", "qsa takes the inputs z, y, not x"),
        ("match3", '{"z": [[0.5], [0.5]]}', "match3 takes the inputs x, not z"),
    ],
)
def test_bad_inputs_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: str, message: str
) -> None:
    file = tmp_path / "x"
    file.write_text(content)
    modulus = ("--modulus", "5") if name == "match3" else ()
    code, out, err = run(capsys, "task", "solve", name, "--input", str(file), *modulus, "--json")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert message in err


def test_unreadable_bytes_and_a_missing_modulus(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "x"
    for content, message in (
        (b"\xff\xfe\x00", "neither text nor .npy"),
        (b"\x93NUMPY\x01", "no readable .npy"),
    ):
        file.write_bytes(content)
        code, _, err = run(capsys, "task", "solve", "match3", "--modulus", "5", "--input", str(file))
        assert code == 2 and message in err
    file.write_text("1 2 3")
    code, _, err = run(capsys, "task", "solve", "match3", "--input", str(file))
    assert code == 2 and "give --modulus" in err
