"""Figure: the error of a layer of equal heads against the number of heads, at a fixed heads x dimension."""

from __future__ import annotations

from collections.abc import Sequence

from headcount.core.drawing import BLUE, GREEN, ORANGE, PINK, Canvas, canvas
from headcount.lab.figures.base import Data, Figure, Inputs
from headcount.lags.solver import allocate
from headcount.lags.spectra import random_spectra
from headcount.lags.table import POSITIONS, shipped

LAGS, BUDGET, WIDTH = (1, 2, 3, 4), 128, 32
"""Settings of the committed figure; ``WIDTH``: rows of the random matrix of each lag."""
COLOURS = (BLUE, ORANGE, GREEN, PINK)


def rows(lags: Sequence[int], budget: int, spectra: Sequence[Sequence[float]]) -> Data:
    """A row for each scheme and number of heads of a uniform layer with heads x dimension <= budget."""
    result: Data = []
    for position in POSITIONS:
        table = shipped(position)
        allocation = allocate(lags, budget, [table.by_dim(lag) for lag in lags], spectra)
        result += [
            {
                "position": position,
                "lags": " ".join(str(lag) for lag in lags),
                "budget": budget,
                "heads": uniform.heads,
                "dim": uniform.dim,
                "error": uniform.error,
                "best split": allocation.error,
            }
            for uniform in allocation.curve
        ]
    return result


def verdict(data: Data) -> str:
    """The best number of equal heads of each scheme, and the gain from unequal heads."""
    parts = []
    for position in dict.fromkeys(row["position"] for row in data):
        curve = [row for row in data if row["position"] == position]
        best = min(curve, key=lambda row: row["error"])
        gain = 1 - best["best split"] / best["error"]
        error = f"error {best['error']:.3g}; {gain:.1%} less with unequal heads"
        parts.append(f"{position} {best['heads']} of {best['dim']} ({error})")
    first = data[0]
    asked = f"lags {first['lags'].replace(' ', ', ')} within H d <= {first['budget']}"
    return f"Best equal heads for {asked}, by a bound on the error: {'; '.join(parts)}."


def draw(data: Data) -> Canvas:
    """Draw the error of uniform layers against their heads, and the best split of each scheme as a line."""
    figure = canvas(7.2, 4.4)
    axes = figure.subplots()
    for colour, position in zip(COLOURS, POSITIONS, strict=False):
        curve = [row for row in data if row["position"] == position]
        errors = [row["error"] for row in curve]
        # The shortest lags have separate T5 buckets, so the T5 line lies under that of learned positions.
        width = 5 if position == "t5" else 1.5
        axes.plot([row["heads"] for row in curve], errors, color=colour, linewidth=width, label=position)
        axes.axhline(curve[0]["best split"], color=colour, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"heads H, of dimension {data[0]['budget']} / H each")
    axes.set_ylabel("bound on the error")
    axes.set_title(f"A layer that extracts lags {data[0]['lags'].replace(' ', ', ')} (dotted: the best unequal split)")
    axes.legend(fontsize=8, frameon=False)
    return figure


def data(inputs: Inputs) -> Data:
    """All schemes at ``LAGS`` and ``BUDGET``, from the shipped tables and random spectra."""
    return rows(LAGS, BUDGET, random_spectra(len(LAGS), WIDTH, seed=0))


FIGURE = Figure(
    name="heads-at-fixed-size",
    title="Heads against dimensions at a fixed size",
    data=data,
    verdict=verdict,
    draw=draw,
    file="heads_at_fixed_size",
)
