"""``headcount bound`` end to end: exit codes, one JSON object, one line of error."""

from __future__ import annotations

import json
import subprocess
import sys
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
    assert code == 0 and err == ""
    return dict(json.loads(out))


def test_qsa_says_what_is_impossible_and_what_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--tokens", "1024", "--sparsity", "8", "--precision-bits", "16")
    got = answer(capsys, "bound", "qsa", *sizes)
    rows = {row["id"]: row for row in got["bounds"]}
    assert all({"id", "status", "source", "value", "unit"} <= set(row) for row in got["bounds"])
    # C(1023, 8) has 65 bits: 5 numbers of 16 bits.
    assert (rows["qsa-bits"]["value"], rows["qsa-bits"]["unit"]) == (5, "embedding dimensions")
    assert rows["qsa-bits-paper"]["value"] is None and rows["qsa-bits-paper"]["unit"] is None
    assert rows["qsa-radon"]["value"] == 8 + 2 * 8
    assert got["impossible_below_embedding_dim"] == 5 < got["impossible_below_under_hypotheses"] == 24
    assert got["built_embedding_dim"] == 99
    assert [row["id"] for row in got["built"]] == ["qsa-polytope", "qsa-polytope in digits", "one-hot keys"]
    code, out, _ = run(capsys, "bound", "qsa", *sizes)
    assert code == 0 and "impossible below embedding dimension 5" in out and "99" in out


def test_without_a_precision_the_polytope_meets_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "bound", "qsa", "--tokens", "100", "--sparsity", "4", "--dim", "3")
    assert got["built_embedding_dim"] == got["impossible_below_under_hypotheses"] == 11
    assert got["impossible_below_embedding_dim"] is None
    assert got["bounds"][0]["unit"] == "embedding bits (m * p)"


def test_constructions_are_built_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--tokens", "6", "--sparsity", "2", "--dim", "3", "--precision-bits", "53")
    got = answer(capsys, "bound", "qsa", *sizes, "--build")
    rows = {row["id"]: row for row in got["built"] if "every operation" in row["arithmetic"]}
    assert set(rows) == {"qsa-polytope", "qsa-certificate"}
    assert rows["qsa-polytope"]["embedding_dim"] == 3 + 2 * 2
    assert got["built_embedding_dim"] == 7 == got["impossible_below_under_hypotheses"]


def test_what_holds_for_some_subsets_only_is_not_counted() -> None:
    from headcount.bounds.built import Built, smallest_built

    some = Built("x", 5, 8, "exact", "the subsets given")
    assert smallest_built([some, Built("y", 9, 8, "exact")], 8) == 9
    assert smallest_built([some], None) is None


def test_a_modulus_adds_the_bounds_on_match3(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "bound", "qsa", "--tokens", "64", "--sparsity", "4", "--modulus", "101")
    assert {"qsa-bits", "match3-heads"} <= {row["id"] for row in got["bounds"]}


def test_match3(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "bound", "match3", "--tokens", "4097", "--precision-bits", "8", "--heads", "2")
    rows = {row["id"]: row for row in got["bounds"]}
    assert rows["match3-heads"]["value"] is None and rows["match3-depth"]["status"] == "conjectured"
    # n = 2048 and two heads: 1024 <= 2 * 8 + 19 + m * 27, for 2048 * 255 has 19 bits and, with the sign,
    # 2048 * 255 * 128 has 27.
    assert rows["match3-protocol"]["value"] == got["impossible_below_value_width"] == 37
    assert rows["match3-protocol"]["unit"] == "value width of a head (d_v)"
    assert got["impossible_below_embedding_dim"] is None and got["impossible_below_under_hypotheses"] is None
    assert got["built_embedding_dim"] is None  # 8 bits do not show one token among 4097
    got = answer(capsys, "bound", "match3", "--tokens", "100", "--modulus", "500", "--precision-bits", "8")
    assert got["built_embedding_dim"] == got["built_value_width"] == 500


def test_match3_bounds_the_value_width_and_not_the_embedding_dimension(capsys: pytest.CaptureFixture[str]) -> None:
    """m = 2 solves it at N = 1025 and 14 bits (tests/bounds/test_solvable_models.py runs that layer)."""
    sizes = ("bound", "match3", "--tokens", "1025", "--precision-bits", "14")
    got = answer(capsys, *sizes)
    assert got["impossible_below_embedding_dim"] is None and got["impossible_below_under_hypotheses"] is None
    assert got["impossible_below_value_width"] == 13 and got["built_value_width"] == 1026
    assert got["built_embedding_dim"] == 2
    rows = {row["id"]: row for row in got["built"]}
    assert (rows["thresholds"]["embedding_dim"], rows["thresholds"]["value_width"]) == (2, 1027)
    _, out, _ = run(capsys, *sizes)
    text = " ".join(out.split())
    assert "impossible below value width 13 of a head, for any embedding dimension, under" in text
    assert "impossible below embedding dimension" not in text
    assert "built at embedding dimension 2, value width 1027: thresholds, 13 bits" in text
    got = answer(capsys, "bound", "qsa", "--tokens", "64", "--sparsity", "4")
    assert got["impossible_below_value_width"] is None and got["built_value_width"] is None


