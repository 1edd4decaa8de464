"""Run audit, plan, trim and evaluate in sequence, each in its own run folder; ``headcount demo`` runs this."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.core.extras import require
from headcount.core.forms import DEFAULT_FORM
from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent
from headcount.pretrained.families import read_spec
from headcount.pretrained.opening.fingerprint import fingerprint
from headcount.pretrained.opening.loading import OpenModel
from headcount.pretrained.text.calibration import KEPT_TOKENS
from headcount.trimming.audit.record import Audit
from headcount.trimming.audit.run import audit
from headcount.trimming.audit.schema import Metric
from headcount.trimming.evaluate.result import Evaluation
from headcount.trimming.evaluate.result import summary_json as evaluation_json
from headcount.trimming.evaluate.run import evaluate
from headcount.trimming.plan.make import Allocator, Plan, PlanForm, plan
from headcount.trimming.trim.card import CARD, cost_text, write_cost
from headcount.trimming.trim.run import trim

if TYPE_CHECKING:
    from headcount.report.view import ReportView


@dataclass(frozen=True)
class DemoSize:
    """The text budget and measurement sizes of a complete run."""

    tokens: int = 36_864
    kept_tokens: int = KEPT_TOKENS
    windows: int = 12
    decode: str = "8x4096"


QUICK = DemoSize(tokens=9_216, kept_tokens=14_336, windows=4, decode="4x1024")
"""For a first look: under five minutes on two cores, with less precise results."""


@dataclass(frozen=True)
class Demo:
    """Everything that a complete run produces."""

    audit: Audit
    plan: Plan
    evaluation: Evaluation
    view: ReportView
    model: Path
    report: Path

    def to_json(self) -> JsonObject:
        """What ``headcount demo --json`` prints."""
        dense, trimmed = evaluation_json(self.evaluation)["models"]
        keys = ("perplexity", "cache_bytes_per_token", "decode_tokens_per_s", "attention_parameters")
        shared = (
            *("perplexity_ratio_calibrated", "perplexity_ratio_unseen", "perplexity_ratio", "cache_ratio"),
            *("decode_speedup", "decode_speedup_same_path", "attention_speedup", "attention_speedup_same_path"),
            *("kl", "top1_agreement"),
        )
        return {
            "dense": {key: dense[key] for key in keys},
            "trimmed": {key: trimmed[key] for key in keys},
            **{key: trimmed[key] for key in shared},
            "predicted_loss_increase": self.plan.record.predicted_loss_increase,
            "audit_cost_ratio": self.audit.timing.cost_ratio if self.audit.timing else None,
            "model": str(self.model),
            "report": str(self.report),
        }


@dataclass(frozen=True)
class Choice:
    """What distinguishes one trimmed model from another."""

    cache: float = 0.5
    form: PlanForm = DEFAULT_FORM
    allocator: Allocator = "greedy"
    metric: Metric = "fisher"
    repair: bool = True

    @property
    def label(self) -> str:
        """A name for folders and tables."""
        repaired = "" if self.repair else "-unrepaired"
        return f"{self.form}-{self.allocator}-{self.cache:g}-{self.metric}{repaired}"


def make_trimmed(
    opened: OpenModel,
    out: Path,
    choice: Choice,
    size: DemoSize = DemoSize(),
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> tuple[Audit, Plan, OpenModel]:
    """Audit, plan and trim; completed stages in ``out`` are reused."""
    evidence = audit(
        opened,
        size.tokens,
        metric=choice.metric,
        kept_tokens=size.kept_tokens,
        self_text=out / "self-text",
        out=out / f"audit-{choice.metric}",
        seed=seed,
        overwrite=overwrite,
        progress=progress,
    )
    planned = plan(
        evidence,
        cache=choice.cache,
        form=choice.form,
        allocator=choice.allocator,
        out=out / f"plan-{choice.label.removesuffix('-unrepaired')}",
        overwrite=overwrite,
    )
    trimmed = trim(
        opened,
        planned,
        repair_output=choice.repair,
        out=out / f"model-{choice.label}",
        overwrite=overwrite,
        progress=progress,
    )
    made = OpenModel(choice.label, trimmed, opened.tokenizer, read_spec(trimmed), fingerprint(trimmed))
    return evidence, planned, made


def record_costs(folders: Sequence[Path | str], evaluation: Evaluation) -> list[Path]:
    """Write the results of an evaluation into the cards of its trimmed models; returns the cards that changed.

    ``folders``: the folder of each evaluated model; the first model is the baseline for the others.
    """
    from headcount.report.words import display_name

    first = evaluation.record.models[0]
    changed = []
    for index, (folder, model) in enumerate(zip(folders, evaluation.record.models, strict=True)):
        if index == 0:
            continue
        rows = [(t.kind, first.text(t.kind).perplexity, model.text(t.kind).perplexity) for t in evaluation.record.texts]
        ratio = model.cache_bytes_per_token / first.cache_bytes_per_token
        kl, agreement = model.mean("kl"), model.mean("top1_agreement")
        text = cost_text(display_name(first.name), rows, ratio=ratio, kl=kl, agreement=agreement)
        if write_cost(Path(folder), text):
            changed.append(Path(folder) / CARD)
    return changed


def demo(
    opened: OpenModel,
    out: Path,
    *,
    cache: float = 0.5,
    form: PlanForm = DEFAULT_FORM,
    allocator: Allocator = "greedy",
    metric: Metric = "fisher",
    repair: bool = True,
    size: DemoSize = DemoSize(),
    seed: int = 0,
    overwrite: bool = False,
    command: Sequence[str] = (),
    progress: Progress = silent,
) -> Demo:
    """Audit, plan, trim and evaluate one model, and write the report.

    Each stage gets a folder in ``out``, named after the options that it depends on, so runs with different options
    share stages: one audit serves every budget and form.
    """
    from headcount.report.collect import from_run, made_by
    from headcount.report.page.document import write_report

    require("jinja2", "plotly")
    choice = Choice(cache, form, allocator, metric, repair)
    label = choice.label
    evidence, planned, small = make_trimmed(opened, out, choice, size, seed, overwrite, progress)
    evaluation = evaluate(
        [opened, small],
        windows=size.windows,
        decode=size.decode,
        seed=seed,
        out=out / f"evaluation-{label}",
        overwrite=overwrite,
        progress=progress,
    )
    record_costs([opened.name, out / f"model-{label}"], evaluation)
    made = made_by([list(command)] if command else [], seed=seed, threads=_threads())
    view = from_run(evidence, {label: planned}, evaluation, made=made)
    report = write_report(out / f"report-{label}.html", view)
    result = Demo(evidence, planned, evaluation, view, out / f"model-{label}", report)
    (out / f"result-{label}.json").write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    return result


def _threads() -> int:
    import torch

    return torch.get_num_threads()
