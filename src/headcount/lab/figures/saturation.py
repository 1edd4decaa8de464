"""Figure: ranks at which queries and keys saturate, by layer and context, from ``headcount audit --saturation``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, PINK, Canvas, canvas
from headcount.core.labels import display_name
from headcount.lab.figures.base import Data, Figure, Inputs, Source
from headcount.probes.saturation.record import ContextRecord, Saturation, component_counts, mean_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY, "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SHORTENED = ("logit_range", "output_rms", "energy_rank", "energy_error")
"""Columns of head rows that the CSV contains with four significant digits."""
LINEAR_NATS = 0.1
"""Loss increases are drawn on a linear scale up to this value and on a logarithmic scale beyond it."""


def rows(saturation: Saturation) -> Data:
    """The numbers of ``saturation.json`` as rows of one table; ``part`` is the type of a row.

    ``head``: ranks and range of logits of one head at one context. ``error``: the relative and the absolute output
    error at the rank in ``name``, averaged over all heads. ``bound``: medians over rows at the rank in ``name`` (see
    ``BoundRecord``). ``components``: a count's mean over heads, smallest and largest (see ``ComponentCounts``).
    ``loss``: the increase in nats per token with its 95% interval. ``boundary``: the best step with its interval, also
    in ``layer`` if it is a boundary. ``claim``: estimate, interval and verdict.
    """
    result: Data = []
    for row in saturation.head_rows():
        measured = {name: _short(row[name]) for name in SHORTENED if name in row}
        result.append({"part": "head", **row, **measured})
    for context in saturation.record.contexts:
        shared = {"context": context.context}
        for error in mean_errors(context):
            pair = {"value": _short(error.relative), "absolute": _short(error.absolute)}
            result.append({"part": "error", **shared, "name": error.rank, **pair})
        for bound in context.bounds:
            result.append({"part": "bound", **shared, "name": bound.rank, **bound.model_dump(exclude={"rank"})})
        counts = component_counts(saturation.record, context)
        for name, spread in (asdict(counts) if counts else {}).items():
            result.append({"part": "components", **shared, "name": name, **_measured(*spread.values())})
        for loss in context.losses:
            if loss.name != "dense":
                result.append(
                    {"part": "loss", **shared, "name": loss.name, **_measured(loss.increase, loss.low, loss.high)}
                )
        step = context.boundary
        if step is not None:
            said = {"layer": step.layer, "verdict": "no boundary" if step.layer is None else "boundary"}
            result.append({"part": "boundary", **shared, **said, **_measured(step.candidate, step.low, step.high)})
    for claim in saturation.record.claims:
        estimate = _measured(claim.estimate, claim.low, claim.high)
        result.append({"part": "claim", "name": claim.name, **estimate, "verdict": claim.verdict})
    return result


def verdict(saturation: Saturation) -> str:
    """The claims that hold on this model."""
    claims = saturation.record.claims
    parts = []
    for outcome in ("holds", "does not hold", "not decided"):
        names = [claim.name for claim in claims if claim.verdict == outcome]
        if names:
            parts.append(f"{outcome}: {', '.join(names)}")
    return f"Claims on saturation, {display_name(saturation.record.model)}: {'; '.join(parts) or 'none was tested'}."


def draw(saturation: Saturation) -> Canvas:
    """Top: ranks by layer at each tolerance; bottom: errors by rank, ranges of logits, and losses."""
    record = saturation.record
    columns = max(3, len(record.tolerances))
    figure = canvas(4.4 * columns, 7.6)
    panels = figure.subplots(2, columns, squeeze=False)
    for panel in [*panels[0, len(record.tolerances) :], *panels[1, 3:]]:
        panel.set_axis_off()
    for index, context in enumerate(record.contexts):
        style: dict[str, Any] = {"color": COLOURS[index % 7], "marker": MARKERS[index % 7], "markersize": 3}
        style["label"] = str(context.context)
        layers = range(len(context.layers))
        for place, _ in enumerate(record.tolerances):
            panels[0, place].plot(layers, [context.layers[layer].mean_rank(place) for layer in layers], **style)
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
    """Each layer as a thin line, the mean in bold, and dashed the growth above which e^(2b)/L increases with L."""
    lengths = [context.context for context in contexts]
    layers = range(len(contexts[0].layers))
    for layer in layers:
        axes.plot(
            lengths, [context.layers[layer].mean_range for context in contexts], color=GREY, alpha=0.4, linewidth=0.8
        )
    means = [sum(layer.mean_range for layer in context.layers) / len(layers) for context in contexts]
    axes.plot(lengths, means, color=COLOURS[0], marker="o", linewidth=2, label="mean over layers")
    bound = [means[0] + math.log(length / lengths[0]) for length in lengths]
    axes.plot(lengths, bound, color=COLOURS[1], linestyle="--", label="growth of 1 per ln L")
    axes.set_xscale("log")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    _name(axes, "context L (tokens)", "range of logits")
    axes.legend(frameon=False, fontsize=8)


def _draw_losses(axes: Axes, contexts: Sequence[ContextRecord]) -> None:
    """Increase of the loss with many heads truncated at once; empty for a record without losses."""
    if not contexts[0].losses:
        axes.set_axis_off()
        return
    names = [loss.name for loss in contexts[0].losses if loss.name != "dense"]
    for index, context in enumerate(contexts):
        chosen = [loss for loss in context.losses if loss.name != "dense"]
        # Contexts are drawn side by side within the unit width of each name.
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


def data(inputs: Inputs) -> Saturation:
    """Read the record of a finished measurement."""
    return Saturation.open(inputs.work)


FIGURE = Figure(
    name="saturation",
    title="Saturation of queries and keys",
    data=data,
    rows=rows,
    verdict=verdict,
    draw=draw,
    source=Source("headcount audit demo --saturation", Path("headcount-runs/demo/saturation")),
)
