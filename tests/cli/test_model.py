"""The commands on a tiny model: JSON keys, exit codes, one line for what is wrong, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import run

AUDIT = ["--tokens", "192", "--context", "32", "--matmul-dtype", "model", "--text"]


@pytest.fixture
def audited(tiny_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run("audit", tiny_folder, *AUDIT, text, "--out", tmp_path / "audit", "--json") == 0
    capsys.readouterr()
    return tmp_path / "audit"


def object_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    found = json.loads(captured.out)
    assert isinstance(found, dict)
    return found


def one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("headcount: ") and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in captured.err


def test_the_way_from_audit_to_evaluation(
    tiny_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("audit", tiny_folder, *AUDIT, text, "--out", tmp_path / "a", "--json") == 0
    audit = object_of(capsys)
    assert {"layers", "tokens", "seconds", "cost_ratio"} <= audit.keys()
    assert audit["tokens"] == 192 and len(audit["layers"]) == 3
    assert run("plan", tmp_path / "a", "--cache", "0.5", "--out", tmp_path / "p", "--json") == 0
    plan = object_of(capsys)
    assert plan["cache_ratio"] == 0.5 and plan["predicted_loss_increase"] > 0
    assert [set(layer) >= {"layer", "k_rank", "v_rank"} for layer in plan["layers"]] == [True] * 3
    assert sum(layer["k_rank"] + layer["v_rank"] for layer in plan["layers"]) == 96
    assert run("trim", tiny_folder, tmp_path / "p", "--out", tmp_path / "m", "--json") == 0
    trim = object_of(capsys)
    assert trim["cache_ratio"] == 0.5 and Path(trim["folder"]).name == "m"
    assert (tmp_path / "m" / "tokenizer.json").is_file()
    letters = f"letters={text}"
    command = ["evaluate", tiny_folder, tmp_path / "m", "--windows", "2", "--context", "32", "--decode", "2x16"]
    assert run(*command, "--text", letters, "--out", tmp_path / "e", "--json") == 0
    dense, trimmed = object_of(capsys)["models"]
    assert dense["cache_bytes_per_token"] == 2 * trimmed["cache_bytes_per_token"]
    assert dense["kl"] == 0 and trimmed["kl"] > 0 and set(dense["perplexity"]) >= {"prose", "licences", "letters"}
    assert trimmed["decode_tokens_per_s"] > 0
    assert trimmed["perplexity_ratio_calibrated"] is None, "nothing was calibrated on the built-in kinds"
    assert trimmed["perplexity_ratio_unseen"] > 0
    assert run("report", *(tmp_path / name for name in "ape"), "--json") == 0
    report = object_of(capsys)
    assert Path(report["report"]) == tmp_path / "report.html" and len(report["models"]) == 2
    assert report["plans"] == [report["models"][1]]


def test_what_the_whitened_metric_cannot_predict_is_null(
    tiny_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("audit", tiny_folder, *AUDIT, text, "--metric", "whitened", "--out", tmp_path / "a", "--json") == 0
    capsys.readouterr()
    assert run("plan", tmp_path / "a", "--allocator", "uniform", "--out", tmp_path / "p", "--json") == 0
    assert object_of(capsys)["predicted_loss_increase"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cache", "0"], "cache share of 0.0"),
        (["--cache", "-1"], "cache share of -1.0"),
        (["--cache", "1.5"], "cache share of 1.5"),
        (["--cache", "0.01"], "smallest possible"),
        (["--form", "other"], "unknown form"),
        (["--allocator", "other"], "unknown allocator"),
        (["--multiple", "0"], "multiple of 0"),
    ],
)
def test_bad_plans(audited: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = audited.parent / "never"
    assert run("plan", audited, *arguments, "--out", place) == 2
    one_line(capsys, says)
    assert not place.exists()


def test_bad_audits(tiny_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "never"
    for name, content, says in (
        ("empty.txt", b"", "is empty"),
        ("short.txt", b"too short", "less than one window of 32"),
        ("latin.txt", "caf\u00e9".encode("latin-1") * 40, "is not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        assert run("audit", tiny_folder, *AUDIT, tmp_path / name, "--out", out) == 2
        one_line(capsys, name if "window" not in says else "text", says)
    assert run("audit", tiny_folder, "--tokens", "0", "--out", out) == 2
    one_line(capsys, "0 tokens")
    assert run("audit", tmp_path / "nowhere", "--out", out) == 2
    one_line(capsys, "nowhere")
    assert run("audit", tiny_folder, *AUDIT, text, "--metric", "other", "--out", out) == 2
    one_line(capsys, "unknown metric")
    assert run("audit", tiny_folder, "--device", "nonsense", "--out", out) == 2
    one_line(capsys, "nonsense")
    assert run("audit", tiny_folder, "--out", out) == 2
    one_line(capsys, "a context of 512", "128 positions")
    assert not out.exists()


def test_plans_that_were_tampered_with(
    audited: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", audited, "--out", tmp_path / "p", "--json") == 0
    capsys.readouterr()
    plan = json.loads((tmp_path / "p" / "plan.json").read_text())
    for change, says in (
        ({"k_rank": -4}, "k_rank"),
        ({"k_rank": 400}, "k_rank 400 is outside [1, 32]"),
        ({"depth": 3}, "depth"),
    ):
        altered = plan | {"layers": [plan["layers"][0] | change, *plan["layers"][1:]]}
        (tmp_path / "p" / "plan.json").write_text(json.dumps(altered))
        assert run("trim", tiny_folder, tmp_path / "p", "--out", tmp_path / "never") == 2
        one_line(capsys, says)
    (tmp_path / "p" / "plan.json").write_text(json.dumps(plan | {"layers": plan["layers"][:2]}))
    assert run("trim", tiny_folder, tmp_path / "p", "--out", tmp_path / "never") == 2
    one_line(capsys, "the plan lists 2 layers")
    (tmp_path / "p" / "plan.json").write_text(json.dumps(plan | {"fingerprint": "0" * 16}))
    assert run("trim", tiny_folder, tmp_path / "p", "--out", tmp_path / "never") == 2
    one_line(capsys, "is not the audit")
    assert not (tmp_path / "never").exists()


def test_a_foreign_output_folder_is_left_alone(
    audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("keep")
    assert run("plan", audited, "--out", tmp_path / "theirs", "--overwrite") == 2
    one_line(capsys, "was not made by headcount")
    assert [file.name for file in (tmp_path / "theirs").iterdir()] == ["notes.txt"]


def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nonsense"], ["plan"], ["plan", "x", "--cache", "half"], ["audit", "demo", "--nonsense"]):
        assert run(*arguments) == 2
        one_line(capsys)


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headcount", "--debug", "plan", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "Traceback" in done.stderr and "HeadcountError" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom headcount.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'numpy', 'transformers', 'plotly', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "audit" in done.stdout
