"""``headcount allocate`` and ``headcount kernels`` end to end."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headcount.cli import main
from headcount.core.spec import LayerSpec, ModelSpec
from headcount.core.store import write_json
from headcount.lags.solver import tails
from headcount.lags.spectra import random_spectra
from headcount.lags.table import shipped
from headcount.trimming.audit.schema import RECORD, AuditRecord, LayerRecord, SideRecord


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


@pytest.mark.parametrize("position", ["alibi", "t5", "rope", "learned"])
def test_the_shipped_table_splits_at_once(capsys: pytest.CaptureFixture[str], position: str) -> None:
    arguments = ("--lags", "1,2,3,4", "--budget", "128", "--position", position)
    got = answer(capsys, "allocate", *arguments)
    assert sum(group["heads"] * group["dim"] for group in got["groups"]) <= 128
    expected = 0.0
    for group, spectrum in zip(got["groups"], random_spectra(4, 32), strict=True):
        rest = tails(spectrum)
        row = shipped(position).errors(group["lag"], dim=group["dim"])  # type: ignore[arg-type]
        expected += rest[0] * row[group["heads"] - 1] + rest[group["dim"]]
    assert got["error"] == pytest.approx(expected) and got["error"] <= got["uniform"]["error"]


def test_rotary_heads_pay_for_their_own_dimension(capsys: pytest.CaptureFixture[str]) -> None:
    """8 heads of 16, two a lag: the error that 64 dimensions have would be less by a fifth."""
    got = answer(capsys, "allocate", "--lags", "1,2,3,4", "--budget", "128", "--position", "rope")
    (eight,) = [point for point in got["curve"] if point["heads"] == 8]
    table, content = shipped("rope"), sum(tails(spectrum)[16] for spectrum in random_spectra(4, 32))
    assert eight["dim"] == 16
    assert eight["error"] == pytest.approx(content + sum(table.errors(lag, dim=16)[1] for lag in (1, 2, 3, 4)))
    assert eight["error"] - content > 3 * sum(table.errors(lag, dim=64)[1] for lag in (1, 2, 3, 4))


def test_other_rotary_settings_need_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "rope.json"
    asked = ("--position", "rope", "--lags", "1,2", "--context", "8", "--logit-budget", "6")
    allocated = ("allocate", *asked, "--budget", "32")
    code, _, err = run(capsys, *allocated)
    assert code == 2 and err.count("\n") == 1
    assert (
        "headcount kernels --position rope --context 8 --logit-budget 6 --lags 1,2 --out FILE; then add --table" in err
    )
    first = answer(capsys, "kernels", *asked[:3], "1", *asked[4:], "--dims", "2", "--out", str(place))
    got = answer(capsys, "kernels", *asked, "--dims", "2", "--out", str(place))  # completed, not begun again
    assert got["dim"] == 2 and got["errors"]["1"] == first["errors"]["1"]
    rows = json.loads(place.read_text())["rows"]
    assert [(row["lag"], row["dim"]) for row in rows] == [(1, 2), (2, 2)]
    used = answer(capsys, *allocated, "--table", str(place))
    assert (used["context"], used["logit_budget"]) == (8, 6.0)
    assert {group["dim"] for group in used["groups"]} <= set(range(2, 33))  # narrower heads have no kernels here
    code, _, err = run(
        capsys, "allocate", "--position", "rope", "--lags", "1,2", "--budget", "32", "--table", str(place)
    )
    assert code == 2 and "context 8, logits up to 6" in err and "--context 8 --logit-budget 6" in err
    code, _, err = run(capsys, "kernels", *asked[:-1], "7", "--dims", "2", "--out", str(place))
    assert code == 2 and "other settings" in err
    for other, said in (
        (("--position", "alibi", "--dim", "8"), "do not depend on the dimension"),
        (("--position", "rope", "--dim", "0"), "heads of dimension 0"),
        (("--position", "rope", "--dims", "7", "--lags", "1"), "rotary dimension of 7"),
        (("--position", "alibi", "--logit-budget", "4", "--lags", "1"), "no logit budget"),
    ):
        code, _, err = run(capsys, "kernels", *other)
        assert code == 2 and said in err and err.count("\n") == 1


def test_other_contexts_of_closed_forms_are_computed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--lags", "1,40", "--budget", "8", "--position", "learned", "--context", "200", "--logit-budget", "2")
    got = answer(capsys, "allocate", *asked, "--width", "1")
    alone = 199 / math.exp(4)  # above 1: one head is no better than none
    assert got["context"] == 200 and alone > 1
    assert [group["heads"] for group in got["groups"]] == [2, 2] and got["error"] == pytest.approx(0.0, abs=1e-9)


def test_a_table_and_spectra_from_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = {"lower": [0.1], "kernels": [[0.5], [0.2, 0.5]]}
    rows = [{"lag": lag, "errors": [1.0, 0.1], **row} for lag in (1, 2)]
    table, spectra = tmp_path / "table.json", tmp_path / "spectra.json"
    table.write_text(json.dumps({"position": "alibi", "context": 64, "limit": 64.0, "seed": 0, "rows": rows}))
    spectra.write_text("[[1.0], [4.0, 3.0]]")
    files = ("--table", str(table), "--spectra", str(spectra))
    got = answer(capsys, "allocate", "--lags", "1,2", "--budget", "6", *files)
    assert got["groups"] == [{"lag": 1, "heads": 2, "dim": 1}, {"lag": 2, "heads": 2, "dim": 2}]
    assert got["error"] == pytest.approx(0.1 + 0.5)
    code, _, err = run(capsys, "allocate", "--lags", "1,3", "--budget", "6", *files)
    assert code == 2 and "lag 3 is not in the table" in err
    code, _, err = run(capsys, "allocate", "--lags", "1,2", "--budget", "6", *files, "--limit", "8")
    assert code == 2 and "up to 64" in err
    for text, said in (("{", "is no JSON"), ("[1.0]", "no list of lists"), ("[[1.0], [2.0], [3.0]]", "2 rows")):
        spectra.write_text(text)
        code, _, err = run(capsys, "allocate", "--lags", "1,2", "--budget", "6", *files)
        assert code == 2 and said in err and err.count("\n") == 1


def lay_audit(folder: Path, energies: list[list[float]]) -> None:
    """An ``audit.json`` whose layers' values have these joint energies; a layer of none has no sides at all."""
    layer = LayerSpec(
        hidden=3, n_heads=1, n_kv_heads=1, qk_dim=3, v_dim=3, rotary_dim=0, qkv_bias=False, o_bias=False, causal=True
    )
    sides = [{"values": SideRecord(joint=own, per_head=[own])} if own else {} for own in energies]
    record = AuditRecord(
        model="m",
        fingerprint="0" * 16,
        spec=ModelSpec(family="llama", layers=(layer,) * len(energies)),
        metric="fisher",
        seed=0,
        context=8,
        tokens=8,
        texts=[],
        layers=[LayerRecord(layer=index, heads=[], sides=own) for index, own in enumerate(sides)],
    )
    write_json(folder / RECORD, record)


