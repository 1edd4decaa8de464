"""Terminal tables of saturation and selection audits."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from headcount.probes.saturation.record import ContextRecord, Saturation
from headcount.probes.selection.capacity import KINDS
from headcount.probes.selection.run import Capacity, Selection
from headcount.report.terminal.grid import Grid
from headcount.report.terminal.saturation_bounds import bound_table, component_table, error_table

FIVE = 1
"""Index of the 5% tolerance in the record."""


def saturation_tables(audit: Saturation) -> list[RenderableType]:
    """The output of ``headcount audit --saturation``: ranks by layer, losses, boundaries, claims."""
    record = audit.record
    width = len(record.contexts[0].layers[0].heads[0].errors) - 1
    contexts = [str(context.context) for context in record.contexts]
    rows = [
        [
            str(layer),
            *(f"{context.layers[layer].mean_rank(FIVE):.1f}" for context in record.contexts),
            *(f"{context.layers[layer].mean_range:.1f}" for context in record.contexts),
        ]
        for layer in range(len(record.spec.layers))
    ]
    columns = ["layer", *(f"rank\n{context}" for context in contexts), *(f"range\n{context}" for context in contexts)]
    note = (
        f"rank: of {width}, from which on a head's output is within 5%; range: of its logits. Averages over the heads, "
        "by context."
    )
    losses = [
        [
            loss.name,
            str(context.context),
            f"{loss.mean_rank:.1f}",
            f"{loss.increase:+.4f}",
            f"{loss.low:+.4f} to {loss.high:+.4f}",
        ]
        for context in record.contexts
        for loss in context.losses
        if loss.name != "dense"
    ]
    parts: list[RenderableType] = [Grid("Saturation ranks and ranges of logits", columns, rows, note)]
    if losses:
        titles = ["all heads at once", "context", "mean\nrank", "loss increase\n(nats)", "95%"]
        parts.append(Grid("The whole model with its heads cut", titles, losses))
    parts += [Text(_boundary_words(context)) for context in record.contexts]
    beside = (error_table(record), bound_table(record), component_table(record))
    parts += [Text(""), *(table for table in beside if table is not None)]
    claims = [
        [claim.name, claim.verdict, _short(claim.estimate), _span(claim.low, claim.high)] for claim in record.claims
    ]
    claim_note = "What each number is and the rule of its verdict: saturation.json."
    parts += [Grid("Claims", ["claim", "verdict", "measured", "95%"], claims, claim_note)]
    return [*parts, Text(f"In {audit.folder}")]


def selection_tables(audit: Selection) -> list[RenderableType]:
    """The output of ``headcount audit --selection``: measured and theoretical half points."""
    record = audit.record

    def mean(layer: int, form: str, what: str, kind: str) -> str:
        heads: list[Capacity] = [getattr(head, form) for head in record.layers[layer].heads]
        return f"{sum(getattr(capacity, what)[kind] for capacity in heads) / len(heads):.1f}"

    cells = [
        (form, what, kind)
        for form in ("dense", "trimmed")
        for what in ("separable_half", "selected_half")
        for kind in KINDS
    ]
    rows = [[str(layer.layer), *(mean(layer.layer, *cell) for cell in cells)] for layer in record.layers]
    columns = ["layer", *("\n".join((form, what.removesuffix("_half"), kind)) for form, what, kind in cells)]
    note = (
        f"q at which half of the subsets of {record.context} keys can be singled out, averaged over the heads; "
        f"trimmed: keys of rank {record.trimmed_rank}. The linear program agreed on {record.agreed} of "
        f"{record.checked} subsets."
    )
    theory = [
        [str(line.dim), str(line.neighbourly), *(f"{line.gaussian_half[kind]:.1f}" for kind in KINDS)]
        for line in record.theory
    ]
    return [
        Grid("Selection capacity", columns, rows, note),
        Grid("Theory", ["dimension", "keys placed\nat best", *(f"Gaussian keys\n{kind}" for kind in KINDS)], theory),
        Text(f"In {audit.folder}"),
    ]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _boundary_words(context: ContextRecord) -> str:
    boundary = context.boundary
    if boundary is None:
        return f"context {context.context}: too few layers to look for a boundary"
    if boundary.layer is None:
        return (
            f"context {context.context}: no boundary (best step at layer {boundary.candidate}, BIC "
            f"{boundary.advantage:+.1f} over constant and line, {boundary.share:.0%} of resamples)"
        )
    return (
        f"context {context.context}: boundary at layer {boundary.layer} ({boundary.low} to {boundary.high}), rank "
        f"{boundary.before:.1f} before and {boundary.after:.1f} from it"
    )


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
