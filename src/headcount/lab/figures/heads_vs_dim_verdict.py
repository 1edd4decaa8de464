"""The verdict of ``heads-vs-dim`` on 32 heads versus 8 and the reasons for it, as sentences with computed numbers."""

from __future__ import annotations

from dataclasses import dataclass

from headcount.lab.figures.base import Data

PAPER = 4
"""The order at which the bound of Yu et al. 2025 predicts ``CLAIMED`` heads and ``REPORTED`` heads train best."""
CLAIMED, REPORTED = 32, 8
CLOSE = 1.05
"""Errors within this factor of the best count as equally good."""
NO_LIMIT = 1e9
"""Represents infinity in tables."""


@dataclass(frozen=True)
class Best:
    """The best number of heads, its error, and the smallest and largest numbers of heads within ``CLOSE`` of it."""

    heads: int
    error: float
    low: int
    high: int

    def __str__(self) -> str:
        within = f", {self.low} to {self.high} within 5%" if self.low < self.high else ""
        return f"H = {self.heads} (error {self.error:.3f}{within})"


def best(rows: Data, key: str = "error") -> Best | None:
    """The smallest value over all numbers of heads; ties go to the fewest heads.

    >>> str(best([{"heads": h, "error": e} for h, e in ((2, 0.5), (4, 0.2), (8, 0.205))]))
    'H = 4 (error 0.200, 4 to 8 within 5%)'
    """
    known = {int(row["heads"]): float(row[key]) for row in rows if row[key] is not None}
    if not known:
        return None
    heads = min(known, key=lambda number: (known[number], number))
    near = [number for number, value in known.items() if value <= CLOSE * known[heads]]
    return Best(heads, known[heads], min(near), max(near))


def linear(data: Data, order: int, position: str, arm: str = "random") -> Data:
    """The rows of one curve on linear targets."""
    return [
        row
        for row in data
        if (row["order"], row["position"], row["arm"], row["nonlinear"]) == (order, position, arm, False)
    ]


def ratio(rows: Data, key: str = "error") -> float | None:
    """The error with ``CLAIMED`` heads divided by that with ``REPORTED``; None if either is missing."""
    known = {row["heads"]: row[key] for row in rows if row[key] is not None}
    return known[CLAIMED] / known[REPORTED] if CLAIMED in known and known.get(REPORTED) else None


def verdict(data: Data) -> str:
    """Predicted and trained optima, the comparison of 32 with 8 heads, the bound's constants, and each ablation."""
    parts = [*_optima(data), *_bound(data), *_reasons(data)]
    return " ".join(parts) if parts else "No linear run is finished, so there is nothing to compare."


def _optima(data: Data) -> list[str]:
    parts = []
    for position in ("alibi", "relative", "rope"):
        optima = []
        for order in sorted({row["order"] for row in data}):
            rows = linear(data, order, position)
            trained, predicted = best(rows), best(rows, "predicted")
            if trained:
                forecast = f"{predicted.heads}" if predicted else "none"
                optima.append(f"n = {order}: {forecast} | {trained}")
        if optima:
            parts.append(f"{position}, predicted | trained best H on n-grams at H d = 64: {'; '.join(optima)}.")
    return parts


def _bound(data: Data) -> list[str]:
    """The constants for which the bound selects 32 heads, 8 heads, or the trained optimum."""
    rows = linear(data, PAPER, "alibi")
    trained, against = best(rows), ratio(rows)
    if not trained:
        return []
    parts = []
    if against is not None:
        side = "worse" if against > CLOSE else "better" if against < 1 / CLOSE else "no different (within 5%)"
        parts.append(
            f"{CLAIMED} against {REPORTED} heads, {PAPER}-gram, ALiBi, trained: error ratio {against:.2f}, so "
            f"{CLAIMED} are {side}; solver {_shown(ratio(rows, 'predicted'))}, best layers known "
            f"{_shown(ratio(rows, 'best_known'))}."
        )
    for exponent in (1, 2, 4):
        spans = {
            row["heads"]: (row[f"bound p={exponent} from"], row[f"bound p={exponent} to"])
            for row in rows
            if row.get(f"bound p={exponent} from") is not None
        }
        asked = {heads: _span(spans.get(heads)) for heads in dict.fromkeys((REPORTED, CLAIMED, trained.heads))}
        said = ", ".join(f"{heads} heads for K {span}" for heads, span in asked.items())
        parts.append(f"The bound's shape K H^-{exponent} + tail is least at {said}.")
    parts.append("K is unknown, so the bound alone decides nothing between them.")
    free = {row["heads"]: row for row in linear(data, PAPER, "relative")}.get(CLAIMED)
    if free and free["predicted"] is not None and free["best_known"] is not None:
        parts.append(
            f"Theory lets the heads of a lag carry one content: free biases with {CLAIMED} heads have error "
            f"{free['predicted']:.3f} by the solver, {free['best_known']:.3f} in the best layer known."
        )
    return parts


