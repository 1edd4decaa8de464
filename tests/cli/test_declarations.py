"""A size or option is declared once: a task and a model that exist in this file alone go through every command."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import run
from numpy.typing import NDArray
from torch import nn

from headcount import constructions, tasks
from headcount.bounds import Bound, Sizes
from headcount.bounds.base import Quantity
from headcount.cli.construct import SIZES as CONSTRUCT_SIZES
from headcount.core.errors import HeadcountError
from headcount.core.names import Registry
from headcount.core.options import Option, merged, options_of
from headcount.lab import models
from headcount.lab.models import ModelConfig, Reading
from headcount.lab.models import registry as model_registry
from headcount.lab.specs.run import RunSpec
from headcount.lab.sweep.runner import digest
from headcount.tasks import Task
from headcount.tasks import registry as task_registry
from headcount.tasks.base import Answer
from headcount.tasks.sizes import OF_BOUNDS, TOKENS


@dataclass(frozen=True)
class Echo(Task):
    """Echo: 1 iff x_i = x_(i - stride), bits; 0 for the first ``stride`` tokens."""

    name: ClassVar[str] = "echo"
    answer: ClassVar[Answer] = "binary"
    summary: ClassVar[str] = "1 iff the bit stride tokens back is the same"

    stride: int = Option("stride", "How far the earlier bit is.", letter="r", least=2).field(2)
    inverted: bool = Option("inverted", "Whether the answers are flipped.", kind=bool, off="plain", rank=1).field(False)

    @property
    def vocabulary(self) -> int:
        return 2

    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        return {"x": rng.integers(0, 2, (count, self.tokens))}

    _balanced = _adversarial = _uniform

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (x,) = self._named(inputs)
        return {"x": self._symbols("x", x, 2)}

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
        x = inputs["x"]
        answers = np.zeros(x.shape, dtype=np.int8)
        answers[:, self.stride :] = x[:, self.stride :] == x[:, : -self.stride]
        return 1 - answers if self.inverted else answers


@dataclass(frozen=True)
class BiasConfig(ModelConfig):
    """One number for every answer, to the power of ``sharpness``."""

    name: ClassVar[str] = "bias"
    summary: ClassVar[str] = "a constant"

    sharpness: int = Option("sharpness", "The power.").field(1)

    def body(self, features: int, reading: Reading) -> nn.Module:
        return nn.Sequential(nn.Linear(features, self.width), nn.Linear(self.width, reading.answers))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both registered, until the test ends."""
    monkeypatch.setattr(task_registry, "_TASKS", Registry("task", ((t.name, t) for t in task_registry._TASKS)))
    monkeypatch.setattr(model_registry, "_MODELS", Registry("model", ((m.name, m) for m in model_registry._MODELS)))
    tasks.register(Echo)
    models.register(BiasConfig)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def explicit(x: list[int], stride: int) -> list[int]:
    return [int(i >= stride and x[i] == x[i - stride]) for i in range(len(x))]


