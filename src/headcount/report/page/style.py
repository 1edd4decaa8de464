"""Colours and axes of the figures.

Figures use the colours of the light scheme; the page replaces each by its dark counterpart in dark mode. Hues follow
the Okabe-Ito palette, which is safe for colour-blind readers, and series that must be distinguished also differ by
shape, dash or label. Heat maps use viridis in both schemes.
"""

from __future__ import annotations

import html
from typing import Any, TypedDict

SURFACE = "#ffffff"
INK, MUTED, GRID, SPARE = "#1f2328", "#57606a", "#e1e5ea", "#cfd6dd"
KEYS, ROTATED, VALUES = "#0067a5", "#7a3fb5", "#b8480a"
CALIBRATED, UNSEEN, OTHER = "#0a7a5c", "#b0307f", "#6b5e00"

DARK = {
    SURFACE: "#161b22",
    INK: "#e6edf3",
    MUTED: "#9da7b3",
    GRID: "#2b323b",
    SPARE: "#3d4650",
    KEYS: "#58b4f0",
    ROTATED: "#c9a1f7",
    VALUES: "#ff9a57",
    CALIBRATED: "#3ccfa6",
    UNSEEN: "#f58cca",
    OTHER: "#d8c74a",
}
"""The dark-mode counterpart of each colour."""

GROUP_COLOURS = {"calibrated": CALIBRATED, "unseen": UNSEEN, "other": OTHER}
SIDE_COLOURS = {"keys": KEYS, "rotated_keys": ROTATED, "values": VALUES}
VIRIDIS = [
    [position / 8, colour]
    for position, colour in enumerate(
        ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
    )
]
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

TOP_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}

Part = dict[str, Any]
"""A component of a plotly figure as plain data: a trace, an axis, a shape, a label."""


class Figure(TypedDict):
    """A plotly figure as plain data."""

    data: list[Part]
    layout: Part


def axis(title: str, **options: Any) -> Part:
    """An axis with its title (quantity and unit)."""
    return {
        "title": {"text": title, "standoff": 8},
        "gridcolor": GRID,
        "linecolor": SPARE,
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": SPARE,
        **options,
    }


def layout(height: int, xaxis: Part, yaxis: Part, **options: Any) -> Part:
    """The layout shared by all figures. Height in pixels; the width follows the page."""
    return {
        "height": height,
        "autosize": True,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "hoverlabel": {"font": {"family": "system-ui, sans-serif", "size": 12}},
        "legend": TOP_LEGEND,
        "xaxis": xaxis,
        "yaxis": yaxis,
        **options,
    }


def colour_bar(**options: Any) -> Part:
    """A narrow colour bar; its unit is stated in the figure caption."""
    return {"thickness": 10, "outlinewidth": 0, "tickfont": {"size": 11}, "x": 1.01, "xpad": 4, "ypad": 0, **options}


def ten_to(exponent: int) -> str:
    """A power of ten as text.

    >>> ten_to(-12)
    '10⁻¹²'
    """
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def plain(text: str) -> str:
    """Text escaped for plotly, which interprets a subset of HTML in labels."""
    return html.escape(text)


def tick_step(count: int) -> int:
    """Tick spacing on an axis of layers or heads, for about eight labels.

    >>> tick_step(30), tick_step(80), tick_step(6)
    (5, 10, 1)
    """
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if count / step <= 9 or step == 500)