def test_spectra_are_read_off_an_audit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lay_audit(tmp_path, [[16.0, 9.0, 0.0], [4.0, 0.0, 0.0]])
    arguments = ("allocate", "--lags", "1,2", "--budget", "4", "--position", "learned", "--spectra", str(tmp_path))
    first, second = answer(capsys, *arguments), answer(capsys, *arguments, "--layer", "1")
    position = shipped("learned").errors(1)[0]
    # Two heads of two dimensions carry all of (0.8, 0.6, 0); one dimension carries all of (1, 0, 0).
    assert first["groups"] == [{"lag": 1, "heads": 1, "dim": 2}, {"lag": 2, "heads": 1, "dim": 2}]
    assert first["error"] == pytest.approx(2 * position)
    assert second["groups"][0]["dim"] == 1
    three = answer(capsys, *arguments[:4], "3", *arguments[5:])
    assert three["error"] == pytest.approx(2 * position + 0.6)
    for layer in ("2", "-1"):
        code, _, err = run(capsys, *arguments, "--layer", layer)
        assert code == 2 and f"no layer {layer}" in err and err.count("\n") == 1
    for broken in ([], [0.0, 0.0], [2.0, -1.0], [2.0, 0.125]):
        lay_audit(tmp_path, [broken])
        text = (tmp_path / RECORD).read_text()
        (tmp_path / RECORD).write_text(text.replace("0.125", "NaN"))
        code, _, err = run(capsys, *arguments)
        assert code == 2 and "no value energies of layer 0" in err and err.count("\n") == 1
    (tmp_path / "audit.json").write_text(json.dumps({"layers": [{"sides": {}}]}))
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "audit.json is not valid: model: Field required" in err and err.count("\n") == 1
    (tmp_path / "audit.json").unlink()
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "holds no finished audit" in err and err.count("\n") == 1


