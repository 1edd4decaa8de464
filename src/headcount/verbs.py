"""Packages that are also the verbs they are named after: ``headcount.audit(model)`` and ``headcount.audit.heads``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class VerbModule(ModuleType):
    """A module that can be called; the function lives in one of its files and is imported at the first call."""

    _place: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the verb."""
        place, name = self._place
        return getattr(importlib.import_module(place), name)(*args, **kwargs)


def make_verb(package: str, place: str, function: str) -> None:
    """Let calling the module ``package`` call ``place.function``.

    Python binds a subpackage's name in its parent on import, so a function of the same name would be lost there.
    """
    module = sys.modules[package]
    module.__class__ = VerbModule
    module._place = (place, function)  # type: ignore[attr-defined]
