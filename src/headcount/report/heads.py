"""Figures of the heads: what each query head does with its attention, a map a statistic."""

from __future__ import annotations

import math

from headcount.report.style import VIRIDIS, Figure, axis, colour_bar, layout, tick_step
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
    """One map a statistic: layers to the right, heads upwards."""
    heads = max(len(layer.heads) for layer in audit.layers)
    count = len(audit.layers)
    figures = {}
    for name, (_, unit, digits) in HEAD_FIELDS.items():
        z = [
            [_digits(getattr(layer.heads[h], name), digits) if h < len(layer.heads) else None for layer in audit.layers]
            for h in range(heads)
        ]
        largest = 1.0 if unit == "share" else max((cell for row in z for cell in row if cell is not None), default=1.0)
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
        figures[name] = {
            "data": [data],
            "layout": layout(
                min(620, max(210, 90 + 11 * heads)),
                axis("layer", dtick=tick_step(count), showgrid=False),
                axis("head", dtick=tick_step(heads), showgrid=False),
            ),
        }
    return figures


def _digits(number: float, digits: int) -> float | None:
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None
