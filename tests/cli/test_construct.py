"""``headcount construct`` end to end: the JSON answer, exit codes, saving, scans and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headcount import constructions
from headcount.cli import construct, main
from headcount.lab.figures import cliff


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["construct", *arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0 and err == "" and out.count("\n") == 1
    return dict(json.loads(out))


KEYS = {
    *("name", "embedding_dim", "heads", "layers", "order", "guarantee", "gap", "scale", "max_error", "wrong"),
    *("checked", "verified", "lower_bound_embedding_dim"),
}


def test_every_construction_is_a_command() -> None:
    assert constructions.names() == construct.NAMES


def test_the_answer_has_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "match-s", "--order", "3", "--tokens", "16", "--modulus", "101", "--count", "4")
    assert got.keys() >= KEYS
    assert (got["embedding_dim"], got["order"], got["wrong"], got["checked"]) == (4, 3, 0, 64)
    assert got["verified"] is True and got["guarantee"] == "all inputs"
    assert got["lower_bound_embedding_dim"] is None


def test_the_polytope_meets_its_lower_bound(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--tokens", "32", "--sparsity", "3", "--dim", "5")
    got = answer(capsys, "qsa-polytope", *sizes)
    assert got["embedding_dim"] == got["lower_bound_embedding_dim"] == 5 + 2 * 3
    other = answer(capsys, "qsa-certificate", *sizes, "--epsilon", "1e-6")
    assert other["lower_bound_embedding_dim"] == 11 < other["embedding_dim"]
    assert other["max_error"] <= 1e-6 and other["epsilon"] == 1e-6


def test_failing_to_verify_is_exit_1_with_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "match2", "--tokens", "16", "--modulus", "100003", "--precision", "fp32", "--json")
    got = json.loads(out)
    assert code == 1 and got["verified"] is False and got["wrong"] > 0
    assert err.count("\n") == 1 and "match2 does not verify in fp32" in err and "at token" in err


def test_saved_weights_are_checked_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(tmp_path / "weights")
    first = answer(capsys, "match3-local", "--tokens", "12", "--modulus", "31", "--out", folder)
    again = answer(capsys, "check", folder)
    differ = {key for key in first if first[key] != again[key]}
    assert differ <= {"seconds"}
    code, out, _ = run(capsys, "check", folder, "--precision", "e4m3", "--count", "2")
    assert code == 1 and "match3-local" in out


def test_scan_finds_the_largest_size(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(
        *(capsys, "scan", "match2", "--tokens", "12", "--precision", "bf16"),
        *("--values", "5,11,1009", "--count", "4"),
    )
    assert [row["verified"] for row in got["scan"]][::2] == [True, False]
    assert got["largest_verified"] in (5, 11)
    code, out, _ = run(capsys, "scan", "match2", "--precision", "fp64", "--values", "5,7", "--tokens", "4")
    assert code == 0 and "verified up to modulus = 7" in out


def test_scan_over_bits_finds_the_fewest(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--tokens", "12", "--modulus", "31", "--count", "4")
    got = answer(capsys, "scan", "match2", "--over", "bits", *sizes)
    assert got["sizes"]["modulus"] == 31 and got["sufficient"] >= got["fewest"]["float"]
    for style, bits in got["fewest"].items():
        assert answer(capsys, "match2", *sizes, "--precision", f"{style}:{bits}")["verified"]
        assert run(capsys, "match2", *sizes, "--precision", f"{style}:{bits - 1}")[0] == 1
    sizes = ("--tokens", "64", "--sparsity", "16", "--dim", "1", "--count", "1")
    code, out, _ = run(capsys, "scan", "qsa-polytope", "--over", "bits", *sizes)
    assert code == 0 and "float: none up to 53" in out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "list")
    assert [row["name"] for row in got["constructions"]] == list(constructions.names())
    assert run(capsys, "list")[0] == 0


def test_figures_are_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cliff, "rows", lambda **_: CLIFF)
    got = answer(capsys, "cliff", "--out", str(tmp_path))
    assert got["rows"] == CLIFF
    for suffix in ("svg", "png", "csv"):
        assert Path(got[suffix]).stat().st_size > 100
    sizes = ("--tokens", "12", "--dim", "2", "--most", "2", "--out", str(tmp_path))
    got = answer(capsys, "dimensions", *sizes)
    assert [row["qsa-polytope"] for row in got["rows"]] == [4, 6]
    code, out, _ = run(capsys, "dimensions", *sizes)
    assert code == 0 and out.count("wrote") == 3


CLIFF: list[dict[str, Any]] = [
    {
        "construction": curve.name,
        "size": size,
        "float cliff bits": 5 + i,
        "fixed cliff bits": 6 + i,
        "sufficient bits": 9 + i,
        "theorem": curve.theorem,
        "theorem shape": curve.shape(size),
    }
    for curve in cliff.CURVES
    for i, size in enumerate(curve.values)
]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("qsa-polytope", "--sparsity", "65"), "sparsity 65 is larger than the number of tokens 64"),
        (("match2", "--modulus", "1"), "modulus must be an integer of at least 2, not 1"),
        (("match2", "--epsilon", "0"), "epsilon 0.0 is outside (0, 0.5)"),
        (("qsa-certificate", "--epsilon", "-1"), "epsilon -1.0 is outside"),
        (("qsa-polytope", "--dim", "0"), "dim must be an integer of at least 1, not 0"),
        (("match2", "--precision", "fp12"), "precision 'fp12' is unknown"),
        (("match2", "--order", "3"), "match2 has no option 'order'"),
        (("match-s", "--count", "0"), "count must be at least 1"),
        (("match-t",), "match-t"),
        (("check", "nowhere"), "nowhere is no folder"),
        (("scan", "match2", "--precision", "fp16", "--values", "a,b"), "are no integers"),
        (("scan", "match2", "--precision", "fp16"), "a scan over modulus needs a precision and sizes"),
        (("scan", "match2", "--over", "bits", "--values", "5"), "takes no --precision and no --values"),
        (("match2", "--precision", "wide:99"), "is for qsa-polytope only"),
        (("qsa-polytope", "--precision", "wide:1"), "choose p from 2 to 4096"),
        (("dimensions", "--tokens", "4", "--most", "5"), "most 5 is outside"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert message in err