def test_the_other_tables(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "bound", "list")
    assert len(got["bounds"]) == 18 and {row["constant"] for row in got["bounds"]} == {"explicit", "unknown"}
    assert answer(capsys, "bound", "head", "--tokens", "9")["bounds"][0]["value"] == 8
    assert answer(capsys, "bound", "induction", "--tokens", "9")["bounds"][0]["value"] is None
    got = answer(capsys, "bound", "composition", "--domain", "4", "--precision-bits", "2")
    assert got["bounds"][0]["value"] == got["impossible_below_value_width"] == 3  # 8 bits, (d_v + 1) * 2 of them
    assert got["bounds"][0]["unit"] == "value width of a head (d_v)"
    assert "Radon" in answer(capsys, "bound", "show", "qsa-radon")["argument"]
    for arguments in (("list",), ("show", "qsa-bits"), ("head", "--tokens", "9")):
        code, out, err = run(capsys, "bound", *arguments)
        assert code == 0 and out and not err


@pytest.mark.parametrize("task", ["match3", "qsa"])
@pytest.mark.parametrize("layer", ["random", "solving"])
def test_protocol(capsys: pytest.CaptureFixture[str], task: str, layer: str) -> None:
    sizes = ("--tokens", "17", "--precision-bits", "10", "--width", "2", "--heads", "2", "--count", "6")
    got = answer(capsys, "bound", "protocol", task, "--layer", layer, *sizes)
    assert got["equal"] == got["instances"] == 6 and got["bit_for_bit"] is True
    assert got["bits"] == got["first_bits"] + got["second_bits"]
    assert got["disjointness_bits"] == got["set_size"] == 8
    if layer == "solving":
        assert got["right"] == 6 and got["enough_bits"]
    code, out, _ = run(capsys, "bound", "protocol", task, "--layer", layer, *sizes)
    assert code == 0 and "6 of 6" in out


def test_the_protocol_counts_the_value_width(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("bound", "protocol", "match3", "--tokens", "33", "--count", "2", "--precision-bits", "4")
    bits = {}
    for m, values in ((4, 4), (9, 4), (4, 9)):
        got = answer(capsys, *sizes, "--width", str(m), "--value-width", str(values))
        assert (got["embedding_dim"], got["value_width"]) == (m, values)
        bits[m, values] = got["bits"]
    # 16 tokens, p = 4: sums of weighted values have 16 * 15 * 8 = 1920 < 2^11 in size, and a sign: 12 bits each.
    assert bits[4, 4] == bits[9, 4] == bits[4, 9] - 5 * 12


def test_a_protocol_that_differs_exits_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from headcount.protocols import experiment
    from headcount.protocols.two_party import Run, run_match3

    def off_by_one(*arguments: Any) -> Run:
        run = run_match3(*arguments)
        return Run(run.output + 1, run.first_bits, run.second_bits)

    monkeypatch.setattr(experiment, "run_match3", off_by_one)
    code, out, _ = run(capsys, "bound", "protocol", "match3", "--json")
    assert code == 1 and json.loads(out)["equal"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        "qsa --tokens 4 --sparsity 5",
        "qsa --tokens 0 --sparsity 1",
        "qsa --tokens 4 --sparsity 2 --dim 0",
        "qsa --tokens 4 --sparsity 2 --epsilon 0",
        "qsa --tokens 4 --sparsity 2 --epsilon -1",
        "qsa --tokens 4 --sparsity 2 --precision-bits 0",
        "qsa --tokens 4 --sparsity 2 --modulus 1",
        "qsa --tokens four --sparsity 2",
        "qsa --sparsity 2",
        "match3 --tokens 9 --modulus 1",
        "match3 --tokens 9 --modulus 0",
        "match3 --tokens 9 --heads 0",
        "composition --domain 0",
        "show nothing",
        "protocol match2",
        "protocol match3 --layer big",
        "protocol match3 --modulus 5",
        "protocol match3 --modulus 0",
        "protocol match3 --tokens 2",
        "protocol match3 --precision-bits 40",
        "protocol match3 --width 0",
        "protocol match3 --value-width 0",
        "protocol qsa --value-width 3",
        "protocol qsa --sparsity 40",
        "protocol qsa --count 0",
        "protocol qsa --layer solving --precision-bits 2",
    ],
)
def test_bad_input_exits_2_with_one_line(capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    code, out, err = run(capsys, "bound", *arguments.split())
    assert code == 2 and out == ""
    assert err.startswith("headcount: ") and err.count("\n") == 1


def test_numbers_need_no_torch() -> None:
    code = (
        "import sys, headcount; headcount.bounds.get('qsa-bits').evaluate(tokens=9, sparsity=2)\n"
        "from headcount.cli import main\n"
        "try: main(['bound', 'qsa', '--tokens', '9', '--sparsity', '2', '--json'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
