"""Building report views from the records of a run."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from collections.abc import Collection, Mapping, Sequence

from headcount.core.errors import HeadcountError
from headcount.core.forms import trimmed_form
from headcount.probes.saturation.record import Saturation
from headcount.probes.selection.run import Selection
from headcount.report.measures import measures, notes, setting
from headcount.report.saturation_collect import saturation_view, selection_view
from headcount.report.view import (
    AuditView,
    EvaluationView,
    HeadView,
    KindView,
    LayerView,
    MadeView,
    ModelView,
    PlanView,
    ReportView,
    TextView,
)
from headcount.report.words import clean, display_name, metric_name, without_paths
from headcount.trimming.audit.record import Audit
from headcount.trimming.audit.record import notes as audit_notes
from headcount.trimming.audit.schema import AuditRecord
from headcount.trimming.audit.schema import TimingRecord as AuditTiming
from headcount.trimming.evaluate.record import EvaluationRecord, Group, TimingRecord
from headcount.trimming.evaluate.result import Evaluation, speeds
from headcount.trimming.plan.make import Plan, PlanRecord

PACKAGES = ("headcount", "torch", "transformers", "tokenizers", "numpy", "plotly")
"""Packages whose versions a report lists, in addition to Python."""


def from_records(
    audit: AuditRecord,
    plans: Mapping[str, PlanRecord] | None = None,
    evaluation: EvaluationRecord | None = None,
    *,
    audit_timing: AuditTiming | None = None,
    timing: TimingRecord | None = None,
    made: MadeView | None = None,
    saturation: Saturation | None = None,
    selection: Selection | None = None,
) -> ReportView:
    """Combine the records of audit, plan, trim and evaluate into a report view.

    Args:
        audit: audit of the dense model.
        plans: by name of the model trimmed with it, as used in ``evaluation``.
        evaluation: evaluation record with the dense model first.
        audit_timing: cost of the audit.
        timing: speed and memory of the evaluated models, in the same order.
        made: provenance of the report, see ``made_by``.
        saturation: a saturation audit of the same model.
        selection: a selection audit of the same model.

    Raises:
        HeadcountError: a plan or a saturation or selection audit of a different model.

    Example:
        >>> view = from_records(audit.record, {"half": plan.record}, found.record)  # doctest: +SKIP
        >>> write_report("report.html", view)                            # doctest: +SKIP
    """
    plans = plans or {}
    for name, record in plans.items():
        if record.fingerprint != audit.fingerprint or len(record.layers) != len(audit.layers):
            raise HeadcountError(
                f"the plan of {name} was made for another model than the audit's, {audit.model}",
                fix="give the audit that the plan was made from",
            )
    for run in (saturation, selection):
        if run is not None and run.record.fingerprint != audit.fingerprint:
            raise HeadcountError(
                f"{run.folder} was measured on another model, {run.record.model}, than the audit, {audit.model}",
                fix="name runs of one model",
            )
    rotary = "rotated_keys" in audit.layers[0].sides
    shown = {name: display_name(name) for name in plans}
    order = list(plans)
    origins = {model.name: model.origin for model in evaluation.models if model.origin} if evaluation else {}
    repaired = {name: origin.repaired for name, origin in origins.items()}
    if evaluation is not None:
        names = [model.name for model in evaluation.models]
        shown |= dict(zip(names, distinct([display_name(name) for name in names]), strict=True))
        order.sort(key=lambda name: names.index(name) if name in names else len(names))
    plan_views = {name: plan_view(shown[name], plans[name], rotary, repaired.get(name)) for name in order}
    compared = None
    if evaluation is not None:
        calibrated = {text.kind for text in audit.texts}
        compared = evaluation_view(evaluation, timing, plan_views, calibrated_on=calibrated)
    return ReportView(
        audit=audit_view(audit, audit_timing),
        plans=tuple(plan_views.values()),
        evaluation=compared,
        made=made or MadeView(seed=evaluation.seed if evaluation else None, threads=timing.threads if timing else None),
        saturation=saturation_view(saturation) if saturation else None,
        selection=selection_view(selection) if selection else None,
    )


def from_run(
    audit: Audit,
    plans: Mapping[str, Plan] | None = None,
    evaluation: Evaluation | None = None,
    *,
    made: MadeView | None = None,
    saturation: Saturation | None = None,
    selection: Selection | None = None,
) -> ReportView:
    """``from_records`` for the objects returned by ``audit``, ``plan`` and ``evaluate``."""
    return from_records(
        audit.record,
        {name: plan.record for name, plan in (plans or {}).items()},
        evaluation.record if evaluation else None,
        audit_timing=audit.timing,
        timing=evaluation.timing if evaluation else None,
        made=made,
        saturation=saturation,
        selection=selection,
    )


def audit_view(record: AuditRecord, timing: AuditTiming | None = None) -> AuditView:
    """The report view of an audit."""
    layers = tuple(
        LayerView(
            k_width=spec.k_width,
            v_width=spec.v_width,
            spectra={side: tuple(side_spectra.joint) for side, side_spectra in layer.sides.items()},
            heads=tuple(HeadView(**head.model_dump()) for head in layer.heads),
        )
        for layer, spec in zip(record.layers, record.spec.layers, strict=True)
    )
    return AuditView(
        model=display_name(record.model),
        family=record.spec.family,
        metric=record.metric,
        context=record.context,
        tokens=record.tokens,
        seed=record.seed,
        attention_params=record.spec.attention_params,
        cache_numbers_per_token=record.spec.cache_numbers_per_token,
        layers=layers,
        texts=tuple(TextView(**text.model_dump(exclude={"control_tokens"})) for text in record.texts),
        seconds=timing.seconds if timing else None,
        cost_ratio=timing.cost_ratio if timing else None,
        notes=tuple(clean(note) for note in audit_notes(record)),
    )


def plan_view(name: str, record: PlanRecord, rotary: bool, repaired: bool | None = None) -> PlanView:
    """The report view of a plan; ``rotary``: whether the model has rotary embeddings."""
    return PlanView(
        name=name,
        form=record.form,
        allocator=record.allocator,
        metric=record.metric,
        multiple=record.multiple,
        cache_ratio=record.cache_ratio,
        predicted_loss_increase=record.predicted_loss_increase,
        ranks=tuple((layer.k_rank, layer.v_rank) for layer in record.layers),
        key_side=trimmed_form(record.form).key_side(rotary),
        pareto=tuple((point.cache_ratio, point.predicted_loss_increase) for point in record.pareto),
        repaired=repaired,
    )


def evaluation_view(
    record: EvaluationRecord,
    timing: TimingRecord | None = None,
    plans: Mapping[str, PlanView] | None = None,
    *,
    calibrated_on: Collection[str] | None = None,
) -> EvaluationView:
    """The view of an evaluation for reports and the terminal.

    ``plans``: by name of the trimmed model. ``calibrated_on``: the kinds of text used for calibration, if known; the
    record assumes the default ones.
    """
    plans = plans or {}
    record = _told(record, calibrated_on)
    ways = [speeds(timing, index) if timing else {} for index in range(len(record.models))]
    names = distinct([display_name(model.name) for model in record.models])
    models = tuple(
        ModelView(
            name=name,
            perplexity={text.kind: text.perplexity for text in model.texts},
            cache_bytes_per_token=model.cache_bytes_per_token,
            attention_params=model.spec.attention_params,
            decode_tokens_per_s=next(iter(model_speeds.values())).decode_tokens_per_s if model_speeds else None,
            how=", ".join(part for part in (_how(plans.get(model.name)), model.dtype) if part),
            sample=clean(model.sample or ""),
        )
        for name, model, model_speeds in zip(names, record.models, ways, strict=True)
    )
    return EvaluationView(
        models=models,
        kinds=tuple(
            KindView(text.kind, text.group, text.windows, record.models[0].text(text.kind).tokens, text.digest)
            for text in record.texts
        ),
        measures=measures(record, timing),
        prompt=clean(record.prompt or ""),
        notes=notes(record, timing),
        speed_setting=setting(timing.decode) if timing else "",
    )


def made_by(
    commands: Sequence[Sequence[str]], *, seed: int | None = None, threads: int | None = None, notes: Sequence[str] = ()
) -> MadeView:
    """The provenance of a report: command lines without local paths, and installed versions.

    >>> made_by([["headcount", "demo", "--out", "/tmp/run one"]]).commands
    ("headcount demo --out 'run one'",)
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    lines = tuple(clean(shlex.join([without_paths(argument) for argument in command])) for command in commands)
    return MadeView(commands=lines, seed=seed, versions=versions, threads=threads, notes=tuple(notes))


