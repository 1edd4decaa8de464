"""Figures of a selection audit: half points by layer with theoretical values, and heat maps of all heads."""

from __future__ import annotations

from headcount.probes.selection.capacity import KINDS
from headcount.report.charts.heads import layer_head_map
from headcount.report.page.style import CALIBRATED, KEYS, MUTED, VALUES, Figure, Part, axis, layout, tick_step
from headcount.report.saturation_view import FORMS, WHATS, SelectionView

LEAST = 0.5
"""Half points below this are drawn at this value on the logarithmic axis (0: not even single tokens)."""
WHAT_COLOURS = {"separable": KEYS, "selected": VALUES}
FORM_DASHES = {"dense": "solid", "trimmed": "dash"}
FORM_SYMBOLS = {"dense": "circle", "trimmed": "diamond-open"}
THEORY_DASHES = ("dot", "dashdot")


def selection_figures(view: SelectionView) -> dict[str, Figure]:
    """All figures of the section by element id."""
    figures = {"selection-layers": half_point_lines(view)}
    for kind in KINDS:
        largest = max(head[form, "selected", kind] for layer in view.heads for head in layer for form in FORMS)
        for form in FORMS:
            values = [[head[form, "selected", kind] for head in layer] for layer in view.heads]
            figures[f"selection-{kind}-{form}"] = layer_head_map(values, "tokens", largest or 1.0, 3)
    return figures


def half_point_lines(view: SelectionView) -> Figure:
    """One row per kind of subset: mean half point by layer, and the theoretical values for the dimensions."""
    layers = list(range(len(view.heads)))
    data: list[Part] = []
    for row, kind in enumerate(KINDS):
        shared = {"type": "scatter", "yaxis": "y" if row == 0 else f"y{row + 1}", "showlegend": row == 0}
        for what in WHATS:
            for form in FORMS:
                means = [view.mean(layer, form, what, kind) for layer in layers]
                colour = WHAT_COLOURS[what]
                data.append(
                    shared
                    | {
                        "mode": "lines+markers",
                        "name": f"{what}, {form}",
                        "legendgroup": f"{what} {form}",
                        "x": layers,
                        "y": [_drawn(mean) for mean in means],
                        "customdata": [float(f"{mean:.4g}") for mean in means],
                        "line": {"color": colour, "width": 2, "dash": FORM_DASHES[form]},
                        "marker": {"color": colour, "symbol": FORM_SYMBOLS[form], "size": 6},
                        "hovertemplate": f"layer %{{x}}, {kind}<br>{what}, {form}: %{{customdata}} tokens"
                        "<extra></extra>",
                    }
                )
        for index, line in enumerate(view.theory):
            named = (("at best", line.neighbourly, CALIBRATED), ("Gaussian", line.gaussian[kind], MUTED))
            for name, number, colour in named:
                label = f"{name}, m = {line.dim}"
                data.append(
                    shared
                    | {
                        "mode": "lines",
                        "name": label,
                        "legendgroup": label,
                        "x": [-0.5, len(layers) - 0.5],
                        "y": [_drawn(number)] * 2,
                        "customdata": [float(f"{number:.4g}")] * 2,
                        "line": {"color": colour, "width": 2, "dash": THEORY_DASHES[index % len(THEORY_DASHES)]},
                        "hovertemplate": f"{label}, {kind}: %{{customdata}} tokens<extra></extra>",
                    }
                )
    sizes = [2**power for power in range(view.largest.bit_length())]
    scale = {"type": "log", "tickmode": "array", "tickvals": [LEAST, *sizes], "ticktext": [f"≤ {LEAST}", *sizes]}
    rows = [axis(f"q, {kind}", **scale) for kind in KINDS]
    bottom, top = {"domain": [0, 0.47]}, {"domain": [0.53, 1]}
    below = axis("layer", anchor="y2", dtick=tick_step(len(layers)), range=[-0.8, len(layers) - 0.2], showgrid=False)
    return {"data": data, "layout": layout(560, below, rows[0] | top, yaxis2=rows[1] | bottom)}


def _drawn(number: float) -> float:
    return float(f"{max(number, LEAST):.4g}")
