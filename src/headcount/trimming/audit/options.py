"""The options of an audit, apart from its inputs (model and text)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headcount.core.progress import Progress, silent
from headcount.trimming.audit.schema import Metric


@dataclass(frozen=True)
class AuditOptions:
    """The resolved options of one audit, passed to ``run_audit`` and the gathering passes.

    metric: see ``run.audit``. seed: for label and direction draws. dtype: of matrix products (``None``: the model's
    own). name: the model's name in the record. progress: progress callback.

    Example:
        >>> AuditOptions(metric="output").seed
        0
    """

    metric: Metric = "fisher"
    seed: int = 0
    dtype: torch.dtype | None = None
    name: str = "model"
    progress: Progress = silent