def distinct(names: list[str]) -> list[str]:
    """Names with a number appended to duplicates.

    >>> distinct(["half", "dense", "half"])
    ['half', 'dense', 'half (2)']
    """
    return [name if (n := names[: i + 1].count(name)) == 1 else f"{name} ({n})" for i, name in enumerate(names)]


def _told(record: EvaluationRecord, calibrated_on: Collection[str] | None) -> EvaluationRecord:
    """The record with printable kind names, grouped by the kinds used for calibration."""

    def group(kind: str, recorded: Group) -> Group:
        if calibrated_on is None:
            return recorded
        if kind in calibrated_on:
            return "calibrated"
        return "unseen" if recorded == "calibrated" else recorded

    texts = [
        text.model_copy(update={"kind": clean(text.kind), "group": group(text.kind, text.group)})
        for text in record.texts
    ]
    models = [
        model.model_copy(update={"texts": [text.model_copy(update={"kind": clean(text.kind)}) for text in model.texts]})
        for model in record.models
    ]
    return record.model_copy(update={"texts": texts, "models": models})


def _how(plan: PlanView | None) -> str:
    if plan is None:
        return ""
    repair = {True: ", repaired", False: ", not repaired", None: ""}
    return f"form {plan.form}, {plan.allocator} ranks, {metric_name(plan.metric)}{repair[plan.repaired]}"
