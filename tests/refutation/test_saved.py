"""Witness files: what is written is what is run again; a changed model or file is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from headcount import refute, tasks
from headcount.core.errors import CheckFailedError, HeadcountError
from headcount.pbit.examples import random_match3_layer, random_qsa_layer
from headcount.pbit.portable import describe, rebuild
from headcount.pbit.recurrent import random_rnn
from headcount.refutation.samples import SampleSizes, random_mlp, read_mlp, sample_model
from headcount.refutation.saved import replay, save
from headcount.tasks import Task

QSA = tasks.get("qsa", tokens=8, sparsity=2, dim=2)


def bare_mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(40, 7, bias=False), nn.GELU(), nn.Linear(7, 16), nn.Identity()
    ).double()


CASES: dict[str, tuple[Task, Any]] = {
    "mlp": (QSA, random_mlp([40, 9, 5, 16], "Tanh")),
    "mlp float64": (QSA, bare_mlp()),
    "rnn": (QSA, random_rnn(8, 2, 2, 2, 2)),
    "gru": (QSA, random_rnn(8, 2, 2, 2, 2, "gru")),
    "attention": (QSA, random_qsa_layer(8, 2, 2, 1, 3, heads=2)),
    "match3": (tasks.get("match3", tokens=129, modulus=130), random_match3_layer(129, 130, 1, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_saved_witness_replays_to_the_same_numbers(name: str, tmp_path: Path) -> None:
    task, model = CASES[name]
    answer = refute(model, task)
    assert answer.witness is not None
    save(tmp_path / "w.safetensors", answer, model)
    again = replay(tmp_path / "w.safetensors")
    assert again.witness.output_distance == pytest.approx(answer.witness.output_distance, abs=1e-6)
    assert again.witness.target_distance == answer.witness.target_distance
    assert again.witness.holds
    assert again.record.bound == answer.bound
    assert (again.record.needed, again.record.has) == (answer.needed, answer.has)
    given = replay(tmp_path / "w.safetensors", model)
    assert given.witness.output_distance == pytest.approx(answer.witness.output_distance, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_models_come_back_with_the_same_outputs(name: str) -> None:
    task, model = CASES[name]
    parts = describe(model)
    assert parts is not None
    other = rebuild(*parts)
    batch = task.sample(0, 3)
    if isinstance(model, nn.Module):
        x = torch.from_numpy(task.model_input(batch)).to(next(model.parameters()).dtype)
        x = x if "mlp" not in name else x.flatten(1)
        with torch.no_grad():
            assert torch.equal(model(x), other(x))
    else:
        table = {key: value[0] for key, value in batch.inputs.items()}
        table["position"] = torch.arange(task.tokens).numpy()
        assert (model(table) == other(table)).all()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        task, model = sample_model("mlp", SampleSizes(tokens=8, dim=2, width=9), None, seed=3)
        save(tmp_path / name, refute(model, task, seed=3), model)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_changed_model_no_longer_holds(tmp_path: Path) -> None:
    task, model = CASES["mlp"]
    save(tmp_path / "w.safetensors", refute(model, task), model)
    with pytest.raises(CheckFailedError, match="does not hold"):
        replay(tmp_path / "w.safetensors", random_mlp([40, 9, 5, 16], "Tanh", seed=1))


def rewrite(source: Path, target: Path, edit: Any) -> None:
    with safe_open(source, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edit(metadata, tensors)
    save_file(tensors, target, metadata=metadata)


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    task, model = CASES["mlp"]
    path, bad = tmp_path / "w.safetensors", tmp_path / "bad.safetensors"
    save(path, refute(model, task), model)

    def same_inputs(_: Any, tensors: Any) -> None:
        tensors["second.z"] = tensors["first.z"].clone()

    rewrite(path, bad, same_inputs)
    with pytest.raises(CheckFailedError):
        replay(bad)

    def far_vectors(_: Any, tensors: Any) -> None:
        tensors["first.z"] *= 3

    rewrite(path, bad, far_vectors)
    with pytest.raises(HeadcountError, match="norm"):
        replay(bad)

    def no_weights(_: Any, tensors: Any) -> None:
        del tensors["model.0.weight"]

    rewrite(path, bad, no_weights)
    with pytest.raises(HeadcountError, match="does not hold what it says"):
        replay(bad)

    def no_claim(metadata: Any, _: Any) -> None:
        metadata["headcount"] = '{"task": "qsa"}'

    rewrite(path, bad, no_claim)
    with pytest.raises(HeadcountError, match="not a witness that headcount wrote"):
        replay(bad)

    def unknown_layer(metadata: Any, _: Any) -> None:
        metadata["headcount"] = metadata["headcount"].replace("Tanh", "Softshrink")

    rewrite(path, bad, unknown_layer)
    with pytest.raises(HeadcountError, match="does not hold what it says"):
        replay(bad)
    bad.write_bytes(path.read_bytes()[:100])
    with pytest.raises(HeadcountError, match="not a readable safetensors file"):
        replay(bad)
    with pytest.raises(HeadcountError, match="does not exist"):
        replay(tmp_path / "missing")


def test_models_that_do_not_fit_a_file_are_replayed_by_hand(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = bare_mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.net(x)

    model, path = Own(), tmp_path / "w.safetensors"
    answer = refute(model, QSA)
    save(path, answer, model)
    with pytest.raises(HeadcountError, match="no model"):
        replay(path)
    assert replay(path, model).witness.holds
    assert describe(nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1))) is None
    assert describe(nn.Sequential(nn.Linear(2, 2), nn.GELU(approximate="tanh"))) is None
    assert describe(nn.Sequential(nn.Linear(2, 2), nn.Flatten(0))) is None


def test_no_witness_is_not_saved(tmp_path: Path) -> None:
    model = random_mlp([40, 16, 16])
    with pytest.raises(HeadcountError, match="no witness to save"):
        save(tmp_path / "w.safetensors", refute(model, QSA), model)
    assert not list(tmp_path.iterdir())


def test_nets_of_one_s_own_are_read(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(40, 9), nn.Tanh(), nn.Linear(9, 16, bias=False))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    read = read_mlp(tmp_path / "net.safetensors", "Tanh")
    x = torch.rand(5, 40)
    assert torch.equal(read(x), net(x))
    save_file({"0.weight": torch.zeros(3), "x": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(HeadcountError, match="does not hold the linear layers"):
        read_mlp(tmp_path / "bad.safetensors")
    with pytest.raises(HeadcountError, match="no activation 'Abs'"):
        read_mlp(tmp_path / "net.safetensors", "Abs")
