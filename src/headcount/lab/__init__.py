"""Experiments and figures, one file per figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headcount.core.lazy import submodules

if TYPE_CHECKING:
    from headcount.lab import figures as figures
    from headcount.lab import models as models
    from headcount.lab import specs as specs
    from headcount.lab import sweep as sweep
    from headcount.lab import train as train
else:
    __getattr__, __dir__ = submodules(__name__)
