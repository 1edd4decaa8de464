"""Synthetic tasks with exact answers: what attention is asked to compute in the theory.

``get(name, **sizes)`` gives a task, ``names()`` lists them.
"""

from headcount.tasks.base import KINDS, NO_ANSWER, Batch, Kind, Score, Task
from headcount.tasks.match import Matching
from headcount.tasks.match_local import Match3Local
from headcount.tasks.registry import get, names, task_class

__all__ = [
    "KINDS",
    "NO_ANSWER",
    "Batch",
    "Kind",
    "Match3Local",
    "Matching",
    "Score",
    "Task",
    "get",
    "names",
    "task_class",
]
