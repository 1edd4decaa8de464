"""Making a plan from an audit, and the schema of the plan."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headcount.core.errors import HeadcountError
from headcount.core.extras import optional_imports
from headcount.core.forms import DEFAULT_FORM, trimmed_form
from headcount.core.spec import LayerSpec, ModelSpec, TrimmedFormName
from headcount.core.store import digest, open_run_folder, read_json, write_json
from headcount.trimming.audit.record import Audit, unused_notes
from headcount.trimming.audit.schema import RECORD, Metric
from headcount.trimming.plan.allocators import Columns, dropped, greedy, smallest_budget, uniform

if TYPE_CHECKING:
    import pandas as pd

Allocator = Literal["greedy", "uniform", "per-head"]
PlanForm = TrimmedFormName
PLAN = "plan.json"
PARETO_SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerPlan(_Record):
    """Ranks of one layer; with ``per-head``, how many of them belong to each KV head."""

    layer: int
    k_rank: int = Field(ge=1)
    v_rank: int = Field(ge=1)
    k_head_ranks: list[int] | None = None
    v_head_ranks: list[int] | None = None


class ParetoPoint(_Record):
    """The prediction of the same allocator for another budget."""

    cache_ratio: float
    predicted_loss_increase: float | None


class PlanRecord(_Record):
    """``plan.json``."""

    format: Literal[1] = 1
    model: str
    fingerprint: str
    audit: str
    """The audit's folder, relative to the plan's."""
    metric: Metric
    form: PlanForm
    allocator: Allocator
    multiple: int
    cache_asked: float
    cache_ratio: float
    """Numbers cached per token, divided by those of the dense model."""
    predicted_loss_increase: float | None
    """Nats per token, to second order and before any repair; available only with the Fisher metric."""
    layers: list[LayerPlan]
    pareto: list[ParetoPoint]

    @property
    def digest(self) -> str:
        """A hash of the plan except the location of its audit; trimmed models store it (``Origin.plan``)."""
        return digest(self.model_dump_json(exclude={"audit"}))


@dataclass
class Plan:
    """A plan with the audit that it was made from."""

    record: PlanRecord
    audit: Audit
    folder: Path | None = None

    @property
    def spec(self) -> ModelSpec:
        """The attention of the planned model."""
        return planned_spec(self.audit.record.spec, self.record)

    def to_pandas(self) -> pd.DataFrame:
        """The ranks, one row per layer."""
        with optional_imports():
            import pandas as pd

        return pd.DataFrame([layer.model_dump() for layer in self.record.layers]).set_index("layer")

    def _repr_html_(self) -> str:
        return str(self.to_pandas()._repr_html_())

    @classmethod
    def open(cls, folder: Path | str, audit: Path | str | None = None) -> Plan:
        """Read a plan folder and its audit (``audit``: the location of the audit, if it was moved)."""
        folder = Path(folder)
        path = folder if folder.is_file() else folder / PLAN
        record = read_json(path, PlanRecord)
        place = Path(audit) if audit is not None else (path.parent / record.audit)
        if not (place / RECORD).is_file():
            raise HeadcountError(f"the plan's audit is not at {place}", fix="say where it is with --audit")
        opened_audit = Audit.open(place)
        if opened_audit.record.fingerprint != record.fingerprint or opened_audit.record.metric != record.metric:
            raise HeadcountError(
                f"{place} is not the audit that {path} was made from", fix="say where it is with --audit"
            )
        check_ranks(record, opened_audit.record.spec)
        return cls(record, opened_audit, path.parent)


def check_ranks(record: PlanRecord, spec: ModelSpec) -> None:
    """Reject ranks that do not fit the model; the error names the layer."""
    if len(record.layers) != len(spec.layers) or [layer.layer for layer in record.layers] != list(
        range(len(spec.layers))
    ):
        raise HeadcountError(
            f"the plan lists {len(record.layers)} layers, the model has {len(spec.layers)}", fix="plan again"
        )
    for layer_plan, layer in zip(record.layers, spec.layers, strict=True):
        for side, rank, width in (
            ("k_rank", layer_plan.k_rank, layer.k_width),
            ("v_rank", layer_plan.v_rank, layer.v_width),
        ):
            if not 1 <= rank <= width:
                raise HeadcountError(
                    f"layer {layer_plan.layer}: {side} {rank} is outside [1, {width}]", fix="plan again"
                )
        heads = (
            ("k_rank", layer_plan.k_rank, layer_plan.k_head_ranks),
            ("v_rank", layer_plan.v_rank, layer_plan.v_head_ranks),
        )
        for side, rank, parts in heads:
            if parts is not None and (len(parts) != layer.n_kv_heads or sum(parts) != rank or min(parts) < 0):
                raise HeadcountError(
                    f"layer {layer_plan.layer}: head ranks {parts} do not make {side} {rank}", fix="plan again"
                )


def planned_spec(dense: ModelSpec, record: PlanRecord) -> ModelSpec:
    """The attention of the planned model; ``in_layer`` selects the form of a layer without a rotary embedding."""
    form = trimmed_form(record.form)
    layers = [
        LayerSpec(
            **layer.model_dump(exclude={"form", "k_rank", "v_rank", "o_bias"}),
            o_bias=True,
            form=form.in_layer(layer.rotary_dim > 0).name,
            k_rank=layer_plan.k_rank,
            v_rank=layer_plan.v_rank,
        )
        for layer, layer_plan in zip(dense.layers, record.layers, strict=True)
    ]
    return ModelSpec(family=dense.family, layers=tuple(layers))


def plan(
    audit: Audit,
    *,
    cache: float = 0.5,
    form: PlanForm = DEFAULT_FORM,
    allocator: Allocator = "greedy",
    multiple: int = 4,
    out: Path | str | None = None,
    overwrite: bool = False,
) -> Plan:
    """Split a cache budget over the layers and sides of an audited model.

    Args:
        audit: the audit to plan from.
        cache: fraction of the dense model's cached numbers to keep, in (0, 1].
        form: ``fast`` or ``small`` (see ``headcount.core.forms``).
        allocator: ``greedy`` over the joint spectra of all layers and sides, ``uniform`` shares, or ``per-head``
            (greedy over the spectra of individual KV heads, which then have separate latents).
        multiple: ranks are rounded to multiples of this.
        out: folder to write ``plan.json`` to.
        overwrite: replace a plan that was made from other inputs.

    Raises:
        HeadcountError: an infeasible budget (the error states the smallest feasible one), an encoder, invalid options.

    Example:
        >>> half = plan(found, cache=0.5)            # doctest: +SKIP
        >>> half.record.cache_ratio                  # doctest: +SKIP
        0.5
    """
    if not (isinstance(cache, int | float) and math.isfinite(cache) and 0 < cache <= 1):
        raise HeadcountError(f"a cache share of {cache} is not possible", fix="use a number above 0 and up to 1")
    asked = trimmed_form(form)
    if allocator not in ("greedy", "uniform", "per-head"):
        raise HeadcountError(f"unknown allocator {allocator!r}", fix="use greedy, uniform or per-head")
    spec = audit.record.spec
    if not all(layer.causal for layer in spec.layers):
        raise HeadcountError(f"{audit.record.model} is an encoder and has no cache to plan", fix="plan a decoder")
    columns = _columns(audit, form, allocator)
    total = sum(map(len, columns))
    fixed = sum(asked.in_layer(layer.rotary_dim > 0).fixed_cache_numbers_per_token(layer) for layer in spec.layers)
    ranks = _ranks(columns, int(cache * total + 1e-9), multiple, allocator, fixed)
    fisher = audit.record.metric == "fisher"
    layers = _layer_plans(spec, ranks, allocator)
    points = [((fixed + sum(ranks)) / total, dropped(columns, ranks))]
    smallest = fixed + smallest_budget(columns, multiple)
    for share in PARETO_SHARES:
        if share * total >= smallest:
            others = _ranks(columns, int(share * total + 1e-9), multiple, allocator, fixed)
            points.append(((fixed + sum(others)) / total, dropped(columns, others)))
    folder = None if out is None else Path(out)
    record = PlanRecord(
        model=audit.record.model,
        fingerprint=audit.record.fingerprint,
        audit=os.path.relpath(audit.folder, folder) if audit.folder and folder else "",
        metric=audit.record.metric,
        form=form,
        allocator=allocator,
        multiple=multiple,
        cache_asked=float(cache),
        cache_ratio=points[0][0],
        predicted_loss_increase=points[0][1] / 2 if fisher else None,
        layers=layers,
        pareto=[
            ParetoPoint(cache_ratio=share, predicted_loss_increase=energy / 2 if fisher else None)
            for share, energy in sorted(set(points))
        ],
    )
    if folder is not None:
        inputs: dict[str, Any] = record.model_dump(
            include={"fingerprint", "form", "allocator", "multiple", "cache_asked", "metric"}
        )
        open_run_folder(folder, "plan", inputs, overwrite)
        write_json(folder / PLAN, record)
    return Plan(record, audit, folder)


def _columns(audit: Audit, form: str, allocator: str) -> Columns:
    """Energies by layer, keys before values (then by head, with ``per-head``)."""
    key_side = audit.key_side[form]
    columns: list[list[float]] = []
    for layer in audit.record.layers:
        for side in (key_side, "values"):
            side_record = layer.sides[side]
            columns += side_record.per_head if allocator == "per-head" else [side_record.joint]
    return columns


def _ranks(columns: Columns, budget: int, multiple: int, allocator: str, fixed: int) -> list[int]:
    return (uniform if allocator == "uniform" else greedy)(columns, budget, multiple, fixed)


def _layer_plans(spec: ModelSpec, ranks: list[int], allocator: str) -> list[LayerPlan]:
    plans, place = [], iter(ranks)
    for index, layer in enumerate(spec.layers):
        if allocator == "per-head":
            k, v = ([next(place) for _ in range(layer.n_kv_heads)] for _ in range(2))
            plans.append(LayerPlan(layer=index, k_rank=sum(k), v_rank=sum(v), k_head_ranks=k, v_head_ranks=v))
        else:
            plans.append(LayerPlan(layer=index, k_rank=next(place), v_rank=next(place)))
    return plans


def summary_json(made: Plan) -> dict[str, Any]:
    """The output of ``headcount plan --json``."""
    return made.record.model_dump() | {
        "notes": unused_notes(made.audit.record),
        "folder": str(made.folder) if made.folder else None,
    }
