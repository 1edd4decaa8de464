"""``headcount refute`` end to end: answers, saved witnesses, replays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from headcount.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = run(capsys, "refute", *arguments, "--json")
    assert code == 0 and err == ""
    return dict(json.loads(out))


SMALL = {
    "mlp": "mlp --tokens 8 --dim 2 --width 15",
    "deep mlp": "mlp --tokens 8 --dim 2 --sparsity 3 --width 9 --depth 3 --activation GELU",
    "rnn": "rnn --tokens 14 --dim 2 --width 3 --precision-bits 4",
    "gru": "rnn --tokens 10 --dim 2 --width 2 --precision-bits 3 --cell gru --sparsity 2",
    "attention": "attention --tokens 12 --sparsity 4 --dim 2 --width 2 --precision-bits 4 --heads 2",
    "match3": "attention --task match3 --tokens 257 --width 2 --precision-bits 4",
    "match3 of small value width": "attention --task match3 --tokens 257 --width 9 --value-width 2 --precision-bits 4",
    "wide mlp of low rank": "mlp --tokens 8 --dim 2 --width 90 --rank 15",
}
LARGE = {
    "mlp": "mlp --tokens 8 --dim 2 --width 16",
    "rnn": "rnn --tokens 13 --dim 2 --width 3 --precision-bits 4",
    "attention": "attention --tokens 12 --sparsity 4 --dim 2 --width 3 --precision-bits 3",
    "match3": "attention --task match3 --tokens 17 --width 4",
}


@pytest.mark.parametrize("name", SMALL)
def test_small_models_are_refuted_saved_and_replayed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    out = str(tmp_path / "run")
    for seed in ("0", "7"):
        got = answer(capsys, *SMALL[name].split(), "--seed", seed, "--out", out, "--overwrite")
        assert got["witness_found"] is True and got["has"] < got["needed"]
        assert got["verdict"] == "witness" and got["impossible"] is True and got["failing_hypothesis"] is None
        assert got["output_distance"] < 0.01 * got["target_distance"]
        again = answer(capsys, "--replay", got["saved"])
        assert again["witness_found"] is True
        assert again["target_distance"] == got["target_distance"]
        assert again["output_distance"] == pytest.approx(got["output_distance"], abs=1e-6)
        assert again["bound"] == got["bound"]
    code, text, _ = run(capsys, "refute", "--replay", got["saved"])
    assert code == 0 and "the witness holds" in text
    code, text, _ = run(capsys, "refute", *SMALL[name].split(), "--seed", "7", "--out", out)
    assert code == 0 and "--replay" in text


@pytest.mark.parametrize("name", LARGE)
def test_large_models_are_not(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    got = answer(capsys, *LARGE[name].split(), "--out", str(tmp_path / "run"))
    assert got["witness_found"] is False and got["saved"] is None
    assert got["output_distance"] is None and got["target_distance"] is None
    assert got["reason"].startswith("no witness from this bound")
    assert got["verdict"] == "allowed" and got["impossible"] is False
    assert not (tmp_path / "run").exists()


def test_nets_of_one_s_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8 * 4, 10), nn.Tanh(), nn.Linear(10, 16))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    sizes = ("mlp", "--tokens", "8", "--dim", "2", "--activation", "Tanh")
    got = answer(capsys, *sizes, "--weights", str(tmp_path / "net.safetensors"))
    assert got["witness_found"] and got["has"] == 10


def test_a_witness_that_no_longer_holds_exits_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from safetensors import safe_open

    got = answer(capsys, *SMALL["mlp"].split(), "--out", str(tmp_path))
    with safe_open(got["saved"], framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["model.0.weight"][0] += 1
    save_file(tensors, got["saved"], metadata=metadata)
    code, out, err = run(capsys, "refute", "--replay", got["saved"])
    assert code == 1 and out == "" and "does not hold" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "lstm",
        "mlp",
        "mlp --width 0",
        "mlp --width 3 --depth 0",
        "mlp --width 3 --activation Abs",
        "mlp --width 3 --sparsity 65",
        "mlp --width 3 --dim 0",
        "mlp --width 3 --rank 0",
        "mlp --width 3 --rank 4",
        "rnn --width 3 --rank 2",
        "mlp --width 3 --value-width 2",
        "attention --width 2 --task match3 --value-width 0",
        "mlp --weights missing.safetensors",
        "rnn --width 3 --task match3",
        "rnn --width 3 --cell lstm",
        "rnn --width 3 --weights x",
        "attention --width 3 --precision-bits 0",
        "attention --width 3 --precision-bits 40",
        "attention --width 2 --task match3 --modulus 1",
        "attention --width 2 --task match3 --modulus 5",
        "attention --width 2 --task match3 --modulus 0",
        "attention --width 2 --limit 0",
        "rnn --width 2 --limit -3",
        "attention --width 2 --task parity",
        "--replay missing.safetensors",
        "mlp --replay missing.safetensors",
        "mlp --width many",
    ],
)
def test_bad_input_exits_2_with_one_line(capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    code, out, err = run(capsys, "refute", *arguments.split())
    assert code == 2 and out == ""
    assert err.startswith("headcount: ") and err.count("\n") == 1
