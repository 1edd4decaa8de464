"""All figures by name: every file of this folder that defines a ``FIGURE``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from headcount.core.names import Registry
from headcount.lab import figures
from headcount.lab.figures.base import Figure


@cache
def _figures() -> Registry[Figure[Any]]:
    """Load the figures; their files are imported when a figure is first requested."""
    modules = sorted(module.name for module in pkgutil.iter_modules(figures.__path__))
    declared = (
        getattr(importlib.import_module(f"{figures.__name__}.{name}"), "FIGURE", None)
        for name in modules
        if name != "registry"
    )
    return Registry("figure", ((figure.name, figure) for figure in declared if isinstance(figure, Figure)))


def names() -> tuple[str, ...]:
    """The names accepted by ``get``, in alphabetical order of their files."""
    return _figures().names()


def get(name: str) -> Figure[Any]:
    """A figure by name."""
    return _figures().get(name)
