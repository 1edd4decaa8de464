"""Submodules that are imported on first access, so that ``import headcount`` imports nothing heavy."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType


def submodules(package: str) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that imports its subpackages on first access (PEP 562).

    The package's ``__init__`` contains ``__getattr__, __dir__ = submodules(__name__)``. ``__getattr__`` raises
    ``AttributeError`` for a name that is not a subpackage; an import error inside a subpackage propagates.

    >>> import headcount.trimming
    >>> get, names = submodules("headcount.trimming")
    >>> {"audit", "evaluate", "plan", "trim"} <= set(names()), get("audit").__name__
    (True, 'headcount.trimming.audit')
    """

    def packages() -> list[str]:
        return [module.name for module in pkgutil.iter_modules(sys.modules[package].__path__) if module.ispkg]

    def get(name: str) -> ModuleType:
        if name in packages():
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *packages()})

    return get, names
