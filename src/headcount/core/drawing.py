"""Creates figures and writes them as SVG and PNG, with the plotted data as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from headcount.core import store
from headcount.core.extras import optional_imports

if TYPE_CHECKING:
    import matplotlib.figure

Canvas: TypeAlias = "matplotlib.figure.Figure"
"""A matplotlib figure; matplotlib is imported when the first one is created."""

BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f"
"""Colours that colour-blind readers can distinguish (Okabe and Ito)."""


def canvas(width: float, height: float) -> Canvas:
    """An empty figure of the given size in inches, with a layout that avoids overlaps."""
    with optional_imports():
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Canvas, rows: Sequence[Mapping[str, Any]], folder: Path, name: str) -> dict[str, Path]:
    """Write ``name``.svg, .png and .csv to ``folder``; the same rows give the same bytes."""
    with optional_imports():
        from matplotlib import rc_context

    paths = {suffix: folder / f"{name}.{suffix}" for suffix in ("svg", "png", "csv")}
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        store.write_atomic(paths["svg"], lambda place: figure.savefig(place, format="svg", metadata={"Date": None}))
        store.write_atomic(paths["png"], lambda place: figure.savefig(place, format="png", dpi=150))
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    store.write_text(paths["csv"], text.getvalue())
    return paths
