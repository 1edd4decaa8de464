"""All thirteen tasks: same seed, same dataset; solver and sampler agree; datasets feed loaders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.tasks.dataset import TaskDataset

NAMES = (
    *("qsa", "match2", "match3", "match3-local", "match3-bigram", "match-s", "sparse-selection"),
    *("recall", "induction", "composition", "parity", "majority", "ngram"),
)


def test_there_are_thirteen() -> None:
    assert set(tasks.names()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", tasks.KINDS)
def test_solving_a_sampled_batch_gives_its_targets(name: str, kind: str) -> None:
    task = tasks.get(name)
    batch = task.sample(0, 2, kind)
    np.testing.assert_array_equal(task.solve(batch), batch.targets)
    again = task.batch(**batch.inputs)
    np.testing.assert_array_equal(again.targets, batch.targets)
    assert task.score(batch.targets, batch).wrong == 0
    assert len(batch[:1]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_dataset_items_do_not_depend_on_order_or_length(name: str) -> None:
    task = tasks.get(name, tokens=9)
    long, short = TaskDataset(task, 600, seed=4), TaskDataset(task, 300, seed=4)
    backwards = [long[i] for i in (599, 290, 3)]
    for (x, target), (x2, target2) in zip(backwards[1:], [short[290], short[3]], strict=True):
        assert torch.equal(x, x2) and torch.equal(target, target2)
    x, target = next(iter(DataLoader(long, batch_size=16)))
    symbolic = task.vocabulary is not None
    assert x.dtype == (torch.int64 if symbolic else torch.float32)
    assert x.shape[:2] == (16, 9)
    if symbolic:
        assert int(x.max()) < task.vocabulary
    if task.answer == "class":
        assert target.dtype == torch.int64 and int(target.max()) < task.classes
    else:
        assert target.dtype == torch.float32


def test_dataset_refuses_what_the_task_refuses() -> None:
    with pytest.raises(HeadcountError, match="length must be at least 1"):
        TaskDataset(tasks.get("parity"), 0)
    with pytest.raises(HeadcountError, match="choose a modulus of 4 or more"):
        TaskDataset(tasks.get("match3", modulus=3), 10, kind="balanced")
    with pytest.raises(IndexError):
        TaskDataset(tasks.get("parity"), 10)[10]
