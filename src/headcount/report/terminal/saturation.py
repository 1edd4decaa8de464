"""Saturation and selection for people: tables for the terminal, a figure, and its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from headcount.probes.saturation.record import ContextRecord, Saturation, component_counts, mean_errors
from headcount.probes.selection.capacity import KINDS
from headcount.probes.selection.run import Capacity, Selection
from headcount.report.terminal.grid import Grid
from headcount.report.terminal.saturation_bounds import bound_table, component_table, error_table
from headcount.report.words import display_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f", "#e69f00", "#56b4e9")
GREY = "#7f7f7f"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SHORTENED = ("logit_range", "output_rms", "energy_rank", "energy_error")
"""Columns of heads that the CSV has to four digits."""
FIVE = 1
"""Place of the 5% tolerance among the record's."""
LINEAR_NATS = 0.1
"""Loss increases are drawn on a linear scale up to this, on a logarithmic one beyond."""


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
    beside = (error_table(record), bound_table(record), component_table(record))
    parts += [Text(""), *(table for table in beside if table is not None)]
    claims = [
        [claim.name, claim.verdict, _short(claim.estimate), _span(claim.low, claim.high)] for claim in record.claims
    ]
    claim_note = "What each number is and the rule of its verdict: saturation.json."
    parts += [Grid("Claims", ["claim", "verdict", "measured", "95%"], claims, claim_note)]
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


def figure_rows(found: Saturation) -> list[dict[str, Any]]:
    """The numbers of ``saturation.json`` as rows of one table; ``part`` says what a row is.

    ``head``: ranks and range of logits of one head at one context. ``error``: the relative output error at the rank in
    ``name``, averaged over all heads, and the absolute one. ``bound``: medians over rows at the rank in ``name`` (see
    ``BoundRecord``). ``components``: a count's mean over heads, smallest and largest (see ``ComponentCounts``).
    ``loss``: the increase in nats per token with its 95% interval. ``boundary``: the best step with its interval, in
    ``layer`` too where it is a boundary. ``claim``: estimate, interval and verdict.
    """
    rows: list[dict[str, Any]] = []
    for row in found.to_pandas().to_dict("records"):
        measured = {name: _short(row[name]) for name in SHORTENED if name in row}
        rows.append({"part": "head", **row, **measured})
    for context in found.record.contexts:
        shared = {"context": context.context}
        for error in mean_errors(context):
            pair = {"value": _short(error.relative), "absolute": _short(error.absolute)}
            rows.append({"part": "error", **shared, "name": error.rank, **pair})
        for bound in context.bounds:
            rows.append({"part": "bound", **shared, "name": bound.rank, **bound.model_dump(exclude={"rank"})})
        counts = component_counts(found.record, context)
        for name, spread in (asdict(counts) if counts else {}).items():
            rows.append({"part": "components", **shared, "name": name, **_measured(*spread.values())})
        for loss in context.losses:
            if loss.name != "dense":
                rows.append(
                    {"part": "loss", **shared, "name": loss.name, **_measured(loss.increase, loss.low, loss.high)}
                )
        step = context.boundary
        if step is not None:
            said = {"layer": step.layer, "verdict": "no boundary" if step.layer is None else "boundary"}
            rows.append({"part": "boundary", **shared, **said, **_measured(step.candidate, step.low, step.high)})
    for claim in found.record.claims:
        own = _measured(claim.estimate, claim.low, claim.high)
        rows.append({"part": "claim", "name": claim.name, **own, "verdict": claim.verdict})
    return rows


def draw(found: Saturation) -> Figure:
    """The figure: ranks by layer at each tolerance above; errors by rank, ranges of logits and losses below."""
    from matplotlib.figure import Figure

    record = found.record
    columns = max(3, len(record.tolerances))
    figure = Figure(figsize=(4.4 * columns, 7.6), layout="constrained")
    panels = figure.subplots(2, columns, squeeze=False)
    for panel in [*panels[0, len(record.tolerances) :], *panels[1, 3:]]:
        panel.set_axis_off()
    for index, context in enumerate(record.contexts):
        style: dict[str, Any] = {"color": COLOURS[index % 7], "marker": MARKERS[index % 7], "markersize": 3}
        style["label"] = str(context.context)
        layers = range(len(context.layers))
        for place, _ in enumerate(record.tolerances):
            panels[0, place].plot(layers, [_rank(context, layer, place) for layer in layers], **style)
        panels[1, 0].plot([error.relative for error in mean_errors(context)], **style)
    for place, tolerance in enumerate(record.tolerances):
        _name(panels[0, place], "layer", f"rank for an error of {tolerance:.0%} (mean over heads)")
        panels[1, 0].axhline(tolerance, color=GREY, linestyle="--", linewidth=0.8)
    _name(panels[1, 0], "rank of queries and keys", "relative output error (mean over heads)")
    panels[0, 0].legend(title="context", frameon=False, fontsize=8)
    _draw_ranges(panels[1, 1], record.contexts)
    _draw_losses(panels[1, 2], record.contexts)
    figure.suptitle(f"{display_name(record.model)}: saturation of queries and keys, by context")
    return figure


def _draw_ranges(axes: Axes, contexts: Sequence[ContextRecord]) -> None:
    """Each layer thin, their mean bold, and the growth beyond which e^(2b)/L rises with L dashed."""
    lengths = [context.context for context in contexts]
    layers = range(len(contexts[0].layers))
    for layer in layers:
        axes.plot(lengths, [_range(context, layer) for context in contexts], color=GREY, alpha=0.4, linewidth=0.8)
    means = [sum(_range(context, layer) for layer in layers) / len(layers) for context in contexts]
    axes.plot(lengths, means, color=COLOURS[0], marker="o", linewidth=2, label="mean over layers")
    bound = [means[0] + math.log(length / lengths[0]) for length in lengths]
    axes.plot(lengths, bound, color=COLOURS[1], linestyle="--", label="growth of 1 per ln L")
    axes.set_xscale("log")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    _name(axes, "context L (tokens)", "range of logits")
    axes.legend(frameon=False, fontsize=8)


def _draw_losses(axes: Axes, contexts: Sequence[ContextRecord]) -> None:
    """Increase of the loss with many heads cut at once; nothing of a model without losses."""
    if not contexts[0].losses:
        axes.set_axis_off()
        return
    names = [loss.name for loss in contexts[0].losses if loss.name != "dense"]
    for index, context in enumerate(contexts):
        chosen = [loss for loss in context.losses if loss.name != "dense"]
        # Contexts stand side by side within a name's place, which is one wide.
        places = [place + 0.7 * ((index + 0.5) / len(contexts) - 0.5) for place in range(len(names))]
        ends = [[loss.increase - loss.low for loss in chosen], [loss.high - loss.increase for loss in chosen]]
        style: dict[str, Any] = {"color": COLOURS[index % 7], "marker": MARKERS[index % 7], "markersize": 4}
        axes.errorbar(places, [loss.increase for loss in chosen], ends, linestyle="", elinewidth=0.8, **style)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_yscale("symlog", linthresh=LINEAR_NATS)
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.set_ylabel(f"loss increase (nats/token, linear up to {LINEAR_NATS:g})")


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)


def _measured(value: float | None, low: float | None, high: float | None) -> dict[str, str]:
    return {"value": _short(value), "low": _short(low), "high": _short(high)}


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _rank(context: ContextRecord, layer: int, place: int = FIVE) -> float:
    heads = context.layers[layer].heads
    return sum(head.ranks[place] for head in heads) / len(heads)


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


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
