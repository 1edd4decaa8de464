"""headcount: how much attention does this Transformer need, and can I have the model that has just that?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headcount import bounds as bounds

__version__ = "0.1.0.dev0"

_LAZY_MODULES = ("bounds",)


def __getattr__(name: str) -> Any:
    """Import the public modules on first use, so that ``import headcount`` stays free of torch."""
    if name in _LAZY_MODULES:
        return importlib.import_module(f"headcount.{name}")
    raise AttributeError(f"module 'headcount' has no attribute {name!r}")
