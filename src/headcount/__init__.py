"""headcount: how much attention does this Transformer need, and can I have the model that has just that?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headcount import bounds as bounds
    from headcount import constructions as constructions
    from headcount import tasks as tasks
    from headcount.bounds.dispatch import refute as refute

__version__ = "0.1.0.dev0"

_MODULES = ("bounds", "constructions", "tasks")
_FUNCTIONS = {"refute": "headcount.bounds.dispatch"}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``import headcount`` stays free of torch and NumPy."""
    if name in _MODULES:
        return importlib.import_module(f"headcount.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'headcount' has no attribute {name!r}")
