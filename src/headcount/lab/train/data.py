"""Training batches with random access by step, so that a resumed run sees the same batches as an uninterrupted one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from headcount import tasks
from headcount.core.seeds import derive, numpy_generator
from headcount.lab.specs.run import RunSpec
from headcount.tasks import Kind, Task
from headcount.tasks.dataset import as_tensors

BLOCK = 40_960
"""Tokens drawn per call: enough to amortize the overhead of a call, and few enough to limit memory at any length."""
FIXED = 512
"""Sequences of a fixed training set drawn per call."""


@dataclass(frozen=True)
class Portion:
    """Inputs and targets of sequences, and their task."""

    task: Task
    inputs: Tensor
    targets: Tensor

    @property
    def modulus(self) -> int | None:
        """M, if the tokens are residues."""
        return self.task.vocabulary

    def __len__(self) -> int:
        return len(self.targets)


def draw(task: Task, seed: int, count: int, kind: str) -> Portion:
    """``count`` sequences of one kind as tensors."""
    batch = task.sample(seed, count, cast(Kind, "uniform" if kind == "signs" else kind))
    if kind == "signs":
        z = np.zeros_like(batch.inputs["z"])
        z[..., 0] = 1 - 2 * numpy_generator(seed, "signs").integers(0, 2, z.shape[:2])
        batch = task.batch(z=z, y=batch.inputs["y"])
    return Portion(task, *as_tensors(task, batch))


class Source:
    """The training batches of a run, by step."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        natural = {} if spec.modulus is None else {"modulus": spec.modulus}
        sizes = {name: value for name, value in spec.problem.parameters().items() if name != "modulus"} | natural
        self.stages = [
            spec.problem if tokens == spec.problem.tokens else tasks.get(spec.task.name, **sizes | {"tokens": tokens})
            for tokens in spec.lengths
        ]
        self._held: tuple[tuple[int, int], Portion] | None = None
        self._fixed: Portion | None = None
        self._order: tuple[int, np.ndarray] | None = None

    def stage(self, step: int) -> int:
        """The curriculum stage of a step."""
        return int(min(step * len(self.stages) // self.spec.steps, len(self.stages) - 1))

    def batch(self, step: int) -> Portion:
        """The batch of a step, counted from 0."""
        return self._again(step) if self.spec.samples else self._fresh(step)

    def _fresh(self, step: int) -> Portion:
        stage, size = self.stage(step), self.spec.batch
        per_block = max(1, BLOCK // (size * self.stages[stage].tokens))
        key = stage, step // per_block
        if self._held is None or self._held[0] != key:
            seed = derive(self.spec.seed, "train", self.stages[stage].tokens, key[1])
            self._held = key, draw(self.stages[stage], seed, per_block * size, self.spec.kind)
        block = self._held[1]
        rows = slice(step % per_block * size, (step % per_block + 1) * size)
        return Portion(block.task, block.inputs[rows], block.targets[rows])

    def _again(self, step: int) -> Portion:
        """The batch of a step from the fixed set, in a new random order in each epoch."""
        count = self.spec.samples or 0
        if self._fixed is None:
            blocks = [
                draw(
                    self.spec.problem, derive(self.spec.seed, "fixed", b), min(FIXED, count - b * FIXED), self.spec.kind
                )
                for b in range(-(-count // FIXED))
            ]
            inputs, targets = (torch.cat([getattr(b, name) for b in blocks]) for name in ("inputs", "targets"))
            self._fixed = Portion(self.spec.problem, inputs, targets)
        first = step * self.spec.batch
        places = np.arange(first, first + self.spec.batch)
        rows = torch.from_numpy(np.concatenate([self._epoch(e, count)[p] for e, p in _by_epoch(places, count)]))
        return Portion(self.spec.problem, self._fixed.inputs[rows], self._fixed.targets[rows])

    def _epoch(self, number: int, count: int) -> np.ndarray:
        if self._order is None or self._order[0] != number:
            self._order = number, numpy_generator(self.spec.seed, "order", number).permutation(count)
        return self._order[1]


def _by_epoch(places: np.ndarray, count: int) -> list[tuple[int, np.ndarray]]:
    """Split positions in an endless stream into (epoch, positions within the epoch)."""
    epochs = places // count
    return [(int(e), places[epochs == e] % count) for e in np.unique(epochs)]
