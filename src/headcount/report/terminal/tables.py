"""Tables for the terminal: audit, plan and comparison at any width of at least 60 columns.

A table that is too wide is split into several stacked tables that repeat the first column; only long names are
truncated. If stdout is not a terminal, tables have no lines or colours. Names and samples are never parsed as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headcount.report import words
from headcount.report.collect import audit_view, evaluation_view, plan_view
from headcount.report.page.headline import tiles
from headcount.report.terminal.grid import GAP, Grid, shortened
from headcount.report.view import AuditView, EvaluationView, LayerView, PlanView, ReportView
from headcount.trimming.audit.record import Audit, unused_notes
from headcount.trimming.evaluate.result import Evaluation
from headcount.trimming.plan.make import Plan

MOST_ROWS = 48
"""Maximum number of layers shown; deeper models are subsampled evenly, which the table notes."""
ENERGY_SHARE = 0.99
SAMPLE_WIDTH = 38
"""Minimum line width of samples shown side by side."""


def needed(spectrum: Sequence[float], share: float = ENERGY_SHARE) -> int:
    """Number of leading directions that hold ``share`` of the energy.

    >>> needed([8.0, 1.0, 1.0], 0.9)
    2
    """
    target = share * sum(spectrum)
    return next((i for i, energy in enumerate(accumulate(spectrum), 1) if energy >= target), len(spectrum))


def audit_tables(audit: Audit) -> list[RenderableType]:
    """The output of ``headcount audit``."""
    return [*audit_summary(audit_view(audit.record, audit.timing)), *_place(audit.folder)]


def plan_tables(made: Plan) -> list[RenderableType]:
    """The output of ``headcount plan``."""
    audit = audit_view(made.audit.record)
    plan = plan_view("plan", made.record, "rotated_keys" in audit.layers[0].spectra)
    notes = (Text(note) for note in unused_notes(made.audit.record))
    return [*plan_summary(plan, audit), *notes, *_place(made.folder)]


def evaluation_tables(evaluation: Evaluation) -> list[RenderableType]:
    """The output of ``headcount evaluate``."""
    return [*evaluation_summary(evaluation_view(evaluation.record, evaluation.timing)), *_place(evaluation.folder)]


def _place(folder: Path | None) -> list[RenderableType]:
    return [Text(f"In {words.clean(str(folder))}")] if folder else []


def audit_summary(audit: AuditView) -> list[RenderableType]:
    """The results of an audit: a summary and one row per layer."""
    rotary = "rotated_keys" in audit.layers[0].spectra
    sides = [side for side in ("keys", "rotated_keys", "values") if side in audit.layers[0].spectra]
    heads = ("entropy", "strongest", "first", "logit_range")
    shown, note = _thinned(len(audit.layers))
    rows = []
    for index in shown:
        layer = audit.layers[index]
        spectra = (layer.spectra[side] for side in sides)
        rows.append(
            [
                str(index),
                *(f"{needed(spectrum)}/{len(spectrum)}" for spectrum in spectra),
                *(_head_mean(layer, name) for name in heads),
            ]
        )
    columns = ["layer", *(_side_title(side, rotary) for side in sides)]
    columns += ["entropy\n(nats)", "strongest\nkey", "first\ntoken", "logit\nrange"]
    cost = ""
    if audit.seconds is not None:
        ratio = f", {words.value(audit.cost_ratio, 'ratio')} times a plain forward pass" if audit.cost_ratio else ""
        cost = f" It took {words.value(audit.seconds, 'rate')} s{ratio}."
    explained = (
        f"Keys and values: how many directions hold {ENERGY_SHARE:.0%} of the energy"
        f"{' (keys before and after rotation)' if rotary else ''}. Heads: averages over the layer; "
        "strongest key and first token are shares of a query's attention." + note
    )
    lead = f"{audit.model}. {words.attention_words(audit)} {words.done_words(audit, None)}{cost}"
    notes = (Text(note) for note in audit.notes)
    return [Text(lead), Text(""), Grid("What attention uses", columns, rows, explained), *notes]


def plan_summary(plan: PlanView, audit: AuditView) -> list[RenderableType]:
    """The ranks of a plan: a summary and one row per layer."""
    shown, note = _thinned(len(plan.ranks))
    rows: list[list[str]] = []
    bars: tuple[list[float], list[float]] = ([], [])
    for index in shown:
        layer, (k_rank, v_rank) = audit.layers[index], plan.ranks[index]
        rows.append([str(index), f"{k_rank} of {layer.k_width}", f"{v_rank} of {layer.v_width}"])
        bars[0].append(k_rank / layer.k_width)
        bars[1].append(v_rank / layer.v_width)
    kept_numbers = sum(k + v for k, v in plan.ranks)
    lead = (
        f"{words.plan_words(plan)}: {kept_numbers:,} of {audit.cache_numbers_per_token:,} cached numbers per token, "
        f"in multiples of {plan.multiple}."
    )
    title = f"Numbers kept per token, by {plan.allocator} allocation"
    return [
        Text(lead),
        Text(words.prediction_words(plan, None, None)),
        Text(""),
        Grid(title, ["layer", "keys", "values"], rows, note.strip(), (None, *bars)),
    ]


def evaluation_summary(evaluation: EvaluationView) -> list[RenderableType]:
    """A model comparison: one table per group of measures with one row per model, then notes and samples."""
    parts: list[RenderableType] = []
    groups = dict.fromkeys(measure.group for measure in evaluation.measures)
    for group in groups:
        measures = [measure for measure in evaluation.measures if measure.group == group]
        columns, cells = ["model"], [[model.name] for model in evaluation.models]
        for measure in measures:
            columns.append("\n".join(shortened(line, 16) for line in measure.short.split("\n")))
            first = measure.values[0]
            for index, number in enumerate(measure.values):
                text = words.value(number, measure.form)
                if measure.compared and len(evaluation.models) > 1:
                    known = index and number is not None and first
                    text += f"  {words.times(number / first):>6}" if known and number and first else " " * 8
                cells[index].append(text)
        parts.append(Grid(group, columns, cells))
    notes = (Text(note, style="dim") for note in evaluation.notes)
    return [*parts, *notes, Text(""), Samples(evaluation)]


@dataclass(frozen=True)
class Samples:
    """Greedy continuations, side by side if the width allows, otherwise stacked."""

    evaluation: EvaluationView

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        models = self.evaluation.models
        if not any(model.sample for model in models):
            return
        yield Text("Greedy samples", style="bold")
        if self.evaluation.prompt:
            yield Text(f"prompt: {self.evaluation.prompt}", style="dim")
        width = options.max_width // len(models) - GAP
        if width < SAMPLE_WIDTH:
            for model in models:
                yield Text(model.name, style="bold")
                yield Padding(Text(model.sample.strip()), (0, 0, 1, 2), expand=False)
            return
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        for model in models:
            table.add_column(Text(shortened(model.name, width)), width=width)
        table.add_row(*(Text(model.sample.strip()) for model in models))
        yield table
        yield Text("")


def run_summary(view: ReportView) -> list[RenderableType]:
    """The headline of a run as a table, printed at the end of ``demo``."""
    rows = [[tile.label, tile.number, tile.detail] for tile in tiles(view)]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, GAP, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for label, number, detail in rows:
        table.add_row(Text(label), Text(number, style="bold"), Text(detail, style="dim"))
    return [table]


def _thinned(count: int) -> tuple[list[int], str]:
    step = -(-count // MOST_ROWS)
    if step == 1:
        return list(range(count)), ""
    return list(range(0, count, step)), f" One layer in {step} is shown; --json has all {count}."


def _side_title(side: str, rotary: bool) -> str:
    return {"keys": "keys\nbefore", "rotated_keys": "keys\nafter"}.get(side, side) if rotary else side


def _head_mean(layer: LayerView, name: str) -> str:
    numbers: Iterable[float] = [getattr(head, name) for head in layer.heads]
    mean = sum(numbers) / len(layer.heads)
    return words.value(mean, "share") if name in ("strongest", "first") else f"{mean:.2f}"