def _span(span: tuple[float, float] | None) -> str:
    if span is None:
        return "none"
    return f"{span[0]:.3g} to {span[1]:.3g}" if span[1] < NO_LIMIT else f"above {span[0]:.3g}"


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _size(factor: float) -> float:
    """The factor or its inverse, whichever is at least 1."""
    return max(factor, 1 / factor)


@dataclass(frozen=True)
class _Removed:
    """A reason for the difference, the ablation that removes it, and the resulting curve."""

    reason: str
    how: str
    rows: Data
    key: str = "error"


def _reasons(data: Data) -> list[str]:
    """The effect of each ablation on the best H, on the ratio of 32 to 8 heads, and on the error."""
    base = linear(data, PAPER, "alibi")
    before = best(base)
    if not before:
        return []
    bent = [row for row in data if row["order"] == PAPER and row["nonlinear"] and row["position"] == "alibi"]
    fixed = linear(data, PAPER, "alibi", "kernels")
    removals = [
        _Removed("position scheme", "free relative biases for ALiBi", linear(data, PAPER, "relative")),
        _Removed("optimisation", "training from the best layer known", linear(data, PAPER, "alibi", "constructed")),
        _Removed("optimisation", "more steps", linear(data, PAPER, "alibi", "longer")),
        _Removed("optimisation", "trained kernels, values and outputs by least squares", base, "readout"),
        _Removed("optimisation", "best kernels fixed, the rest trained", fixed),
        _Removed("optimisation", "best kernels fixed, the rest by least squares", fixed, "readout"),
        _Removed("readout", "the reverse: adding an MLP and a nonlinear target", bent),
    ]
    parts = [f"With ALiBi from random weights the best is {before}."]
    turns: dict[str, float] = {}
    falls: dict[str, float] = {}
    old = ratio(base)
    for removal in removals:
        shared = [
            row for row in removal.rows if row[removal.key] is not None and row["heads"] in {r["heads"] for r in base}
        ]
        after = best(shared, removal.key)
        if after is None:
            continue
        there = next(row["error"] for row in base if row["heads"] == after.heads)
        falls[removal.reason] = max(falls.get(removal.reason, 0.0), there / max(after.error, 1e-6))
        new = ratio(removal.rows, removal.key)
        said = ""
        if new is not None and old is not None:
            turns[removal.reason] = max(turns.get(removal.reason, 1.0), new / old, key=_size)
            said = f"; {CLAIMED} over {REPORTED} heads {old:.2f} becomes {new:.2f}"
        parts.append(f"{removal.reason.capitalize()} ({removal.how}): best {after}, {there:.3f} before{said}.")
    return parts + _reason(turns, falls, old)


def _reason(turns: dict[str, float], falls: dict[str, float], old: float | None) -> list[str]:
    """The reason that changes the ratio of 32 to 8 heads most, and the one that changes the error most."""
    if not turns or old is None:
        return []
    order = sorted(turns, key=lambda name: -_size(turns[name]))
    largest = max(falls, key=lambda name: falls[name])
    if _size(turns[order[0]]) <= CLOSE:
        told = f"No removal changes {CLAIMED} against {REPORTED} heads by more than 5%"
    else:
        listed = ", ".join(
            f"{name} {_size(turns[name]):.2f} toward {REPORTED if turns[name] > 1 else CLAIMED}" for name in order
        )
        told = f"What turns {CLAIMED} against {REPORTED} heads most is {order[0]} (largest factors: {listed})"
    return [f"{told}; what lowers the error most is {largest} ({falls[largest]:.3g} times)."]
