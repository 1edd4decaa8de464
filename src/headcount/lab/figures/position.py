"""Figures: E_pos by heads, and the error of a layer by heads at a fixed heads x dimension."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, PINK, write_figure
from headcount.lags import rotary
from headcount.lags.solver import allocate
from headcount.lags.table import POSITIONS, shipped

LAGS = (1, 2, 3, 8, 24)
COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY)
DIMS = (8, 16, 64)
"""Rotary dimensions that are drawn."""
_SHOWN = 12
"""Heads in the panels: beyond, nothing falls."""
_NEAR = 1e-6
"""Errors below the search's resolution are drawn at it."""
_PANELS: list[tuple[str, int | None]] = [("alibi", None), ("t5", None), ("learned", None), *(("rope", d) for d in DIMS)]


def error_rows(lags: Sequence[int] = LAGS) -> list[dict[str, Any]]:
    """A row for each scheme, rotary dimension, lag and number of heads: E_pos and what is proved to lie below it."""
    rows = []
    for position in POSITIONS:
        table = shipped(position)
        for dim in DIMS if table.dims else (None,):
            for lag in lags:
                pairs = zip(table.errors(lag, dim=dim), table.lower(lag, dim=dim), strict=True)
                cell = {"position": position, "dim": dim, "lag": lag}
                rows += [
                    cell | {"heads": heads, "error": float(error), "lower": float(lower)}
                    for heads, (error, lower) in enumerate(pairs, 1)
                ]
    return rows


def size_rows(lags: Sequence[int], budget: int, spectra: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """A row for each scheme and number of heads of a uniform layer with heads x dimension <= budget."""
    rows = []
    for position in POSITIONS:
        table = shipped(position)
        found = allocate(lags, budget, [table.by_dim(lag) for lag in lags], spectra)
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
    """Draw E_pos against heads, a panel for each scheme and rotary dimension.

    Curves of rotary heads end where the search ends: at ``rotary.HEADS`` heads, or at an error of ``rotary.ENOUGH``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for axes, (position, dim) in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, _PANELS, strict=True):
        panel = [row for row in data if (row["position"], row["dim"]) == (position, dim) and row["heads"] <= _SHOWN]
        for place, lag in enumerate(dict.fromkeys(row["lag"] for row in panel)):
            heads = [row["heads"] for row in panel if row["lag"] == lag]
            errors, lower = ([max(row[key], _NEAR) for row in panel if row["lag"] == lag] for key in ("error", "lower"))
            last = len(heads) if dim is None else _searched(errors)
            # Where curves coincide, the larger circles of the nearer lags show around the smaller ones.
            axes.plot(heads[:last], errors[:last], color=COLOURS[place], marker="o", markersize=10 - 1.7 * place,
                      linewidth=1, markerfacecolor="none", label=f"lag {lag}")  # fmt: skip
            axes.plot(heads, lower, color=COLOURS[place], linestyle=":", linewidth=1)
        axes.set_yscale("log")
        axes.set_title(position if dim is None else f"{position}, {dim} dimensions", fontsize=10)
    for axes in figure.axes[-len(DIMS) :]:
        axes.set_xlabel("heads H")
    for axes in figure.axes[:: len(DIMS)]:
        axes.set_ylabel("E_pos")
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(
        "E_pos: how well H heads single out a lag. Circles: upper bounds; dotted: lower bounds; "
        f"values below {_NEAR:g} are drawn at {_NEAR:g}.\n"
        f"The search of rotary kernels ends at {rotary.HEADS} heads or at an error of {rotary.ENOUGH:g}.",
        fontsize=11,
    )
    return write_figure(figure, data, folder, name)


def _searched(errors: Sequence[float]) -> int:
    """How many numbers of rotary heads were searched, from their errors."""
    return next((heads for heads, error in enumerate(errors, 1) if error <= rotary.ENOUGH), rotary.HEADS)


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
