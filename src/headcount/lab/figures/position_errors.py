"""Figure: E_pos, the error with which H heads isolate a lag, against the number of heads."""

from __future__ import annotations

from collections.abc import Sequence

from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, PINK, Canvas, canvas
from headcount.lab.figures.base import Data, Figure, Inputs
from headcount.lags import rotary
from headcount.lags.table import POSITIONS, shipped

LAGS = (1, 2, 3, 8, 24)
COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY)
DIMS = (8, 16, 64)
"""Rotary dimensions shown."""
_SHOWN = 12
"""Largest number of heads shown; the error does not fall further beyond it."""
GOAL = 0.1
"""The target error for which the verdict counts heads."""
_NEAR = 1e-6
"""Resolution of the search; smaller errors are drawn at this value."""
_PANELS: list[tuple[str, int | None]] = [("alibi", None), ("t5", None), ("learned", None), *(("rope", d) for d in DIMS)]


def rows(lags: Sequence[int] = LAGS) -> Data:
    """A row for each scheme, rotary dimension, lag and number of heads: E_pos and its proved lower bound."""
    result: Data = []
    for position in POSITIONS:
        table = shipped(position)
        for dim in DIMS if table.dims else (None,):
            for lag in lags:
                pairs = zip(table.errors(lag, dim=dim), table.lower(lag, dim=dim), strict=True)
                cell = {"position": position, "dim": dim, "lag": lag}
                result += [
                    cell | {"heads": heads, "error": float(error), "lower": float(lower)}
                    for heads, (error, lower) in enumerate(pairs, 1)
                ]
    return result


def verdict(data: Data) -> str:
    """The fewest heads that isolate each lag with error at most ``GOAL``, by scheme."""
    lags = list(dict.fromkeys(row["lag"] for row in data))
    parts = []
    for position, dim in _PANELS:
        panel = [row for row in data if (row["position"], row["dim"]) == (position, dim)]
        counts = []
        for lag in lags:
            enough = [row["heads"] for row in panel if row["lag"] == lag and row["error"] <= GOAL]
            counts.append(str(min(enough)) if enough else "-")
        name = position if dim is None else f"{position} of {dim} dimensions"
        parts.append(f"{name} {', '.join(counts)}")
    asked = f"at lags {', '.join(map(str, lags))}"
    return f"Fewest heads found with E_pos of at most {GOAL:g} {asked} (-: none found): {'; '.join(parts)}."


def draw(data: Data) -> Canvas:
    """Draw E_pos against heads, with one panel per scheme and rotary dimension.

    Curves of rotary heads stop where the search stops: at ``rotary.HEADS`` heads, or at an error of ``rotary.ENOUGH``.
    """
    figure = canvas(12, 6.4)
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
    return figure


def _searched(errors: Sequence[float]) -> int:
    """The largest number of rotary heads that was searched, derived from the errors."""
    return next((heads for heads, error in enumerate(errors, 1) if error <= rotary.ENOUGH), rotary.HEADS)


def data(inputs: Inputs) -> Data:
    """All schemes at ``LAGS``, from the shipped tables."""
    return rows()


FIGURE = Figure(
    name="position-errors",
    title="E_pos by heads, for each position scheme",
    data=data,
    verdict=verdict,
    draw=draw,
    file="position_errors",
)
