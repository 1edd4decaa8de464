"""The training loop, shared by all tasks, models, sweeps and figures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headcount.attention.bench.measure import thread_count
from headcount.core import store
from headcount.core.errors import CheckFailedError
from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent
from headcount.lab.models import parameters
from headcount.lab.specs.text import AnySpec
from headcount.lab.train import checkpoint
from headcount.lab.train.checkpoint import Curve
from headcount.lab.train.subject import Scores, subject

RESULT, WEIGHTS, TIMING = "result.json", "weights.safetensors", "timing.json"


class NonFiniteError(CheckFailedError):
    """The loss or its gradient is not finite; ``step`` counts from 0."""

    def __init__(self, step: int, what: str, last_good: str) -> None:
        self.step = step
        super().__init__(f"the {what} at step {step} is not finite ({last_good})", fix="lower --learning-rate")


@dataclass(frozen=True)
class Trained:
    """A finished run: the model, its curve, the scores on every kind, and a breakdown of the time in seconds."""

    spec: AnySpec
    model: Any
    curve: Curve
    scores: Scores
    seconds: dict[str, float]

    @property
    def score(self) -> float:
        """The score on fresh sequences."""
        return float(self.scores[self.spec.main_kind][self.spec.score_name])

    def summary(self) -> JsonObject:
        """The reported summary of a run; it depends only on the spec and therefore contains no times."""
        steps = len(self.curve.losses)
        return {
            **self.spec.described(),
            "parameters": parameters(self.model),
            "samples": min(self.spec.samples or math.inf, steps * self.spec.batch),
            "steps": steps,
            self.spec.score_name: self.score,
            "scores": self.scores,
            "seed": self.spec.seed,
        }


def train(
    spec: AnySpec, folder: Path | None = None, *, threads: int = 1, progress: Progress = silent, overwrite: bool = False
) -> Trained:
    """Train a model as specified by ``spec`` and examine it.

    The optimiser is AdamW; the learning rate increases linearly over ``warmup`` steps and then decays to 0 along a
    cosine; gradients are clipped to norm ``clip``. With ``folder``, the state is saved there every ``checkpoint_every``
    steps, and an interrupted run resumes from the last checkpoint. Batches depend only on the seed and the step, so a
    resumed run has the same curve and weights as an uninterrupted one. At these sizes one thread is fastest, and with
    one thread the result is bitwise reproducible on one machine.

    Raises NonFiniteError, with the step and the last good checkpoint, if the loss or its gradient is not
    finite; HeadcountError for a spec that cannot be run or a folder of another spec.
    """
    spec.check()
    if folder is not None:
        store.open_run_folder(folder, "learn", spec.inputs(), overwrite)
    with thread_count(threads):
        return _Run(spec, folder, progress).finish()


class _Run:
    """The state of a run in progress."""

    def __init__(self, spec: AnySpec, folder: Path | None, progress: Progress) -> None:
        self.spec, self.folder, self.progress = spec, folder, progress
        self.subject = subject(spec)
        self.model = self.subject.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, betas=(0.9, 0.98)
        )
        self.seconds = {"train": 0.0, "data": 0.0, "evaluation": 0.0}
        self.curve = Curve()
        self.saved: int | None = None
        if folder is not None and (folder / checkpoint.FILE).exists():
            self.curve = checkpoint.load(folder / checkpoint.FILE, self.model, self.optimizer)
            self.saved = len(self.curve.losses)

    def finish(self) -> Trained:
        """Train to the end, examine the model and write the results."""
        started = time.perf_counter()
        self.subject.hold_out()
        self.seconds["evaluation"] += time.perf_counter() - started
        if len(self.curve.losses) == 0:
            self.subject.begin()
            self._keep(0)
        while len(self.curve.losses) < self.spec.steps and not self._reached():
            self._step()
            done = len(self.curve.losses)
            self._keep(done)
            ended = done == self.spec.steps
            if ended or done % self.spec.evaluate_every == 0:
                started = time.perf_counter()
                self.curve.scores.append((done, self.subject.score()))
                self.seconds["evaluation"] += time.perf_counter() - started
                self.progress(f"{self.spec.model_name} on {self.spec.task_name}", done, self.spec.steps)
            if self.folder is not None and (ended or self._reached() or done % self.spec.checkpoint_every == 0):
                checkpoint.save(self.folder / checkpoint.FILE, self.model, self.optimizer, self.curve)
                self.saved = done
        started = time.perf_counter()
        scores = self.subject.examine()
        self.seconds["examination"] = time.perf_counter() - started
        trained = Trained(self.spec, self.model, self.curve, scores, self.seconds)
        if self.folder is not None:
            store.write_tensors(self.folder / WEIGHTS, self.model.state_dict())
            store.write_json(self.folder / TIMING, {"seconds": self.seconds})
            store.write_json(self.folder / RESULT, trained.summary() | {"curve": self.curve.scores})
        return trained

    def _step(self) -> None:
        step, spec = len(self.curve.losses), self.spec
        started = time.perf_counter()
        batch = self.subject.batch(step)
        drawn = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = spec.learning_rate * rate(step, spec.steps, spec.warmup)
        loss = self.subject.loss(batch)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteError(step, "loss", self._last_good())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), spec.clip)
        if not math.isfinite(norm.item()):
            raise NonFiniteError(step, "gradient", self._last_good())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.curve.losses.append(value)
        self.seconds["data"] += drawn - started
        self.seconds["train"] += time.perf_counter() - drawn

    def _reached(self) -> bool:
        target = self.spec.target
        if target is None or not self.curve.scores or self.curve.scores[-1][0] != len(self.curve.losses):
            return False
        value = self.curve.scores[-1][1]
        return value >= target if self.spec.higher_is_better else value <= target

    def _keep(self, done: int) -> None:
        if self.folder is not None and done in self.spec.snapshots:
            store.write_tensors(self.folder / f"weights-{done}.safetensors", self.model.state_dict())

    def _last_good(self) -> str:
        if self.folder is None:
            return "no checkpoint was kept: give --out"
        if self.saved is None:
            return "no checkpoint was written yet"
        return f"the last good checkpoint is {self.folder / checkpoint.FILE}, after {self.saved} steps"


def time_of_a_step(spec: AnySpec, tries: int = 4) -> float:
    """Seconds per step, including data: the minimum of several tries after a warm-up step."""
    with thread_count(1):
        run = _Run(spec, None, silent)
        run._step()
        times = []
        for _ in range(tries):
            started = time.perf_counter()
            run._step()
            times.append(time.perf_counter() - started)
    return min(times)


def rate(step: int, steps: int, warmup: int) -> float:
    """The learning rate of a step relative to its maximum: a linear warmup, then a half-cosine decay to 0.

    >>> [round(rate(step, 5, 2), 3) for step in range(5)]
    [0.5, 1.0, 1.0, 0.75, 0.25]
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
