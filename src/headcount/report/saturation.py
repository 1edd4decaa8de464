"""Saturation and selection for people: tables for the terminal, a figure, and its rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from headcount import store
from headcount.audit.saturation_record import ContextRecord, Saturation
from headcount.audit.selection import KINDS
from headcount.audit.selection_run import Capacity, Selection
from headcount.report.grid import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FIVE = 1
"""Place of the 5% tolerance among the record's."""


def saturation_tables(found: Saturation) -> list[RenderableType]:
    """What ``headcount audit --saturation`` prints: ranks by layer, losses, boundaries, claims."""
    record = found.record
    width = len(record.contexts[0].layers[0].heads[0].errors) - 1
    contexts = [str(context.context) for context in record.contexts]
    rows = [
        [
            str(layer),
            *(f"{_rank(context, layer):.1f}" for context in record.contexts),
            *(f"{_range(context, layer):.1f}" for context in record.contexts),
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
    claims = [
        [claim.name, claim.verdict, _number(claim.estimate), _span(claim.low, claim.high)] for claim in record.claims
    ]
    claim_note = "What each number is and the rule of its verdict: saturation.json."
    parts += [Text(""), Grid("Claims", ["claim", "verdict", "measured", "95%"], claims, claim_note)]
    return [*parts, Text(f"In {found.folder}")]


def selection_tables(found: Selection) -> list[RenderableType]:
    """What ``headcount audit --selection`` prints: half points by layer, and theory's."""
    record = found.record

    def mean(layer: int, form: str, what: str, kind: str) -> str:
        heads: list[Capacity] = [getattr(head, form) for head in record.layers[layer].heads]
        return f"{sum(getattr(own, what)[kind] for own in heads) / len(heads):.1f}"

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
        Text(f"In {found.folder}"),
    ]


def write_files(found: Saturation) -> None:
    """Write saturation.csv (a row a context, layer and head) and saturation.svg to the run folder."""
    rows = found.to_pandas().to_csv(index=False, float_format="%.4g", lineterminator="\n")
    store.write_text(found.folder / "saturation.csv", rows)
    _draw(found, found.folder / "saturation.svg")


def _draw(found: Saturation, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    record = found.record
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, context in enumerate(record.contexts):
        style: dict[str, Any] = {"color": COLOURS[index % 7], "marker": MARKERS[index % 7], "markersize": 3}
        style["label"] = str(context.context)
        layers = range(len(context.layers))
        left.plot(layers, [_rank(context, layer) for layer in layers], **style)
        curves = [head.errors for layer in context.layers for head in layer.heads]
        right.plot([sum(column) / len(curves) for column in zip(*curves, strict=True)], **style)
    _name(left, "layer", "rank for an error of 5% (mean over heads)")
    _name(right, "rank of queries and keys", "relative output error (mean over heads)")
    right.axhline(0.05, color="#7f7f7f", linestyle="--", linewidth=0.8)
    figure.suptitle(f"{record.model}: saturation of queries and keys, by context")
    with rc_context({"svg.hashsalt": "saturation", "svg.fonttype": "none"}):
        store.write_atomic(path, lambda place: figure.savefig(place, format="svg", metadata={"Date": None}))


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.legend(title="context", frameon=False, fontsize=8)


def _rank(context: ContextRecord, layer: int) -> float:
    heads = context.layers[layer].heads
    return sum(head.ranks[FIVE] for head in heads) / len(heads)


def _range(context: ContextRecord, layer: int) -> float:
    heads = context.layers[layer].heads
    return sum(head.logit_range for head in heads) / len(heads)


def _boundary_words(context: ContextRecord) -> str:
    own = context.boundary
    if own is None:
        return f"context {context.context}: too few layers to look for a boundary"
    if own.layer is None:
        return (
            f"context {context.context}: no boundary (best step at layer {own.candidate}, BIC {own.advantage:+.1f} "
            f"over constant and line, {own.share:.0%} of resamples)"
        )
    return (
        f"context {context.context}: boundary at layer {own.layer} ({own.low} to {own.high}), rank {own.before:.1f} "
        f"before and {own.after:.1f} from it"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
