"""Building a report view from run folders on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from headcount.core.errors import HeadcountError
from headcount.core.store import run_kind
from headcount.probes.saturation.record import RECORD as SATURATION
from headcount.probes.saturation.record import Saturation
from headcount.probes.selection.run import RECORD as SELECTION
from headcount.probes.selection.run import Selection
from headcount.report.collect import from_run
from headcount.report.view import MadeView, ReportView
from headcount.trimming.audit.record import Audit
from headcount.trimming.evaluate.record import ModelRecord
from headcount.trimming.evaluate.result import Evaluation
from headcount.trimming.plan.make import Plan

KINDS = ("audit", "plan", "evaluation", "saturation", "selection")
"""Kinds of run folders that a report reads; other folders are ignored."""


Run = TypeVar("Run", Saturation, Selection)


@dataclass
class _RunFolders:
    """Run folders by kind; ``named``: those listed explicitly by the user."""

    audit: list[Path] = field(default_factory=list)
    plan: list[Path] = field(default_factory=list)
    evaluation: list[Path] = field(default_factory=list)
    saturation: list[Path] = field(default_factory=list)
    selection: list[Path] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)


def from_folders(folders: Sequence[Path | str], *, made: MadeView | None = None) -> ReportView:
    """A report on run folders: audits, plans and an evaluation in any order, or a folder that contains them.

    A plan belongs to the evaluated model that was trimmed with it. For a model made before headcount recorded plans, it
    is matched by ranks, allocator and metric. If no audit is given, the audit of the plans is used. Saturation and
    selection audits in a folder are included if they are finished and measured the same model.

    Args:
        folders: outputs of ``audit`` (also with ``--saturation`` or ``--selection``), ``plan`` and ``evaluate``,
            or a folder that contains them, as written by ``demo``.
        made: provenance of the report, see ``collect.made_by``.

    Raises:
        HeadcountError: a folder without runs, more than one run of a kind other than plans, or no audit.

    Example:
        >>> view = from_folders(["headcount-runs/demo"])          # doctest: +SKIP
        >>> write_report("report.html", view)                     # doctest: +SKIP
    """
    runs = _sorted([Path(folder) for folder in folders])
    evaluation = None
    if runs.evaluation:
        evaluation = Evaluation.open(_one("evaluations", runs.evaluation))
    plans: dict[str, Plan] = {}
    for path in runs.plan:
        plan = Plan.open(path)
        models = evaluation.record.models if evaluation else []
        name = next((model.name for model in models if _is_made_by(model, plan) and model.name not in plans), None)
        if name or not evaluation or path in runs.named:
            plans[name or path.name] = plan
    audits = [Audit.open(path) for path in runs.audit]
    plan_keys = {(plan.record.fingerprint, plan.record.metric) for plan in plans.values()}
    if plans and not any(path in runs.named for path in runs.audit):
        audits = [audit for audit in audits if (audit.record.fingerprint, audit.record.metric) in plan_keys]
    if not audits and plans:
        audits = [next(iter(plans.values())).audit]
    if not audits:
        raise HeadcountError("there is no audit to report on", fix="name an audit's folder, or a plan's")
    _one("audits", [audit.folder or Path() for audit in audits])
    model = audits[0].record.fingerprint
    saturations = [
        Saturation.open(path) for path in runs.saturation if path in runs.named or (path / SATURATION).is_file()
    ]
    selections = [Selection.open(path) for path in runs.selection if path in runs.named or (path / SELECTION).is_file()]
    return from_run(
        audits[0],
        plans,
        evaluation,
        made=made,
        saturation=_of_model("saturation audits", saturations, model, runs.named),
        selection=_of_model("selection audits", selections, model, runs.named),
    )


def _of_model(what: str, runs: Sequence[Run], fingerprint: str, named: set[Path]) -> Run | None:
    """The single run of the audited model or named by the user; a run of another model is rejected later."""
    # Keyed by folder: a named folder may be inside another named folder.
    fitting = {run.folder: run for run in runs if run.record.fingerprint == fingerprint or run.folder in named}
    chosen = {place: run for place, run in fitting.items() if place in named} or fitting
    return chosen[_one(what, list(chosen))] if chosen else None


def _sorted(folders: Sequence[Path]) -> _RunFolders:
    runs = _RunFolders()
    for folder in folders:
        kind = run_kind(folder)
        if kind in KINDS:
            runs.named.add(folder)
            inside = [folder]
        elif kind is not None:
            raise HeadcountError(f"{folder} was made by {kind!r}", fix="name folders of audit, plan or evaluate")
        else:
            inside = sorted(path for path in folder.glob("*") if run_kind(path) in KINDS)
        if not inside:
            raise HeadcountError(f"{folder} holds no run of headcount", fix="name folders of audit, plan or evaluate")
        for path in inside:
            getattr(runs, str(run_kind(path))).append(path)
    return runs


def _one(what: str, paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        names = ", ".join(str(path) for path in paths[:4]) + (", ..." if len(paths) > 4 else "")
        raise HeadcountError(f"there are {len(paths)} {what}: {names}", fix="name the one to report on")
    return paths[0]


def _is_made_by(model: ModelRecord, plan: Plan) -> bool:
    if model.spec != plan.spec:
        return False
    made = model.origin
    if made is not None and made.plan is not None:
        return made.plan == plan.record.digest
    return made is None or (made.allocator, made.metric) == (plan.record.allocator, plan.record.metric)
