"""Figures of a saturation audit: ranks by layer, logit ranges by context, losses with many heads reduced at once."""

from __future__ import annotations

import math
from collections.abc import Collection

from headcount.report.charts.ranks import DASHES, SYMBOLS
from headcount.report.page.style import (
    CALIBRATED,
    KEYS,
    MUTED,
    OTHER,
    ROTATED,
    UNSEEN,
    VALUES,
    Figure,
    Part,
    axis,
    layout,
    plain,
    tick_step,
)
from headcount.report.saturation_view import BOUNDARY_TOLERANCE, ContextView, SaturationView

SERIES = (KEYS, VALUES, CALIBRATED, ROTATED, UNSEEN, OTHER)
"""Colours of contexts, which also differ by symbol and dash."""
ROW_GAP = 0.06


def saturation_figures(view: SaturationView) -> dict[str, Figure]:
    """All figures of the section by element id; there are no loss figures without a language-model head."""
    figures = {"saturation-ranks": rank_lines(view), "saturation-range": range_lines(view)}
    # Half of the layers at d/4 costs far more than all heads at their ranks, so each kind has its own axis.
    names = dict.fromkeys(loss.name for context in view.contexts for loss in context.losses)
    halves = {name for name in names if "half" in name}
    if names.keys() - halves:
        figures["saturation-heads"] = loss_marks(view, names.keys() - halves, 360, legend=True)
    if halves:
        figures["saturation-halves"] = loss_marks(view, halves, 240, legend=False)
    return figures


def rank_lines(view: SaturationView) -> Figure:
    """One row per tolerance: mean saturation rank by layer, one line per context, with the dimension in grey.

    Vertical lines mark the start of the boundary layers, in the row of the tolerance used to find them.
    """
    layers = list(range(len(view.dims)))
    count = len(view.tolerances)
    height = (1 - ROW_GAP * (count - 1)) / count
    data: list[Part] = []
    rows: Part = {}
    shapes: list[Part] = []
    for row, tolerance in enumerate(view.tolerances):
        number = "" if row == 0 else str(row + 1)
        top = 1 - row * (height + ROW_GAP)
        title = f"rank, error {tolerance:.0%}"
        rows[f"yaxis{number}"] = axis(title, domain=[max(0.0, top - height), top], rangemode="tozero")
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "all dimensions",
                "showlegend": row == 0,
                "legendgroup": "all",
                "x": layers,
                "y": list(view.dims),
                "yaxis": f"y{number}",
                "line": {"color": MUTED, "width": 1},
                "hoverinfo": "skip",
            }
        )
        for index, context in enumerate(view.contexts):
            data.append(
                _series(index, context)
                | {
                    "mode": "lines+markers",
                    "showlegend": row == 0,
                    "x": layers,
                    "y": [_rounded(ranks[row]) for ranks in context.ranks],
                    "yaxis": f"y{number}",
                    "hovertemplate": f"layer %{{x}}, context {context.context}<br>rank %{{y}} for {tolerance:.0%}"
                    "<extra></extra>",
                }
            )
            boundary_layer = context.boundary.layer if context.boundary else None
            if tolerance == BOUNDARY_TOLERANCE and boundary_layer is not None:
                line = {"color": SERIES[index % len(SERIES)], "width": 1.5, "dash": "dash"}
                ends = {"x0": boundary_layer - 0.5, "x1": boundary_layer - 0.5, "y0": 0, "y1": 1}
                shapes.append({"type": "line", "xref": "x", "yref": f"y{number} domain", "line": line} | ends)
    below = axis("layer", anchor=f"y{number}", dtick=tick_step(len(layers)), range=[-0.8, len(layers) - 0.2])
    first = rows.pop("yaxis")
    return {"data": data, "layout": layout(180 * count + 60, below, first, **rows, shapes=shapes)}


def range_lines(view: SaturationView) -> Figure:
    """Logit range of a query by context: layers thin, the mean bold, and a growth of 1 per ln L dashed.

    At the dashed slope e^(2b)/L, the source paper's bound with 2b the range and L the context, stops decreasing.
    """
    lengths = [context.context for context in view.contexts]
    means = [sum(context.ranges) / len(context.ranges) for context in view.contexts]
    data: list[Part] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "one layer",
            "legendgroup": "layers",
            "showlegend": layer == 0,
            "opacity": 0.45,
            "x": lengths,
            "y": [_rounded(context.ranges[layer]) for context in view.contexts],
            "line": {"color": MUTED, "width": 1},
            "marker": {"color": MUTED, "size": 3},
            "hovertemplate": f"layer {layer}, context %{{x}}<br>range %{{y}} logits<extra></extra>",
        }
        for layer in range(len(view.dims))
    ]
    bound = [means[0] + math.log(length / lengths[0]) for length in lengths]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "growth of 1 per ln L",
            "x": lengths,
            "y": [_rounded(number) for number in bound],
            "line": {"color": VALUES, "width": 2, "dash": "dash"},
            "hovertemplate": "context %{x}<br>growth of 1 per ln L: %{y}<extra></extra>",
        }
    )
    data.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "mean over layers",
            "x": lengths,
            "y": [_rounded(mean) for mean in means],
            "line": {"color": KEYS, "width": 3},
            "marker": {"color": KEYS, "size": 8},
            "hovertemplate": "mean over layers, context %{x}<br>range %{y} logits<extra></extra>",
        }
    )
    ticks = {"tickmode": "array", "tickvals": lengths, "ticktext": [f"{length:,}" for length in lengths]}
    below = axis("context L (tokens)", type="log", **ticks)
    return {"data": data, "layout": layout(380, below, axis("range of logits", rangemode="tozero"))}


def loss_marks(view: SaturationView, names: Collection[str], height: int, legend: bool) -> Figure:
    """Loss increases of some rank reductions with 95% intervals, one marker per context."""
    data: list[Part] = []
    for index, context in enumerate(view.contexts):
        chosen = [loss for loss in context.losses if loss.name in names]
        ends = [[_rounded(loss.low), _rounded(loss.high), _rounded(loss.mean_rank)] for loss in chosen]
        data.append(
            _series(index, context)
            | {
                "mode": "markers",
                "offsetgroup": str(index),
                "showlegend": legend,
                "x": [plain(loss.name) for loss in chosen],
                "y": [_rounded(loss.increase) for loss in chosen],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [_rounded(loss.high - loss.increase) for loss in chosen],
                    "arrayminus": [_rounded(loss.increase - loss.low) for loss in chosen],
                    "thickness": 1,
                    "width": 2,
                },
                "customdata": ends,
                "hovertemplate": f"%{{x}}, context {context.context}<br>%{{y}} nats per token"
                "<br>95%: %{customdata[0]} to %{customdata[1]}<br>mean rank %{customdata[2]}<extra></extra>",
            }
        )
    zero = {"zeroline": True, "zerolinecolor": MUTED, "zerolinewidth": 1}
    return {
        "data": data,
        "layout": layout(
            height,
            axis("ranks of queries and keys", type="category", showgrid=False),
            axis("loss increase (nats/token)", **zero),
            scattermode="group",
            scattergap=0.25,
        ),
    }


def _series(index: int, context: ContextView) -> Part:
    """The trace style of a context, used in all figures."""
    colour = SERIES[index % len(SERIES)]
    return {
        "type": "scatter",
        "name": f"context {context.context:,}",
        "legendgroup": str(context.context),
        "line": {"color": colour, "width": 2, "dash": DASHES[index % len(DASHES)]},
        "marker": {"color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 6},
    }


def _rounded(number: float) -> float | None:
    return float(f"{number:.4g}") if math.isfinite(number) else None
