"""Tables for the terminal: audit, plan and comparison at any width from 60 columns on.

A table that is too wide is cut into several below each other, each with the first column; nothing is truncated but
long names. Where stdout is no terminal there are no lines and no colours. Names and samples are never taken for markup.
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
"""Layers shown of a deep model; the rest are skipped evenly, and the table says so."""
ENERGY_SHARE = 0.99
SAMPLE_WIDTH = 38
"""Fewest characters a line for a sample that stands beside others."""


def needed(spectrum: Sequence[float], share: float = ENERGY_SHARE) -> int:
    """How many of the first directions hold ``share`` of the energy.

    >>> needed([8.0, 1.0, 1.0], 0.9)
    2
    """
    target = share * sum(spectrum)
    return next((i for i, kept in enumerate(accumulate(spectrum), 1) if kept >= target), len(spectrum))


def audit_tables(found: Audit) -> list[RenderableType]:
    """What ``headcount audit`` prints."""
    return [*audit_summary(audit_view(found.record, found.timing)), *_place(found.folder)]


def plan_tables(made: Plan) -> list[RenderableType]:
    """What ``headcount plan`` prints."""
    audit = audit_view(made.audit.record)
    plan = plan_view("plan", made.record, "rotated_keys" in audit.layers[0].spectra)
    notes = (Text(note) for note in unused_notes(made.audit.record))
    return [*plan_summary(plan, audit), *notes, *_place(made.folder)]


def evaluation_tables(found: Evaluation) -> list[RenderableType]:
    """What ``headcount evaluate`` prints."""
    return [*evaluation_summary(evaluation_view(found.record, found.timing)), *_place(found.folder)]


def _place(folder: Path | None) -> list[RenderableType]:
    return [Text(f"In {words.clean(str(folder))}")] if folder else []


def audit_summary(audit: AuditView) -> list[RenderableType]:
    """What an audit found: a sentence, and a row a layer."""
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
    """What a plan keeps: a sentence, and a row a layer."""
    shown, note = _thinned(len(plan.ranks))
    rows: list[list[str]] = []
    bars: tuple[list[float], list[float]] = ([], [])
    for index in shown:
        layer, (k_rank, v_rank) = audit.layers[index], plan.ranks[index]
        rows.append([str(index), f"{k_rank} of {layer.k_width}", f"{v_rank} of {layer.v_width}"])
        bars[0].append(k_rank / layer.k_width)
        bars[1].append(v_rank / layer.v_width)
    kept = sum(k + v for k, v in plan.ranks)
    lead = (
        f"{words.plan_words(plan)}: {kept:,} of {audit.cache_numbers_per_token:,} cached numbers per token, "
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
    """Models side by side: a table a group of measures, a row a model; then how it was measured, and the samples."""
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
    """Greedy continuations: side by side where there is room for it, else below each other."""

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
    """The headline of a run as a table: what ``demo`` ends with."""
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
