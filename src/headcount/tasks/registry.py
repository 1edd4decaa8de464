"""The registry of tasks."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

from headcount.core.errors import HeadcountError
from headcount.core.names import Registry
from headcount.core.options import Option, merged, options_of
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
_TASKS = Registry("task", ((task.name, task) for task in _ALL))


def register(task: type[Task]) -> type[Task]:
    """Register a custom task: commands, sweeps and bounds then accept it and its declared sizes.

    The registration is local to this process, so sweeps over the task must use one worker.

    Raises ``ValueError`` if the name is taken, a field declares no ``Option``, or a size has the name of another
    task's size but a different declaration. Usable as a decorator.
    """
    bare = {field.name for field in dataclasses.fields(task)} - {option.name for option in options_of(task)}
    if bare:
        raise ValueError(
            f"{', '.join(sorted(bare))} of {task.name} is no declared size: write {next(iter(bare))} = "
            "Option(...).field(default)"
        )
    merged(*declared_sizes(), *options_of(task))
    return _TASKS.register(task.name, task)


def declared_sizes() -> tuple[Option, ...]:
    """The distinct sizes of all tasks; switches last.

    >>> [size.name for size in declared_sizes()][:4], declared_sizes()[-1].off
    (['tokens', 'sparsity', 'dim', 'modulus'], 'linear')
    """
    return _declared(tuple(_TASKS))


@lru_cache(maxsize=8)
def _declared(known: tuple[type[Task], ...]) -> tuple[Option, ...]:
    return merged(*(option for task in known for option in options_of(task)))


def names() -> tuple[str, ...]:
    """The names that ``get`` accepts."""
    return _TASKS.names()


def task_class(name: str) -> type[Task]:
    """The class of a task; its fields are the sizes that it accepts."""
    return _TASKS.get(name)


def get(name: str, **sizes: Any) -> Task:
    """The task ``name`` with the given sizes; omitted sizes have their defaults.

    Raises ``HeadcountError`` for an unknown name, a size that the task does not have, or a value out of range.

    >>> get("qsa", tokens=32, sparsity=3).parameters()
    {'tokens': 32, 'sparsity': 3, 'dim': 8}
    """
    chosen = task_class(name)
    known = [field.name for field in dataclasses.fields(chosen)]
    for size in sizes:
        if size not in known:
            raise HeadcountError(f"the task {name} has no size {size!r}", fix=f"its sizes are {', '.join(known)}")
    return chosen(**sizes)
