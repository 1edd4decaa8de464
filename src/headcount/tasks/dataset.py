"""A task as a torch dataset, for training."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from headcount.core.errors import HeadcountError
from headcount.core.seeds import derive
from headcount.tasks.base import Batch, Kind, Task


class TaskDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """``length`` sequences of a task as (input, target) pairs.

    Sequences are drawn in blocks, block b from the seed derived from (seed, b), so that item i does not depend on
    the reading order, the worker or the length. Inputs: ``task.model_input``, int64 symbols (N,) or
    float32 (N, features). Targets: float32 for binary and vector answers, int64 for classes, with
    ``NO_ANSWER`` (-100) at tokens without a question, which torch's cross_entropy ignores.

    >>> from headcount import tasks
    >>> x, target = TaskDataset(tasks.get("match3", tokens=8), length=100, seed=0)[99]
    >>> x.shape, target.shape, target.dtype
    (torch.Size([8]), torch.Size([8]), torch.float32)
    """

    def __init__(self, task: Task, length: int, seed: int = 0, kind: Kind = "uniform", block: int = 256) -> None:
        for name, value in (("length", length), ("block", block)):
            if value < 1:
                raise HeadcountError(f"{name} must be at least 1, not {value}", fix="choose a positive one")
        self.task, self.length, self.seed, self.kind, self.block = task, length, seed, kind, block
        self._held: tuple[int, torch.Tensor, torch.Tensor] | None = None
        self._tensors(0)  # incompatible sizes and kind raise here, not inside a worker

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        inputs, targets = self._tensors(index // self.block)
        return inputs[index % self.block], targets[index % self.block]

    def _tensors(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._held is None or self._held[0] != number:
            batch = self.task.sample(derive(self.seed, "block", number), self.block, self.kind)
            self._held = (number, *as_tensors(self.task, batch))
        return self._held[1], self._held[2]


def as_tensors(task: Task, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as (inputs, targets) in the dtypes used for training."""
    array = task.model_input(batch)
    if any(np.may_share_memory(array, source) for source in batch.inputs.values()):
        array = array.copy()  # batches are read-only, tensors are not
    inputs = torch.from_numpy(array)
    dtype = torch.int64 if task.answer == "class" else torch.float32
    return inputs, torch.from_numpy(batch.targets).to(dtype)
