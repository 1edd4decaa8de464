"""Figures of the spectra: one heat map per side with the plan's ranks, and line plots of single layers."""

from __future__ import annotations

import math

from headcount.report.page.style import (
    SIDE_COLOURS,
    SURFACE,
    VIRIDIS,
    Figure,
    Part,
    axis,
    colour_bar,
    layout,
    ten_to,
    tick_step,
)
from headcount.report.view import AuditView, PlanView
from headcount.report.words import ENERGY_UNITS, side_name

POINTS = 256
"""Maximum directions drawn per side; wider sides are subsampled evenly, including the first and last."""
DECADES = 7
"""Range of the colour scale in powers of ten below the largest energy."""


def sides_of(audit: AuditView) -> list[str]:
    """The sides of an audit, in a fixed order."""
    return [side for side in ("keys", "rotated_keys", "values") if side in audit.layers[0].spectra]


def chosen(width: int) -> list[int]:
    """Zero-based indices of the directions drawn for a side.

    >>> len(chosen(1024)), chosen(1024)[-1], chosen(3)
    (256, 1023, [0, 1, 2])
    """
    if width <= POINTS:
        return list(range(width))
    return [round(i * (width - 1) / (POINTS - 1)) for i in range(POINTS)]


def exponents(audit: AuditView) -> tuple[int, int]:
    """The range of the colour scale over all sides, as powers of ten: (lowest, highest)."""
    largest = max((e for layer in audit.layers for spectrum in layer.spectra.values() for e in spectrum), default=1.0)
    top = math.ceil(math.log10(largest)) if largest > 0 else 0
    return top - DECADES, top


def heat_map(audit: AuditView, side: str, plan: PlanView | None) -> Figure:
    """Energies of one side, with layers downwards, directions to the right, and the plan's ranks as a line."""
    low, high = exponents(audit)
    width = max(len(layer.spectra[side]) for layer in audit.layers)
    columns = chosen(width)
    rows = [layer.spectra[side] for layer in audit.layers]
    z = [[_log(row[i], low) if i < len(row) else None for i in columns] for row in rows]
    unit = ENERGY_UNITS.get(audit.metric, "energy")
    data: list[Part] = [
        {
            "type": "heatmap",
            "name": side,
            "x": [i + 1 for i in columns],
            "y": list(range(len(rows))),
            "z": z,
            "zmin": low,
            "zmax": high,
            "colorscale": VIRIDIS,
            "colorbar": colour_bar(tickvals=list(range(low, high + 1)), ticktext=_ticks(low, high)),
            "hovertemplate": f"layer %{{y}}, direction %{{x}}<br>10<sup>%{{z:.1f}}</sup> {unit}<extra></extra>",
            "hoverongaps": False,
        }
    ]
    cut = _cut(plan, side)
    if cut is not None:
        y = [-0.5, *range(len(rows)), len(rows) - 0.5]
        x = [rank + 0.5 for rank in (cut[0], *cut, cut[-1])]
        for colour, thickness in (("black", 3.5), ("white", 1.5)):
            line = {"color": colour, "width": thickness, "shape": "vhv"}
            shared = {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "hoverinfo": "skip"}
            data.append(shared | {"name": "rank kept", "showlegend": False})
    count = len(rows)
    return {
        "data": data,
        "layout": layout(
            min(720, max(230, 70 + 9 * count)),
            axis("direction, most important first", range=[0.5, width + 0.5], showgrid=False),
            axis("layer", range=[count - 0.5, -0.5], dtick=tick_step(count), showgrid=False),
        ),
    }


