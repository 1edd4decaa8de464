"""How an audit measures, apart from what it measures: model and text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headcount.core.progress import Progress, silent
from headcount.trimming.audit.schema import Metric


@dataclass(frozen=True)
class AuditOptions:
    """The options of one audit, resolved: what ``run_audit`` and the gathering passes are told.

    metric: see ``run.audit``. seed: seeds label and direction draws. dtype: of matrix products (``None``: the model's
    own). name: what the record calls the model. progress: told how far it is.

    Example:
        >>> AuditOptions(metric="output").seed
        0
    """

    metric: Metric = "fisher"
    seed: int = 0
    dtype: torch.dtype | None = None
    name: str = "model"
    progress: Progress = silent
