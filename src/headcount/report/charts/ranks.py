"""Figures of a plan: ranks by layer and side, and predicted and measured loss against the cache share."""

from __future__ import annotations

import math

from headcount.report.page.style import (
    GROUP_COLOURS,
    KEYS,
    MUTED,
    ROTATED,
    SPARE,
    TOP_LEGEND,
    VALUES,
    Figure,
    Part,
    axis,
    layout,
    plain,
    tick_step,
)
from headcount.report.view import GROUPS, AuditView, EvaluationView, PlanView
from headcount.trimming.evaluate.record import Group
from headcount.trimming.evaluate.result import geometric_mean

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon", "triangle-down")
APART = 0.007
"""Horizontal offset of the markers of calibrated (left) and unseen (right) text from their cache share."""
DASHES = ("solid", "dash", "dot", "dashdot")


def rank_bars(audit: AuditView, plan: PlanView) -> Figure:
    """Two rows of bars over the layers: key ranks above, value ranks below, with the dense width in grey."""
    layers = list(range(len(audit.layers)))
    key_colour = ROTATED if plan.key_side == "rotated_keys" else KEYS
    rows = (
        ("keys", key_colour, [pair[0] for pair in plan.ranks], [layer.k_width for layer in audit.layers], "y"),
        ("values", VALUES, [pair[1] for pair in plan.ranks], [layer.v_width for layer in audit.layers], "y2"),
    )
    data: list[Part] = []
    for name, colour, ranks, widths, row in rows:
        spare = [width - rank for rank, width in zip(ranks, widths, strict=True)]
        shared = {"type": "bar", "x": layers, "yaxis": row, "xaxis": "x", "marker": {"line": {"width": 0}}}
        data.append(
            shared
            | {
                "name": f"{name} kept",
                "y": ranks,
                "marker": {"color": colour, "line": {"width": 0}},
                "customdata": widths,
                "hovertemplate": f"layer %{{x}}<br>{name}: %{{y}} of %{{customdata}} numbers<extra></extra>",
            }
        )
        data.append(
            shared
            | {
                "name": "in the dense model only",
                "y": spare,
                "marker": {"color": SPARE, "line": {"width": 0}},
                "hoverinfo": "skip",
                "showlegend": row == "y2",
            }
        )
    return {
        "data": data,
        "layout": layout(
            480,
            axis("layer", anchor="y2", dtick=tick_step(len(layers)), range=[-0.6, len(layers) - 0.4], showgrid=False),
            axis("keys (numbers/token)", domain=[0.54, 1], rangemode="tozero"),
            yaxis2=axis("values (numbers/token)", domain=[0, 0.46], rangemode="tozero"),
            barmode="stack",
            bargap=0.15,
            legend=TOP_LEGEND | {"traceorder": "normal"},
        ),
    }


def pareto(plans: tuple[PlanView, ...], evaluation: EvaluationView | None) -> Figure:
    """Loss increase against the cache share: predicted curves, and measurements of each trimmed model.

    Measured: log(perplexity / dense perplexity), filled for the geometric mean of a group of kinds, hollow for
    each kind. The logarithmic axis omits values of zero or below; the page also offers a linear axis.
    """
    data: list[Part] = []
    drawn: set[tuple[str, str, str]] = set()
    for plan in plans:
        key = (plan.form, plan.allocator, plan.metric)
        points = [point for point in plan.pareto if point[1] is not None]
        if key in drawn or not points:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": plain(f"predicted: {plan.form}, {plan.allocator}"),
                "x": [share for share, _ in points],
                "y": [None if loss is None else float(f"{loss:.4g}") for _, loss in points],
                "line": {"color": MUTED, "width": 2, "dash": DASHES[len(drawn) % len(DASHES)]},
                "hovertemplate": "cache share %{x:.2f}<br>predicted %{y:.3g} nats per token<extra></extra>",
            }
        )
        drawn.add(key)
    if evaluation is not None:
        for index in range(len(evaluation.models) - 1):
            for group in GROUPS:
                data += _measured(evaluation, index, group)
    return {
        "data": data,
        "layout": layout(
            430,
            axis("cache per token, share of the dense model's", range=[0, 1.04], tickformat=".1f"),
            axis("loss increase (nats per token)", type="log", tickformat="~g", dtick=1, minor=_MINOR),
            hovermode="closest",
        ),
    }


_MINOR = {"ticks": "outside", "ticklen": 2, "showgrid": False, "tickcolor": SPARE}


def _measured(evaluation: EvaluationView, index: int, group: Group) -> list[Part]:
    """The points of one trimmed model on one group of kinds: the mean and each kind."""
    model = evaluation.models[index + 1]
    ratios = evaluation.ratios(model, group)
    mean = geometric_mean(ratios.values())
    if mean is None:
        return []
    colour = GROUP_COLOURS[group]
    share = _rounded(evaluation.cache_ratio(model))
    place = share + {"calibrated": -APART, "unseen": APART, "other": 0.0}[group]
    symbol = SYMBOLS[index % len(SYMBOLS)]
    name = plain(model.name)
    hover = f"{name}<br>%{{customdata}}<br>cache share {share:.3g}<br>measured %{{y:.3g}} nats per token<extra></extra>"
    shared = {"type": "scatter", "mode": "markers", "legendgroup": f"{index} {group}", "hovertemplate": hover}
    return [
        shared
        | {
            "name": f"{name}: {group}",
            "x": [place],
            "y": [_rounded(math.log(mean))],
            "customdata": [f"mean of {group} kinds"],
            "marker": {"color": colour, "symbol": symbol, "size": 12},
        },
        shared
        | {
            "name": f"{name}: {group}, each kind",
            "showlegend": False,
            "x": [place] * len(ratios),
            "y": [_rounded(math.log(ratio)) for ratio in ratios.values()],
            "customdata": [plain(kind) for kind in ratios],
            "marker": {"color": colour, "symbol": f"{symbol}-open", "size": 7},
        },
    ]


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
