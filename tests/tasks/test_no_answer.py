"""Tokens that are asked nothing carry the index that torch's losses ignore."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from headcount import tasks
from headcount.tasks import NO_ANSWER
from headcount.tasks.dataset import TaskDataset


@pytest.mark.parametrize("name, tokens", [("recall", 16), ("induction", 16), ("composition", 17)])
def test_cross_entropy_skips_them_without_being_told(name: str, tokens: int) -> None:
    """The mean over the asked tokens alone, in float64, against torch's default."""
    task = tasks.get(name, tokens=tokens)
    assert task.classes is not None
    _, target = TaskDataset(task, 8, seed=3, kind="balanced")[5]
    asked = target != NO_ANSWER
    assert bool(asked.any()) and not bool(asked.all()) and set(target[~asked].tolist()) == {-100}
    logits = torch.randn(tokens, task.classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = -logits[asked].log_softmax(-1).gather(1, target[asked][:, None]).mean()
    torch.testing.assert_close(cross_entropy(logits, target), want, rtol=1e-12, atol=0)  # float64 sums in two orders