def test_allocating_by_an_audit_imports_no_torch(tmp_path: Path) -> None:
    lay_audit(tmp_path, [[16.0, 9.0, 0.0]])
    script = (
        "import sys\nfrom headcount.cli import main\n"
        "command = 'allocate --lags 1,2 --budget 4 --position learned --json --spectra'.split()\n"
        f"try:\n    main([*command, {str(tmp_path)!r}])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["groups"] == [{"lag": 1, "heads": 1, "dim": 2}, {"lag": 2, "heads": 1, "dim": 2}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lags", "1,2,3", "--budget", "2"), "the smallest is 3"),
        (("--lags", "1,2,3", "--budget", "0"), "the smallest is 3"),
        (("--lags", "1,1", "--budget", "8"), "lag 1 is there more than once"),
        (("--lags", "1,-1", "--budget", "8"), "lag -1 is negative"),
        (("--lags", "one", "--budget", "8"), "no list of whole numbers"),
        (("--lags", "1,64", "--budget", "8"), "lag 64 is outside a context of 64"),
        (("--lags", "1,33", "--budget", "8", "--position", "alibi"), "lag 33 is not in the table of alibi"),
        (("--lags", "1,33", "--budget", "8"), "lag 33 is not in the table of learned"),
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
    assert got == answer(capsys, "kernels", "--position", "alibi", "--lags", "0,8")  # the shipped table
    used = answer(capsys, "allocate", "--lags", "0", "--budget", "4", "--table", str(place))
    assert used["groups"] == [{"lag": 0, "heads": 1, "dim": 4}]
    code, out, _ = run(capsys, "kernels", "--position", "t5", "--lags", "3,20")
    assert code == 0 and "lag" in out and "20" in out
    for lags, said in (("3,3", "more than once"), ("-1", "negative"), ("33", "not in the table"), ("64", "outside")):
        code, _, err = run(capsys, "kernels", "--lags", lags)
        assert code == 2 and said in err and err.count("\n") == 1


def test_decay_is_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "kernels", "--position", "alibi", "--decay")
    assert [row["lag"] for row in got["decay"]][:2] == [1, 2]
    first = got["decay"][0]
    assert first["heads"][0] == 2 and first["power_misfit"] < first["rate_misfit"]
    assert first["growth"] > first["bound_growth"] > 1
    # No row of it is invented: learned positions have no decay to fit.
    code, out, _ = run(capsys, "kernels", "--position", "learned", "--decay")
    assert code == 0 and "nothing to fit" in out
    code, out, _ = run(capsys, "kernels", "--position", "alibi", "--decay")
    assert code == 0 and "-fold from lag to lag" in out


def test_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer(capsys, "kernels", "--figure", str(tmp_path))
    answer(capsys, "allocate", "--lags", "1,2", "--budget", "16", "--figure", str(tmp_path))
    with (tmp_path / "position_errors.csv").open() as file:
        drawn = list(csv.DictReader(file))
    assert len(drawn) == (3 + 3) * 5 * 32  # rope at three dimensions
    assert all(float(row["lower"]) <= float(row["error"]) for row in drawn)
    with (tmp_path / "heads_at_fixed_size.csv").open() as file:
        sizes = list(csv.DictReader(file))
    assert {row["position"] for row in sizes} == {"alibi", "t5", "rope", "learned"}
    assert all(int(row["heads"]) * int(row["dim"]) <= 16 for row in sizes)
    assert all(float(row["best split"]) <= float(row["error"]) + 1e-12 for row in sizes)
    assert (tmp_path / "position_errors.svg").stat().st_size > 10_000
