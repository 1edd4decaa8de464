"""``headcount allocate`` and ``headcount kernels`` end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headcount.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return dict(json.loads(out))


def test_a_split_of_learned_positions(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("allocate", "--lags", "1,2,3,4", "--budget", "128", "--position", "learned")
    got = answer(capsys, *arguments)
    assert [group["lag"] for group in got["groups"]] == [1, 2, 3, 4]
    assert all(set(group) == {"lag", "heads", "dim"} for group in got["groups"])
    assert sum(group["heads"] * group["dim"] for group in got["groups"]) <= 128
    # A logit range of 16 makes one head nearly exact: all of the budget goes into dimensions.
    assert {group["heads"] for group in got["groups"]} == {1}
    assert set(got["uniform"]) == {"heads", "dim", "error"} and got["error"] <= got["uniform"]["error"]
    assert (got["uniform"]["heads"], got["uniform"]["dim"]) == (4, 32)
    assert [point["heads"] for point in got["curve"]] == list(range(4, 129))
    assert answer(capsys, *arguments) == got
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "uniform" in out


def test_a_table_and_spectra_from_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = {"floor": 0.1, "kernels": [[0.5], [0.2, 0.5]]}
    rows = [{"lag": lag, "errors": [1.0, 0.1], **row} for lag in (1, 2)]
    sizes = {"context": 64, "limit": 64.0, "budget": None, "dim": None, "searched_heads": 32, "restarts": 0, "seed": 0}
    table, spectra = tmp_path / "table.json", tmp_path / "spectra.json"
    table.write_text(json.dumps({"position": "alibi", **sizes, "rows": rows}))
    spectra.write_text("[[1.0], [4.0, 3.0]]")
    files = ("--table", str(table), "--spectra", str(spectra))
    got = answer(capsys, "allocate", "--lags", "1,2", "--budget", "6", *files)
    assert got["groups"] == [{"lag": 1, "heads": 2, "dim": 1}, {"lag": 2, "heads": 2, "dim": 2}]
    assert got["error"] == pytest.approx(0.1 + 0.5)
    code, _, err = run(capsys, "allocate", "--lags", "1,3", "--budget", "6", *files)
    assert code == 2 and "lag 3 is not in the table" in err
    code, _, err = run(capsys, "allocate", "--lags", "1,2", "--budget", "6", *files, "--limit", "8")
    assert code == 2 and "up to 64" in err
    spectra.write_text("{")
    code, _, err = run(capsys, "allocate", "--lags", "1,2", "--budget", "6", *files)
    assert code == 2 and "no list of lists" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lags", "1,2,3", "--budget", "2"), "the smallest is 3"),
        (("--lags", "1,2,3", "--budget", "0"), "the smallest is 3"),
        (("--lags", "1,1", "--budget", "8"), "lag 1 is there more than once"),
        (("--lags", "1,-1", "--budget", "8"), "lag -1 is negative"),
        (("--lags", "one", "--budget", "8"), "no list of whole numbers"),
        (("--lags", "1,64", "--budget", "8"), "lag 64 is outside a context of 64"),
        (("--lags", "1", "--budget", "8", "--position", "sine"), "unknown position scheme 'sine'"),
        (("--lags", "1", "--budget", "8", "--limit", "0"), "a limit of 0"),
        (("--lags", "1", "--budget", "8", "--width", "0"), "content width of 0"),
        (("--lags", "1", "--budget", "8", "--spectra", "nowhere.json"), "cannot read nowhere.json"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    position = () if "--position" in arguments else ("--position", "learned")
    code, out, err = run(capsys, "allocate", *arguments, *position)
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


def test_kernels_are_searched_written_and_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "table.json"
    got = answer(capsys, "kernels", "--position", "alibi", "--lags", "0,8", "--out", str(place))
    assert got["errors"]["0"] == [0.0] * 32
    # 64 is far too small a limit for lag 8: no number of heads singles it out.
    assert all(error == pytest.approx(1.0, abs=1e-6) for error in got["errors"]["8"])
    used = answer(capsys, "allocate", "--lags", "0", "--budget", "4", "--table", str(place))
    assert used["groups"] == [{"lag": 0, "heads": 1, "dim": 4}]
    code, out, _ = run(capsys, "kernels", "--position", "t5", "--lags", "3,20")
    assert code == 0 and "lag" in out and "20" in out
    code, _, err = run(capsys, "kernels", "--position", "t5", "--lags", "3", "--out", str(place))
    assert code == 2 and "closed" in err
