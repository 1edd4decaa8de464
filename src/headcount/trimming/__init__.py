"""The trimming pipeline for pretrained models: audit, plan, trim, evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headcount.core.lazy import submodules

if TYPE_CHECKING:
    from headcount.trimming import audit as audit
    from headcount.trimming import evaluate as evaluate
    from headcount.trimming import plan as plan
    from headcount.trimming import trim as trim
else:
    __getattr__, __dir__ = submodules(__name__)
