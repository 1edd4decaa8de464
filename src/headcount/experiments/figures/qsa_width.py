"""Figure: the smallest embedding dimension that learns qSA, between the proved lower and the built upper bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headcount import constructions
from headcount.experiments.dimensions import lower_bounds
from headcount.experiments.figure import BLUE, GREEN, GREY, ORANGE, PINK, write_figure
from headcount.experiments.figures.base import Data, LabFigure, Scale, groups
from headcount.experiments.spec import RunSpec
from headcount.experiments.sweep import Row

NAME = "qsa-width"
TOKENS, DIM = 20, 4
BITS = 32
"""Of a number of the trained unit."""


def goal(sparsity: int) -> float:
    """The error that counts as learned, eps = 1/(4q): inside the hypothesis eps < 1/(2q) of the bounds."""
    return 1 / (4 * sparsity)


def plan(scale: Scale) -> list[RunSpec]:
    """The bare unit at every width and q; a run stops once it has learned."""
    if scale == "quick":
        sparsities, widths, seeds, steps = [1, 2, 4], [6, 10, 16, 24, 40, 64], 1, 600
    else:
        sparsities, widths, seeds, steps = list(range(1, 9)), [6, 8, 12, 16, 24, 32, 48, 64], 2, 1000
    return [
        RunSpec(
            task="qsa", tokens=TOKENS, sparsity=q, dim=DIM, width=width, residual=False, mlp=False, seed=seed,
            steps=steps, batch=64, evaluate_every=100, target=goal(q),
        )
        for q in sparsities for width in widths for seed in range(seeds)
    ]  # fmt: skip


def data(rows: Sequence[Row], folder: Path) -> Data:
    """For each q: the smallest width that a majority of the seeds learned with, each seed's own, and the bounds."""
    found: Data = []
    for (q,), group in groups(rows, "sparsity").items():
        learned = {
            width: [float(row.score if row.score is not None else math.inf) <= goal(q) for row in of_width]
            for (width,), of_width in groups(group, "width").items()
        }
        enough = [width for width, wins in learned.items() if 2 * sum(wins) > len(wins)]
        any_seed = [width for width, wins in learned.items() if any(wins)]
        found.append(
            {
                "sparsity": q, "tokens": TOKENS, "dim": DIM, "goal": goal(q), "seeds": len(learned[max(learned)]),
                "learned": min(enough, default=None), "learned_by_one_seed": min(any_seed, default=None),
                "widest_tried": max(learned), **bounds(q),
            }
        )  # fmt: skip
    return found


def bounds(q: int) -> dict[str, Any]:
    """What is impossible below, and what is built, at this q."""
    options: dict[str, Any] = {"tokens": TOKENS, "sparsity": q, "dim": DIM, "epsilon": goal(q)}
    return {
        **lower_bounds(TOKENS, q, DIM, BITS),
        "qsa-polytope": constructions.build("qsa-polytope", **options).certificate.embedding_dim,
        "qsa-certificate": constructions.build("qsa-certificate", **options).certificate.embedding_dim,
    }


def lowest(row: dict[str, Any]) -> int:
    """The largest of the lower bounds that apply."""
    return max(int(row[name]) for name in ("qsa-bits", "qsa-regions", "qsa-radon") if row.get(name) is not None)


def verdict(data: Data) -> str:
    """Where the learned dimensions lie between the bounds."""
    rows = [row for row in data if row["learned"] is not None]
    if not rows:
        return f"No width up to {data[0]['widest_tried']} learned qSA at any q."
    values = ", ".join(f"q = {row['sparsity']}: {row['learned']}" for row in rows)
    below = sum(row["learned"] < lowest(row) for row in rows)
    over = [row["learned"] / row["qsa-polytope"] for row in rows]
    failed = [str(row["sparsity"]) for row in data if row["learned"] is None]
    tail = f" No width up to {data[0]['widest_tried']} sufficed for q = {', '.join(failed)}." if failed else ""
    return (
        f"Smallest embedding dimension that learns qSA to error 1/(4q): {values}. {below} of {len(rows)} lie below a "
        f"proved lower bound; they are {min(over):.1f} to {max(over):.1f} times the d' + 2q of the built unit.{tail}"
    )


def draw(data: Data, folder: Path) -> dict[str, Path]:
    """Learned dimensions among the bounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    q = [row["sparsity"] for row in data]
    axes.plot(q, [lowest(row) for row in data], color=GREEN, label="impossible below (proved)")
    axes.plot(q, [row["qsa-polytope"] for row in data], color=ORANGE, marker="s", label="built: qsa-polytope, d' + 2q")
    axes.plot(q, [row["qsa-certificate"] for row in data], color=PINK, marker="^", label="built: qsa-certificate")
    learned = [row for row in data if row["learned"] is not None]
    axes.plot([r["sparsity"] for r in learned], [r["learned"] for r in learned], color=BLUE, marker="o",
              label="learned, most seeds")  # fmt: skip
    failed = [row for row in data if row["learned"] is None]
    axes.plot([r["sparsity"] for r in failed], [r["widest_tried"] for r in failed], linestyle="none", marker="x",
              color=GREY, label="not learned up to here")  # fmt: skip
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("sparsity q")
    axes.set_ylabel("embedding dimension m")
    axes.set_title(f"q-sparse averaging, N = {TOKENS}, d' = {DIM}, error 1/(4q)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return write_figure(figure, data, folder, NAME)


FIGURE = LabFigure(NAME, "Embedding dimensions that learn sparse averaging", plan, data, verdict, draw)
