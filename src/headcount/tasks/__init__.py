"""Synthetic tasks with exact answers, taken from the theory of attention.

``get(name, **sizes)`` returns a task, ``names()`` lists them, ``register`` adds a custom one.

Names are imported on first use: ``headcount.tasks.sizes``, from which commands are generated, does not need NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headcount.tasks.base import KINDS as KINDS
    from headcount.tasks.base import NO_ANSWER as NO_ANSWER
    from headcount.tasks.base import Batch as Batch
    from headcount.tasks.base import Kind as Kind
    from headcount.tasks.base import Score as Score
    from headcount.tasks.base import Task as Task
    from headcount.tasks.match import Matching as Matching
    from headcount.tasks.match_local import Match3Local as Match3Local
    from headcount.tasks.registry import declared_sizes as declared_sizes
    from headcount.tasks.registry import get as get
    from headcount.tasks.registry import names as names
    from headcount.tasks.registry import register as register
    from headcount.tasks.registry import task_class as task_class

_PLACES = {
    **dict.fromkeys(("KINDS", "NO_ANSWER", "Batch", "Kind", "Score", "Task"), "base"),
    "Match3Local": "match_local",
    "Matching": "match",
    **dict.fromkeys(("declared_sizes", "get", "names", "register", "task_class"), "registry"),
}
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'headcount.tasks' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"headcount.tasks.{_PLACES[name]}"), name)
    globals()[name] = value
    return value