@pytest.mark.usefixtures("toys")
def test_task_commands_take_the_new_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    drawn = answer(capsys, "task", "sample", "echo", "--tokens", "7", "--stride", "3", "--out", tmp_path / "x.json")
    assert drawn["sizes"] == {"tokens": 7, "stride": 3, "inverted": False}
    assert drawn["targets"][0] == explicit(drawn["inputs"]["x"][0], 3)
    # The saved file brings the size along; the command line overrules it.
    assert answer(capsys, "task", "solve", "echo", "--input", tmp_path / "x.json")["labels"] == drawn["targets"]
    again = answer(capsys, "task", "solve", "echo", "--input", tmp_path / "x.json", "--stride", "2", "--inverted")
    assert again["labels"][0] == [1 - label for label in explicit(drawn["inputs"]["x"][0], 2)]
    assert run("task", "sample", "echo", "--stride", "1") == 2
    assert "stride must be an integer of at least 2, not 1; give --stride 2 or more" in capsys.readouterr().err
    assert run("task", "sample", "qsa", "--stride", "3") == 2
    assert "the task qsa has no size 'stride'" in capsys.readouterr().err
    assert run("task", "sample", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--stride <int> r: How far the earlier bit is." in shown and "--inverted / --plain" in shown


@pytest.mark.usefixtures("toys")
def test_learn_takes_the_new_size_and_the_new_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fast = ("--steps", "4", "--batch", "4", "--width", "3")
    size = ("--tokens", "6", "--stride", "3")
    got = answer(capsys, "learn", "echo", *size, "--model", "bias", "--sharpness", "2", *fast, "--out", tmp_path / "r")
    assert got["sizes"] == {"tokens": 6, "stride": 3, "inverted": False}
    assert got["config"]["sharpness"] == 2 and 0 <= got["balanced_accuracy"] <= 1
    assert json.loads((tmp_path / "r" / "result.json").read_text())["sizes"]["stride"] == 3
    assert run("learn", "echo", *size, "--sharpness", "2", *fast) == 2
    assert "the model attention has no option 'sharpness'" in capsys.readouterr().err


@pytest.mark.usefixtures("toys")
def test_a_sweep_has_the_new_size_in_its_grid(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        '[fixed]\ntask = "echo"\ntokens = 6\nsteps = 2\nbatch = 4\nevaluations = 8\nwidth = 3\nmodel = "bias"\n'
        "[grid]\nstride = [2, 3]\nsharpness = [1, 2]\n"
    )
    got = answer(capsys, "sweep", file, "--out", tmp_path / "s", "--workers", "1")  # other processes know no toys
    assert (got["runs"], got["failed"]) == (4, 0)
    with (tmp_path / "s" / "table.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [(row["stride"], row["sharpness"]) for row in rows] == [("2", "1"), ("2", "2"), ("3", "1"), ("3", "2")]
    status = answer(capsys, "sweep", "status", tmp_path / "s")
    assert (status["done"], status["missing"]) == (4, 0)
    file.write_text(file.read_text().replace("[2, 3]", '["far"]'))
    assert run("sweep", file, "--out", tmp_path / "t") == 2
    assert "stride: Input should be a valid integer" in capsys.readouterr().err


@pytest.mark.usefixtures("toys")
def test_bounds_are_stated_in_the_new_size() -> None:
    def least(sizes: Sizes) -> Quantity:
        """The last ``stride`` bits must be kept."""
        return Quantity(sizes.need("stride"), "bits")

    words = {"limits": "state", "status": "proved here", "source": "this test", "statement": "", "shape": "r"}
    bound = Bound(id="echo-bits", task="echo", hypotheses=(), formula=least, **words)
    assert bound.evaluate(tokens=9, stride=5).value == 5
    assert Sizes(stride=5, tokens=9, epsilon=0.1).given() == {"tokens": 9, "heads": 1, "stride": 5, "epsilon": 0.1}
    assert Sizes(tokens=9).stride is None
    with pytest.raises(HeadcountError, match=r"stride \(r\) is not given"):
        bound.evaluate(tokens=9)
    with pytest.raises(HeadcountError, match="stride is 1; choose stride of at least 2"):
        Sizes(stride=1)


def test_nothing_of_the_toys_is_left() -> None:
    assert "echo" not in tasks.names() and "bias" not in models.names()
    assert "stride" not in RunSpec.fields()
    with pytest.raises(HeadcountError, match="there is no size 'stride'"):
        Sizes(stride=3)


def test_declarations_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_registry, "_TASKS", Registry("task", ((t.name, t) for t in task_registry._TASKS)))

    @dataclass(frozen=True)
    class Bare(Echo):
        name: ClassVar[str] = "bare"
        depth_of_it: int = 3

    with pytest.raises(ValueError, match="depth_of_it of bare is no declared size"):
        tasks.register(Bare)

    @dataclass(frozen=True)
    class Other(Echo):
        name: ClassVar[str] = "other"
        window: int = Option("window", "Something else.").field(3)

    with pytest.raises(ValueError, match="'window' is declared twice"):
        tasks.register(Other)

    @dataclass(frozen=True)
    class Taken(Echo):
        name: ClassVar[str] = "taken"
        steps: int = Option("steps", "A size that training has, too.").field(3)

    tasks.register(Taken)
    with pytest.raises(ValueError, match="steps would name two fields of a run"):
        RunSpec.fields()


def test_every_size_and_option_is_declared_and_its_own() -> None:
    for name in tasks.names():
        task = tasks.task_class(name)
        assert [option.name for option in options_of(task)] == list(tasks.get(name).parameters())
        assert f"print({task.__name__}(" in str(task.__doc__), f"{name} draws no example"
    declared = (*tasks.declared_sizes(), *OF_BOUNDS)
    assert merged(*declared)  # one name, one size
    letters = [size.letter for size in merged(*declared) if size.letter]
    assert len(letters) == len(set(letters))
    assert TOKENS in tasks.declared_sizes()


def test_construct_takes_the_sizes_of_the_constructions() -> None:
    taken = {option for name in constructions.names() for option in constructions.options(name)}
    sizes = [size.name for size in tasks.declared_sizes() if size.name in taken]
    assert [size.name for size in CONSTRUCT_SIZES] == sizes


def test_a_run_is_a_task_a_model_and_its_training() -> None:
    """Flat and nested forms are one run, with the digest of the fields that folders were named by before the parts."""
    flat: dict[str, Any] = {
        "task": "match3", "model": "third-order", "seed": 3, "tokens": 8, "parameters": 2000, "heads": 2,
        "steps": 5, "samples": 40,
    }  # fmt: skip
    spec = RunSpec.checked(flat)
    assert (spec.task.sizes, spec.model.options, spec.training.samples) == ({"tokens": 8}, {"heads": 2}, 40)
    assert spec == RunSpec.checked(spec.model_dump(mode="json")) == RunSpec(**spec.model_dump())
    assert hash(spec) == hash(RunSpec.checked(spec.inputs()))
    assert (spec.tokens, spec.heads, spec.samples, spec.modulus) == (8, 2, 40, None)
    assert spec.model_copy(update={"seed": 4, "heads": None}) == RunSpec.checked({**flat, "seed": 4, "heads": None})
    assert digest(spec) == "360221c5d01d3b02"  # as the flat spec of commit f748e7c named it
    with pytest.raises(AttributeError, match="no field 'stepz'"):
        _ = spec.stepz


def test_a_sweep_file_may_be_written_in_parts(tmp_path: Path) -> None:
    from headcount.lab.sweep.grid import read_grid

    flat, nested = tmp_path / "flat.toml", tmp_path / "nested.toml"
    flat.write_text('[fixed]\ntask = "qsa"\ntokens = 8\nsteps = 5\n[grid]\nheads = [1, 2]\n')
    nested.write_text(
        '[fixed.task]\nname = "qsa"\nsizes = {tokens = 8}\n[fixed.training]\nsteps = 5\n[grid]\nheads = [1, 2]\n'
    )
    assert read_grid(flat) == read_grid(nested)
