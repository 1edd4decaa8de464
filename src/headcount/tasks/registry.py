"""Which tasks there are, by name."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from headcount.core.errors import HeadcountError
from headcount.tasks.base import Task
from headcount.tasks.composition import Composition
from headcount.tasks.controls import Majority, Parity
from headcount.tasks.induction import Induction
from headcount.tasks.match import Match2, Match3, MatchS
from headcount.tasks.match_local import Match3Bigram, Match3Local
from headcount.tasks.ngram import NGram
from headcount.tasks.qsa import QSA
from headcount.tasks.recall import Recall
from headcount.tasks.selection import SparseSelection

_ALL: tuple[type[Task], ...] = (
    QSA,
    Match2,
    Match3,
    Match3Local,
    Match3Bigram,
    MatchS,
    SparseSelection,
    Recall,
    Induction,
    Composition,
    Parity,
    Majority,
    NGram,
)
_TASKS = {task.name: task for task in _ALL}


def names() -> tuple[str, ...]:
    """The names that ``get`` takes."""
    return tuple(_TASKS)


def task_class(name: str) -> type[Task]:
    """The class of one task; its fields are the sizes that it takes."""
    if name not in _TASKS:
        close = difflib.get_close_matches(name, _TASKS, n=1)
        raise HeadcountError(
            f"there is no task {name!r}",
            fix=f"did you mean {close[0]}?" if close else f"choose one of {', '.join(_TASKS)}",
        )
    return _TASKS[name]


def get(name: str, **sizes: Any) -> Task:
    """The task ``name`` at the given sizes; what is left out takes its default.

    Raises ``HeadcountError`` for an unknown name, a size that the task lacks, or a value out of range.

    >>> get("qsa", tokens=32, sparsity=3).parameters()
    {'tokens': 32, 'sparsity': 3, 'dim': 8}
    """
    chosen = task_class(name)
    known = [field.name for field in dataclasses.fields(chosen)]
    for size in sizes:
        if size not in known:
            raise HeadcountError(f"the task {name} has no size {size!r}", fix=f"its sizes are {', '.join(known)}")
    return chosen(**sizes)
