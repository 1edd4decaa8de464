"""The verbs in a row, on models that are opened by name: what the command line runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.core.store import digest, open_run_folder
from headcount.pretrained.families import read_spec
from headcount.pretrained.opening.loading import OpenModel, fingerprint
from headcount.pretrained.text.calibration import KEPT_TOKENS, counted_windows, own_tokens, written_blocks
from headcount.pretrained.text.texts import read_file
from headcount.trimming.audit.record import RECORD, Audit, Metric
from headcount.trimming.audit.run import check_inputs, resolve_matmul_dtype, run_audit
from headcount.trimming.evaluate.result import Evaluation
from headcount.trimming.evaluate.result import summary_json as evaluation_json
from headcount.trimming.evaluate.run import evaluate
from headcount.trimming.plan.make import Allocator, Plan, PlanForm, plan
from headcount.trimming.trim.card import CARD, cost_text, write_cost
from headcount.trimming.trim.run import trim_to_folder


def audit_model(
    opened: OpenModel,
    *,
    metric: Metric = "fisher",
    tokens: int = 36_864,
    context: int = 512,
    texts: Sequence[Path] = (),
    out: Path,
    overwrite: bool = False,
    seed: int = 0,
    matmul_dtype: str = "auto",
    kept_tokens: int = KEPT_TOKENS,
    self_text: Path | None = None,
    progress: Progress = silent,
) -> Audit:
    """Audit an opened model on the default mixture of text, or on ``texts``, into the run folder ``out``.

    The folder keeps the text that was sampled from the model, and all windows that the repair will use
    (``kept_tokens``, of which statistics are gathered on ``tokens``). ``self_text`` keeps the sampled text elsewhere,
    so that audits by several metrics share it.
    """
    if tokens < context:
        raise HeadcountError(f"{tokens} tokens are less than one window of {context}", fix="ask for more --tokens")
    scale = max(tokens, kept_tokens) / KEPT_TOKENS
    blocks = written_blocks(opened, context=context, scale=scale, texts=texts, seed=seed)
    windows = {kind: own.ids for kind, own in blocks.items()}
    spec = check_inputs(opened.model, windows, metric)
    inputs = {
        "fingerprint": opened.fingerprint,
        "metric": metric,
        "tokens": tokens,
        "context": context,
        "seed": seed,
        "kept_tokens": max(tokens, kept_tokens),
        "matmul_dtype": str(resolve_matmul_dtype(opened.model, matmul_dtype)),
        "texts": [digest(read_file(path).text) for path in texts],
    }
    folder = open_run_folder(out, "audit", inputs, overwrite)
    if (folder / RECORD).is_file():
        return Audit.open(folder)
    if not texts:
        place = folder / "self-text"
        if self_text is not None:
            sampled = {"fingerprint": opened.fingerprint, "context": context, "scale": scale, "seed": seed}
            place = open_run_folder(self_text, "self-text", sampled, overwrite)
        windows |= own_tokens(opened, context=context, scale=scale, seed=seed, folder=place, progress=progress)
    counted = counted_windows(windows, tokens // context)
    control = {kind: own.control_tokens for kind, own in blocks.items()}
    return run_audit(
        opened.model, spec, windows, counted, metric, seed, matmul_dtype, opened.name, folder, progress, control
    )


if TYPE_CHECKING:
    from headcount.report.view import ReportView


@dataclass(frozen=True)
class DemoSize:
    """How much text and time a whole run takes."""

    tokens: int = 36_864
    kept_tokens: int = KEPT_TOKENS
    windows: int = 12
    decode: str = "8x4096"


QUICK = DemoSize(tokens=9_216, kept_tokens=14_336, windows=4, decode="4x1024")
"""For a first look: under five minutes on two cores; the figures are rougher."""


@dataclass(frozen=True)
class Demo:
    """All that a whole run made."""

    audit: Audit
    plan: Plan
    evaluation: Evaluation
    view: ReportView
    model: Path
    report: Path

    def to_json(self) -> dict[str, Any]:
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
    form: PlanForm = "fast"
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
    """Audit, plan and trim; what ``out`` has already is taken from there."""
    audit = audit_model(
        opened,
        metric=choice.metric,
        tokens=size.tokens,
        kept_tokens=size.kept_tokens,
        self_text=out / "self-text",
        out=out / f"audit-{choice.metric}",
        seed=seed,
        overwrite=overwrite,
        progress=progress,
    )
    planned = plan(
        audit,
        cache=choice.cache,
        form=choice.form,
        allocator=choice.allocator,
        out=out / f"plan-{choice.label.removesuffix('-unrepaired')}",
        overwrite=overwrite,
    )
    trimmed, _ = trim_to_folder(
        opened.model,
        opened.tokenizer,
        planned,
        out / f"model-{choice.label}",
        repair_output=choice.repair,
        overwrite=overwrite,
        source=opened.source,
        progress=progress,
    )
    made = OpenModel(choice.label, trimmed, opened.tokenizer, read_spec(trimmed), fingerprint(trimmed))
    return audit, planned, made


def record_costs(folders: Sequence[Path | str], found: Evaluation) -> list[Path]:
    """Write what an evaluation measured into the cards of the trimmed models in it; the cards that were changed.

    ``folders``: where each model of the evaluation lies; the first is what the others are compared with.
    """
    from headcount.report.words import display_name

    first = found.record.models[0]
    changed = []
    for index, (folder, model) in enumerate(zip(folders, found.record.models, strict=True)):
        if index == 0:
            continue
        rows = [(t.kind, first.text(t.kind).perplexity, model.text(t.kind).perplexity) for t in found.record.texts]
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
    form: PlanForm = "fast",
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

    ``out`` gets a folder for each stage, named by what it depends on, so that runs with other options share what they
    have in common: one audit serves every budget and form.
    """
    from headcount.report.collect import from_run, made_by
    from headcount.report.page.document import write_report

    choice = Choice(cache, form, allocator, metric, repair)
    label = choice.label
    audit, planned, small = make_trimmed(opened, out, choice, size, seed, overwrite, progress)
    found = evaluate(
        [opened, small],
        windows=size.windows,
        decode=size.decode,
        seed=seed,
        out=out / f"evaluation-{label}",
        overwrite=overwrite,
        progress=progress,
    )
    record_costs([opened.name, out / f"model-{label}"], found)
    made = made_by([list(command)] if command else [], seed=seed, threads=_threads())
    view = from_run(audit, {label: planned}, found, made=made)
    report = write_report(out / f"report-{label}.html", view)
    result = Demo(audit, planned, found, view, out / f"model-{label}", report)
    (out / f"result-{label}.json").write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    return result


def _threads() -> int:
    import torch

    return torch.get_num_threads()
