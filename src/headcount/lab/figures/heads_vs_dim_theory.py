"""Theoretical results for an n-gram with H heads of dimension d: the solver's error and the bound's constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from headcount.lab.models.positional import Position
from headcount.lab.train import start
from headcount.lags.schemes import Array
from headcount.lags.solver import allocate, tails
from headcount.lags.table import HEADS, shipped
from headcount.tasks.ngram import NGram


def predicted(task: NGram, position: Position, heads: int, dim: int) -> float | None:
    """The solver's error with H uniform heads (an upper bound), relative to the root mean square of the target.

    None with fewer heads than lags. For RoPE, E_pos is that of heads that rotate all floor(d / 2) pairs, as the
    trained heads do, with logits within [-8, 8].
    """
    if heads < task.order:
        return None
    table = shipped(start.theory_name(position))
    rotated = 2 * (dim // 2)

    def row(lag: int) -> Array:
        if position == "rope" and not rotated:
            return np.ones(HEADS)
        return table.row(lag, rotated if position == "rope" else None).reaching(HEADS)[0]

    rows = [row(lag) for lag in range(task.order)]
    curve = {uniform.heads: uniform for uniform in allocate(range(task.order), heads * dim, rows, task.spectra).curve}
    return curve[heads].error


def constants(task: NGram, splits: Sequence[tuple[int, int]], exponent: float, at: int) -> tuple[float, float] | None:
    """The constants K for which K sum_k ||A_k|| (H/n)^(-p) + sum_k tail_d(A_k) is least at H = ``at``.

    This is the shape of the bound of Yu et al. with evenly divided heads, p = ``exponent``, and all factors that do
    not depend on H absorbed into K. K is unknown; the result is the range in which it would have to lie. ``splits``:
    the candidate (H, d). None if no K satisfies the condition.
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
