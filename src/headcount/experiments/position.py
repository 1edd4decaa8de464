"""Figures: E_pos by heads, and the error of a layer by heads at a fixed heads x dimension."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headcount.allocation.solver import allocate
from headcount.allocation.table import HEADS, POSITIONS, shipped
from headcount.experiments.figure import BLUE, GREEN, GREY, ORANGE, PINK, write_figure

LAGS = (1, 2, 3, 8, 24)
COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY)
_SHOWN = 12
"""Heads in the panels: beyond, nothing falls."""
_NEAR = 1e-6
"""Errors below the search's resolution are drawn at it."""


def error_rows(lags: Sequence[int] = LAGS) -> list[dict[str, Any]]:
    """A row for each scheme, lag and number of heads: E_pos and what is proved to lie below it."""
    return [
        {"position": position, "lag": lag, "heads": heads, "error": float(error), "lower": float(lower)}
        for position in POSITIONS
        for lag in lags
        for heads, error, lower in zip(
            range(1, HEADS + 1), shipped(position).errors(lag), shipped(position).lower(lag), strict=True
        )
    ]


def size_rows(lags: Sequence[int], budget: int, spectra: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """A row for each scheme and number of heads of a uniform layer with heads x dimension <= budget."""
    rows = []
    for position in POSITIONS:
        table = shipped(position)
        found = allocate(lags, budget, [table.errors(lag) for lag in lags], spectra)
        rows += [
            {
                "position": position,
                "lags": " ".join(str(lag) for lag in lags),
                "budget": budget,
                "heads": own.heads,
                "dim": own.dim,
                "error": own.error,
                "best split": found.error,
            }
            for own in found.curve
        ]
    return rows


def draw_errors(data: Sequence[dict[str, Any]], folder: Path, name: str = "position_errors") -> dict[str, Path]:
    """Draw E_pos against heads, a panel a scheme."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for axes, position in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, POSITIONS, strict=True):
        own = [row for row in data if row["position"] == position and row["heads"] <= _SHOWN]
        for colour, lag in zip(COLOURS, dict.fromkeys(row["lag"] for row in own), strict=False):
            heads = [row["heads"] for row in own if row["lag"] == lag]
            errors, lower = ([max(row[key], _NEAR) for row in own if row["lag"] == lag] for key in ("error", "lower"))
            axes.plot(heads, errors, color=colour, marker="o", markersize=4, label=f"lag {lag}")
            axes.plot(heads, lower, color=colour, linestyle=":", linewidth=1)
        axes.set_yscale("log")
        axes.set_title(position, fontsize=10)
        axes.set_xlabel("heads H")
        axes.set_ylabel("E_pos")
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle("How well H heads single out a lag (dots: found; dotted: proved below; 1e-6: 0)")
    return write_figure(figure, data, folder, name)


def draw_sizes(data: Sequence[dict[str, Any]], folder: Path, name: str = "heads_at_fixed_size") -> dict[str, Path]:
    """Draw the error of uniform layers against their heads, and the best split of each scheme as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for colour, position in zip(COLOURS, POSITIONS, strict=False):
        own = [row for row in data if row["position"] == position]
        errors = [row["error"] for row in own]
        # The shortest lags have T5 buckets of their own, so that its line lies under that of learned positions.
        width = 5 if position == "t5" else 1.5
        axes.plot([row["heads"] for row in own], errors, color=colour, linewidth=width, label=position)
        axes.axhline(own[0]["best split"], color=colour, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"heads H, of dimension {data[0]['budget']} / H each")
    axes.set_ylabel("bound on the error")
    axes.set_title(f"A layer that extracts lags {data[0]['lags'].replace(' ', ', ')} (dotted: the best unequal split)")
    axes.legend(fontsize=8, frameon=False)
    return write_figure(figure, data, folder, name)