def spectrum_lines(audit: AuditView, plan: PlanView | None) -> tuple[Figure, list[Part]]:
    """The spectra of one layer on a logarithmic axis, and a frame per layer for the slider.

    A frame contains ``y`` (one list per side), ``shapes`` and ``annotations`` (the plan's ranks).
    """
    low, high = exponents(audit)
    sides = sides_of(audit)
    rotary = "rotated_keys" in sides
    width = max(len(spectrum) for layer in audit.layers for spectrum in layer.spectra.values())
    columns = {side: chosen(max(len(layer.spectra[side]) for layer in audit.layers)) for side in sides}
    frames: list[Part] = [
        {
            "y": [_drawn(layer.spectra[side], columns[side]) for side in sides],
            "shapes": _cut_lines(plan, sides, index),
            "annotations": _cut_labels(plan, sides, index, width),
        }
        for index, layer in enumerate(audit.layers)
    ]
    data: list[Part] = []
    for number, side in enumerate(sides):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": side_name(side, rotary),
                "x": [i + 1 for i in columns[side]],
                "y": frames[0]["y"][number],
                "line": {"color": SIDE_COLOURS[side], "width": 2, "dash": ("solid", "dash", "dot")[number]},
                "hovertemplate": "direction %{x}: %{y:.2g}<extra>" + side_name(side, rotary) + "</extra>",
            }
        )
    unit = ENERGY_UNITS.get(audit.metric, "energy")
    labels = [ten_to(exponent) for exponent in range(low, high + 1)]
    powers = [10.0**exponent for exponent in range(low, high + 1)]
    figure: Figure = {
        "data": data,
        "layout": layout(
            360,
            axis("direction, most important first", range=[0, width + 1]),
            axis(f"energy ({unit})", type="log", range=[low, high], tickvals=powers, ticktext=labels),
            hovermode="x unified",
            shapes=frames[0]["shapes"],
            annotations=frames[0]["annotations"],
        ),
    }
    return figure, frames


def _log(energy: float, low: int) -> float:
    return round(max(math.log10(energy), low), 2) if energy > 0 else float(low)


def _ticks(low: int, high: int) -> list[str]:
    labels = [ten_to(exponent) for exponent in range(low, high + 1)]
    return [f"≤{labels[0]}", *labels[1:]]


def _drawn(spectrum: tuple[float, ...], columns: list[int]) -> list[float | None]:
    """A subsampled spectrum for a logarithmic axis, which cannot show zero."""
    return [float(f"{spectrum[i]:.3g}") if i < len(spectrum) and spectrum[i] > 0 else None for i in columns]


def _cut(plan: PlanView | None, side: str) -> list[int] | None:
    """The ranks at which a plan truncates a side; ``None`` for a side that it does not project."""
    if plan is None or side not in (plan.key_side, "values"):
        return None
    return [v if side == "values" else k for k, v in plan.ranks]


def _cut_lines(plan: PlanView | None, sides: list[str], layer: int) -> list[Part]:
    """Vertical lines at the ranks where a plan truncates the sides of a layer."""
    return [
        {
            "type": "line",
            "x0": cut[layer] + 0.5,
            "x1": cut[layer] + 0.5,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"color": SIDE_COLOURS[side], "width": 1.5, "dash": "dashdot"},
        }
        for side in sides
        if (cut := _cut(plan, side)) is not None
    ]


def _cut_labels(plan: PlanView | None, sides: list[str], layer: int, width: int) -> list[Part]:
    """Labels of the vertical lines, stacked, on the side with enough space."""
    labels: list[Part] = []
    for side in sides:
        cut = _cut(plan, side)
        if cut is not None:
            left = cut[layer] > 0.6 * width
            labels.append(
                {
                    "text": f"{'values' if side == 'values' else 'keys'}: {cut[layer]} kept",
                    "x": cut[layer] + 0.5,
                    "xanchor": "right" if left else "left",
                    "y": 0.98 - 0.09 * len(labels),
                    "yref": "paper",
                    "yanchor": "top",
                    "showarrow": False,
                    "font": {"color": SIDE_COLOURS[side], "size": 12},
                    "bgcolor": SURFACE,
                }
            )
    return labels
