"""``headcount audit --saturation`` and ``--selection`` on a tiny model: JSON keys, files, refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run


def test_saturation(
    tiny_folder: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [
        "audit",
        tiny_folder,
        "--saturation",
        "--contexts",
        "16,32",
        "--tokens",
        "128",
        "--matmul-dtype",
        "model",
    ]
    command += ["--text", text, "--out", tmp_path / "s"]
    assert run(*command, "--json") == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    found = json.loads(captured.out)
    assert [context["context"] for context in found["contexts"]] == [16, 32]
    energies = {"energy_rank", "energy_error", "pooled_energy_rank", "weight_rank"}
    assert {"layer", "rank_0.01", "rank_0.05", "rank_0.1", "logit_range", "output_rms"} | energies == set(
        found["contexts"][0]["layers"][0]
    )
    assert [error["rank"] for error in found["contexts"][1]["errors"]] == list(range(17))
    assert {bound["violations"] for context in found["contexts"] for bound in context["bounds"]} == {0}
    assert set(found["contexts"][0]["components"]["weights"]) == {"mean", "low", "high"}
    assert {claim["verdict"] for claim in found["claims"]} <= {"holds", "does not hold", "not decided"}
    assert len(found["claims"]) == 10
    rows = (tmp_path / "s" / "saturation.csv").read_text().splitlines()
    assert sum(row.startswith("head,") for row in rows) == 2 * 3 * 4
    assert sum(row.startswith("claim,") for row in rows) == 10
    assert sum(row.startswith("bound,") for row in rows) == 2 * 4
    drawn = (tmp_path / "s" / "saturation.svg").read_bytes()
    assert b"saturation of queries and keys" in drawn
    assert (tmp_path / "s" / "saturation.png").read_bytes().startswith(b"\x89PNG")
    # The run is finished: the same command draws, and measures nothing.
    monkeypatch.setattr("headcount.probes.saturation.run.visit_layers", None)
    monkeypatch.setattr("headcount.probes.saturation.run.token_losses", None)
    assert run(*command, "--figure", tmp_path / "results") == 0
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert "rows. Second says more" in words and "absolute" in words and "W_q' W_k" in words
    assert "Saturation ranks" in shown and "unequal beats uniform" in shown and "too few layers" in shown
    assert (tmp_path / "s" / "saturation.svg").read_bytes() == drawn
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        f"saturation.{s}" for s in ("svg", "png", "csv")
    }
    for name in ("saturation.svg", "saturation.csv"):
        assert (tmp_path / "results" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()
    # The figure command draws the same from the folder, with its verdict.
    assert run("figure", "saturation", "--work", tmp_path / "s", "--out", tmp_path / "again", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["verdict"].startswith("Claims on saturation, ") and len(made["rows"]) == len(rows) - 1
    for claim in found["claims"]:
        assert claim["name"] in made["verdict"].partition(f"{claim['verdict']}: ")[2].partition(";")[0]
    for name in ("saturation.svg", "saturation.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()


def test_selection(tiny_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["audit", tiny_folder, "--selection", "--context", "16", "--matmul-dtype", "model"]
    command += ["--text", text, "--out", tmp_path / "s"]
    assert run(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"] == [1, 2, 4, 8] and found["agreed"] == found["checked"] > 0
    head = found["layers"][0]["heads"][0]
    assert set(head) == {"query_norm", "dense", "trimmed"}
    assert run(*command) == 0
    assert "Selection capacity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--saturation", "--contexts", "32,16"], "16 follows 32"),
        (["--saturation", "--contexts", "16,16"], "16 follows 16"),
        (["--saturation", "--contexts", "16,many"], "no list of contexts"),
        (["--saturation", "--contexts", "16,256"], "beyond the model's 128 positions"),
        (["--saturation", "--contexts", "2,16"], "too short"),
        (["--saturation", "--contexts", "16,32", "--tokens", "40"], "less than two windows of 32"),
        (["--saturation", "--context", "16"], "--contexts 16"),
        (["--contexts", "16,32"], "belongs to --saturation"),
        (["--figure", "results"], "--figure belongs to --saturation"),
        (["--selection", "--figure", "results"], "--figure belongs to --saturation"),
        (["--saturation", "--selection"], "one at a time"),
        (["--selection", "--context", "4"], "not 4"),
        (["--selection", "--context", "256"], "beyond the model's 128 positions"),
    ],
)
def test_bad_options(
    arguments: list[str], says: str, tiny_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "never"
    assert run("audit", tiny_folder, *arguments, "--text", text, "--out", place) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err
    assert not place.exists()
