"""Pretrained models: supported families, loading, and the text they are measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headcount.core.lazy import submodules

if TYPE_CHECKING:
    from headcount.pretrained import opening as opening
    from headcount.pretrained import running as running
    from headcount.pretrained import runtimes as runtimes
    from headcount.pretrained import text as text
else:
    __getattr__, __dir__ = submodules(__name__)
