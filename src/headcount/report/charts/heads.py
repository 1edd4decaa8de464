"""Heat maps of the attention statistics of each query head."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headcount.report.page.style import VIRIDIS, Figure, axis, colour_bar, layout, tick_step
from headcount.report.view import AuditView

HEAD_FIELDS = {
    "entropy": ("Entropy", "nats", 3),
    "strongest": ("Weight on the strongest key", "share", 3),
    "first": ("Weight on the first token", "share", 3),
    "logit_range": ("Logit range", "logits", 3),
    "logit_peak": ("Largest |logit|", "logits", 3),
}
"""Statistic -> (title, unit, significant digits)."""


def head_maps(audit: AuditView) -> dict[str, Figure]:
    """One heat map per statistic."""
    figures = {}
    for name, (_, unit, digits) in HEAD_FIELDS.items():
        values = [[getattr(head, name) for head in layer.heads] for layer in audit.layers]
        largest = 1.0 if unit == "share" else None
        figures[name] = layer_head_map(values, unit, largest, digits)
    return figures


def layer_head_map(values: Sequence[Sequence[float]], unit: str, largest: float | None, digits: int) -> Figure:
    """Heat map of one number per query head, with layers on the x axis and heads on the y axis.

    ``largest``: upper end of the colour scale, by default the maximum. Layers may differ in their number of heads.
    """
    heads = max(map(len, values))
    count = len(values)
    z = [[_digits(row[h], digits) if h < len(row) else None for row in values] for h in range(heads)]
    if largest is None:
        largest = max((cell for row in z for cell in row if cell is not None), default=1.0)
    data = {
        "type": "heatmap",
        "x": list(range(count)),
        "y": list(range(heads)),
        "z": z,
        "colorscale": VIRIDIS,
        "zmin": 0,
        "zmax": largest,
        "colorbar": colour_bar(),
        "hovertemplate": f"layer %{{x}}, head %{{y}}<br>%{{z:.3g}} {unit}<extra></extra>",
        "hoverongaps": False,
        "xgap": 0.5,
        "ygap": 0.5,
    }
    return {
        "data": [data],
        "layout": layout(
            min(620, max(210, 90 + 11 * heads)),
            axis("layer", dtick=tick_step(count), showgrid=False),
            axis("head", dtick=tick_step(heads), showgrid=False),
        ),
    }


def _digits(number: float, digits: int) -> float | None:
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None
