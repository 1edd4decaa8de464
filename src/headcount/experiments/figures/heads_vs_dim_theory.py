"""What theory says about an n-gram at H heads of d: the solver's error, and the bound's constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydantic

from headcount import store
from headcount.allocation.schemes import Array, Rope
from headcount.allocation.search import search
from headcount.allocation.solver import allocate, tails
from headcount.allocation.table import RANGE, shipped
from headcount.experiments import start
from headcount.models.positional import Position
from headcount.tasks.ngram import NGram

_ROPE_HEADS = 2
"""Heads of one lag that RoPE's kernels are searched for; more repeat the last."""


class _Kept(pydantic.BaseModel):
    values: dict[str, list[float]] = {}


class Kept:
    """Numbers that take seconds to compute, kept in the work folder of a figure."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "theory.json"
        self.values = store.read_json(self.file, _Kept).values if self.file.exists() else {}

    def get(self, key: str, compute: Callable[[], Sequence[float] | Array]) -> list[float]:
        """The numbers of a key; what is not known is computed and written."""
        if key not in self.values:
            self.values[key] = [float(value) for value in compute()]
            store.write_json(self.file, {"values": self.values})
        return self.values[key]


def predicted(task: NGram, position: Position, heads: int, dim: int, kept: Kept) -> float | None:
    """The solver's error of H uniform heads (an upper bound), over the target's own root mean square.

    None with fewer heads than lags. RoPE's E_pos is that of floor(d / 2) pairs, logits within [-8, 8].
    """
    if heads < task.order:
        return None
    scheme = start.theory_name(position)

    def row(lag: int) -> Array:
        if position != "rope":
            return shipped(scheme).errors(lag)
        if dim < 4:  # one pair, one frequency of one token: more than half of the weight is elsewhere
            return np.ones(32)
        return np.array(kept.get(f"rope {2 * (dim // 2)} {lag}", lambda: _rope_row(2 * (dim // 2), lag)))

    rows = [row(lag) for lag in range(task.order)]
    curve = {own.heads: own for own in allocate(range(task.order), heads * dim, rows, task.spectra).curve}
    return curve[heads].error


def _rope_row(dim: int, lag: int) -> list[float]:
    fits = search(Rope(64, RANGE / 2, dim), lag, _ROPE_HEADS)
    errors = [fit.error for fit in fits]
    return errors + errors[-1:] * (32 - len(errors))


def constants(task: NGram, splits: Sequence[tuple[int, int]], exponent: float, at: int) -> tuple[float, float] | None:
    """The constants K for which K sum_k ||A_k|| (H/n)^(-p) + sum_k tail_d(A_k) is least at H = ``at``.

    The shape of the bound of Yu et al. with heads dealt evenly, p = ``exponent`` and all that does not depend on H in
    K, which is unknown: this says what K would have to be, not what it is. ``splits``: the (H, d) to choose from.
    None where no K will do.
    """
    norms = [tails(spectrum) for spectrum in task.spectra]
    shapes = {
        heads: (
            sum(float(rest[0]) for rest in norms) * (heads / task.order) ** -exponent,
            sum(float(rest[min(dim, task.dim)]) for rest in norms),
        )
        for heads, dim in splits
        if heads >= task.order
    }
    if at not in shapes:
        return None
    low, high = 0.0, math.inf
    for heads, (position, content) in shapes.items():
        if heads < at:
            low = max(low, (shapes[at][1] - content) / (position - shapes[at][0]))
        elif heads > at:
            high = min(high, (content - shapes[at][1]) / (shapes[at][0] - position))
    return (low, high) if low <= high else None
