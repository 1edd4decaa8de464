"""The training loop: it learns, resumes to the bit, stops at non-finite losses, and its scores are right."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headcount import tasks
from headcount.core import store
from headcount.core.errors import HeadcountError
from headcount.lab import models
from headcount.lab.specs.run import RunSpec
from headcount.lab.train import exam
from headcount.lab.train.checkpoint import FILE
from headcount.lab.train.data import Portion, Source, draw
from headcount.lab.train.loop import NonFiniteError, rate, train
from headcount.tasks.base import NO_ANSWER

TOY = RunSpec(
    task="qsa", tokens=6, sparsity=2, dim=2, width=16, steps=60, batch=16, evaluate_every=20, evaluations=32,
    checkpoint_every=10,
)  # fmt: skip
FALLS = {
    "attention": 0.03,
    "third-order": 0.12,
    "strassen": 0.12,
    "lstm": 0.12,
    "gru": 0.12,
    "rnn": 0.12,
    "ssm": 0.12,
    "mlp": 0.12,
}
"""Mean squared distances after 200 toy steps; always answering 0 costs 1/6."""


@pytest.mark.parametrize("name", FALLS)
def test_losses_fall(name: str) -> None:
    change = {"model": name, "steps": 200, "learning_rate": 1e-2, "evaluate_every": 200, "evaluations": 8}
    losses = train(RunSpec.checked(TOY.inputs() | change)).curve.losses
    assert sum(losses[-20:]) / 20 < FALLS[name]


def test_the_control_learns_nothing() -> None:
    trained = train(RunSpec.checked(TOY.inputs() | {"model": "mlp-tokenwise", "steps": 150, "evaluations": 256}))
    # A token knows its own vector alone, which is in its set with probability q/N = 1/3.
    assert trained.score > 0.35 > 0.8 * (1 / 6) ** 0.5


def test_same_seed_same_weights() -> None:
    first, again = (train(TOY).model.state_dict() for _ in range(2))
    other = train(TOY.model_copy(update={"seed": 1})).model.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("change", [{}, {"samples": 40}], ids=["fresh", "fixed"])
def test_the_loop_is_the_one_written_out(change: dict[str, Any]) -> None:
    """Build, draw, AdamW with the rate's schedule and clipping: bit by bit, whatever else the loop can train."""
    spec = TOY.model_copy(update=change)
    run = train(spec)
    model = models.build(spec.config, spec.reading, spec.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    source, losses = Source(spec), []
    for step in range(spec.steps):
        portion = source.batch(step)
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * rate(step, spec.steps, spec.warmup)
        loss = (model(portion.inputs, portion.modulus) - portion.targets).square().sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert run.curve.losses == losses
    assert all(torch.equal(run.model.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    held = exam.held_out(spec, "uniform", spec.evaluations)
    assert run.score == run.curve.scores[-1][1] == exam.evaluate(model, held)


MATCH = {"task": "match3", "tokens": 8, "start_tokens": 4, "sparsity": None, "dim": None}


@pytest.mark.parametrize("change", [{}, {"samples": 40}, MATCH], ids=["fresh", "fixed", "curriculum"])
def test_killed_runs_go_on_to_the_same_bits(tmp_path: Path, change: dict[str, Any]) -> None:
    """kill -9 in the middle, in another process; the curve and the weights are those of a whole run."""
    fields = TOY.inputs() | {"steps": 150} | change
    spec = RunSpec.checked({name: value for name, value in fields.items() if value is not None})
    whole = train(spec, tmp_path / "whole")
    killed = tmp_path / "killed"
    code = (
        "import sys, json; from pathlib import Path\n"
        "from headcount.lab.specs.run import RunSpec; from headcount.lab.train import loop as t\n"
        "step = t._Run._step\n"
        "def slow(run):\n    import time; time.sleep(0.02); step(run)\n"
        "t._Run._step = slow\n"
        "t.train(RunSpec.checked(json.loads(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(spec.inputs()), str(killed)])
    try:
        deadline = time.monotonic() + 60
        while not (killed / FILE).exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = len(store.read_tensors(killed / FILE)["curve.losses"])
    assert 0 < done < spec.steps
    resumed = train(spec, killed)
    assert resumed.curve.losses == whole.curve.losses and resumed.curve.scores == whole.curve.scores
    assert (killed / "weights.safetensors").read_bytes() == (tmp_path / "whole" / "weights.safetensors").read_bytes()
    assert (killed / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()


def test_non_finite_losses_stop_with_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = exam.loss
    steps = iter(range(1000))

    def spoiled(*arguments: object) -> torch.Tensor:
        return loss(*arguments) * (math.nan if next(steps) == 25 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(exam, "loss", spoiled)
    message = r"step 25 is not finite \(the last good checkpoint is .*, after 20 steps"
    with pytest.raises(NonFiniteError, match=message) as e:
        train(TOY, tmp_path / "run")
    assert e.value.step == 25 and e.value.exit_code == 1
    state = store.read_tensors(tmp_path / "run" / FILE)
    assert len(state["curve.losses"]) == 20 and all(torch.isfinite(t).all() for t in state.values())


def test_huge_rates_stop_cleanly() -> None:
    with pytest.raises(NonFiniteError, match="no checkpoint was kept"):
        train(TOY.model_copy(update={"learning_rate": 1e30, "warmup": 0}))


def test_early_stop_at_the_target() -> None:
    run = train(TOY.model_copy(update={"target": 10.0}))
    assert len(run.curve.losses) == 20 and run.summary()["steps"] == 20 and run.summary()["samples"] == 320


def test_finished_runs_are_not_trained_again(tmp_path: Path) -> None:
    train(TOY, tmp_path / "run")
    assert train(TOY, tmp_path / "run").seconds["train"] == 0.0
    with pytest.raises(HeadcountError, match=r"other inputs \(steps"):
        train(TOY.model_copy(update={"steps": 61}), tmp_path / "run")


def test_snapshots(tmp_path: Path) -> None:
    spec = TOY.model_copy(update={"snapshots": (0, 60)})
    run = train(spec, tmp_path / "run")
    first, last = (store.read_tensors(tmp_path / "run" / f"weights-{step}.safetensors") for step in (0, 60))
    start = models.build(spec.config, spec.reading, spec.seed).state_dict()
    assert all(torch.equal(first[key], start[key]) for key in start)
    assert all(torch.equal(last[key], value) for key, value in run.model.state_dict().items())


# -- data -------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step() -> None:
    for spec in (TOY, TOY.model_copy(update={"samples": 40})):
        first, second = Source(spec), Source(spec)
        late = second.batch(200)
        in_order = [first.batch(step) for step in range(201)]
        assert torch.equal(in_order[200].inputs, late.inputs) and torch.equal(in_order[200].targets, late.targets)
        assert not torch.equal(in_order[0].inputs, in_order[1].inputs)


def test_a_fixed_set_is_gone_through_evenly() -> None:
    """40 sequences, batches of 16: after 5 batches each was seen exactly twice."""
    source = Source(TOY.model_copy(update={"samples": 40}))
    rows = torch.cat([source.batch(step).inputs for step in range(5)]).flatten(1)
    _, counts = np.unique(rows.numpy(), axis=0, return_counts=True)
    assert counts.tolist() == [2] * 40


def test_targets_are_the_tasks_own() -> None:
    portion = Source(TOY).batch(3)
    x = portion.inputs.numpy()
    exact = tasks.get("qsa", tokens=6, sparsity=2, dim=2).batch(z=x[..., :2], y=x[..., 2:4].astype(int)).targets
    assert np.allclose(portion.targets.numpy(), exact, atol=1e-6)


def test_the_curriculum_doubles_lengths_and_follows_the_natural_modulus() -> None:
    spec = RunSpec(task="match3", tokens=16, start_tokens=4, steps=90, width=8)
    source = Source(spec)
    seen = [(source.batch(step).inputs.shape[1], source.batch(step).modulus) for step in (0, 29, 30, 60, 89)]
    assert [n for n, _ in seen] == [4, 4, 8, 16, 16]
    assert all(m == tasks.get("match3", tokens=n).vocabulary for n, m in seen)


def test_signs_are_fair_coins() -> None:
    task = tasks.get("qsa", tokens=10, sparsity=1, dim=1)
    portion = draw(task, 0, 4000, "signs")
    z = portion.inputs[..., 0]
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert abs(z.mean().item()) < 0.02 and abs((z[:, 0] * z[:, 1]).mean().item()) < 0.08
    assert torch.equal(portion.targets[..., 0], z.gather(1, portion.inputs[..., 1].long()))


# -- scores -----------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    vectors = tasks.get("qsa", tokens=2, sparsity=1, dim=2)
    portion = Portion(vectors, torch.zeros(1), torch.zeros(1, 2, 2))
    assert exam.score(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]), portion) == pytest.approx(math.sqrt(12.5))
    assert exam.score(torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), portion, last=True) == pytest.approx(1.0)
    binary = Portion(tasks.get("match3", tokens=4), torch.zeros(1), torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    # 2 of 3 ones right, the zero wrong: (2/3 + 0) / 2.
    assert exam.score(torch.tensor([[[1.0], [2.0], [-1.0], [0.5]]]), binary) == pytest.approx(1 / 3)
    assert exam.score(torch.ones(1, 4, 1), binary) == pytest.approx(0.5)
    assert exam.majority(binary) == pytest.approx(0.75)
    classes = Portion(tasks.get("recall", tokens=4, symbols=4), torch.zeros(1), torch.tensor([[NO_ANSWER, 2, 0, 2]]))
    right_once = torch.nn.functional.one_hot(torch.tensor([[1, 2, 1, 0]]), 4).float()
    assert exam.score(right_once, classes) == pytest.approx(0.25)


def test_exams_say_what_a_model_cannot_sit() -> None:
    scores = train(TOY.model_copy(update={"steps": 1})).scores
    assert "built for 6 tokens" in str(scores["longer"]["reason"]) and scores["balanced"]["error"] > 0  # type: ignore[operator]
    scores = train(RunSpec(task="match3", tokens=8, model="gru", width=8, steps=1, evaluations=16)).scores
    assert 0 <= float(scores["longer"]["balanced_accuracy"]) <= 1
    assert 0.4 <= float(scores["balanced"]["majority_accuracy"]) <= 0.6


def test_rates() -> None:
    rates = [rate(step, 1000, 100) for step in range(1000)]
    assert rates[0] == 0.01 and max(rates) == rates[99] == rates[100] == 1.0 and 0 < rates[-1] < 1e-5
    assert rates == sorted(rates[:100]) + sorted(rates[100:], reverse=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "qsa", "wdth": 3}, "'wdth' is no field"),
        ({"task": "qsa", "steps": 0}, "steps: .* not 0"),
        ({"task": "qsa", "start_tokens": 8}, "a curriculum over lengths needs a matching task"),
        ({"task": "match3", "tokens": 24, "start_tokens": 8}, "do not double to 24"),
        ({"task": "match3", "kind": "signs"}, "match3 has no signs"),
        ({"task": "match3", "model": "lstm", "parameters": 10}, "no width gives lstm 10"),
    ],
)
def test_mistakes_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        RunSpec.checked(fields).check()
