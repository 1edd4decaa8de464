"""``trim.json``: the contents of a trimmed folder and the plan it was made from."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from headcount.core.errors import HeadcountError
from headcount.core.store import read_json
from headcount.trimming.audit.record import unused_notes
from headcount.trimming.audit.schema import Metric
from headcount.trimming.plan.make import Allocator, LayerPlan, Plan, PlanForm

RECORD = "trim.json"


class TrimRecord(BaseModel):
    """``trim.json``; ``cache_ratio`` is relative to the dense model, ``notes`` come from the audit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    plan: str | None = None
    """``PlanRecord.digest`` of the plan; ``None`` in folders from versions that did not record it."""
    form: PlanForm
    allocator: Allocator
    metric: Metric
    cache_ratio: float
    repaired: bool
    attention_parameters: int
    attention_parameters_dense: int
    cache_numbers_per_token: int
    layers: list[LayerPlan]
    notes: list[str] = []

    @classmethod
    def of(cls, plan: Plan, *, repaired: bool) -> TrimRecord:
        """The record of a model trimmed with ``plan``."""
        return cls(
            model=plan.record.model,
            plan=plan.record.digest,
            form=plan.record.form,
            allocator=plan.record.allocator,
            metric=plan.record.metric,
            cache_ratio=plan.record.cache_ratio,
            repaired=repaired,
            attention_parameters=plan.spec.attention_params,
            attention_parameters_dense=plan.audit.record.spec.attention_params,
            cache_numbers_per_token=plan.spec.cache_numbers_per_token,
            layers=plan.record.layers,
            notes=unused_notes(plan.audit.record),
        )

    @classmethod
    def open(cls, folder: Path | str) -> TrimRecord:
        """Read the record of a trimmed folder; the error names a missing or invalid file."""
        path = Path(folder) / RECORD
        if not path.is_file():
            raise HeadcountError(f"{folder} holds no finished trimmed model", fix="run headcount trim first")
        return read_json(path, cls)
