"""Measurements of pretrained models that are independent of trimming."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headcount.core.lazy import submodules

if TYPE_CHECKING:
    from headcount.probes import saturation as saturation
    from headcount.probes import selection as selection
else:
    __getattr__, __dir__ = submodules(__name__)
