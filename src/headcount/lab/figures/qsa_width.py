"""Figure: the smallest embedding dimension that learns qSA, with the constructions and bounds for the same unit.

The trained unit has one map phi for queries, keys and values: softmax(Phi Q K' Phi') Phi V with phi(x_i) in R^m a
linear map of z_i, the indicator of y_i and that of i.

- *Built.* The constructions read keys u_i, values z_i and queries w(y_i). With two maps, (0; w) for queries and (z; u)
  for keys and values, w and u share coordinates: m = d' + k, k = 2q for qsa-polytope. One map
  phi_i = (z_i; u_i; w(y_i)) needs separate coordinates for each, because every token is both a key and a query:
  m = d' + 2k, which is d' + 4q (``Certificate.single_map_dim``).
- *Impossible.* qsa-regions and qsa-radon assume that keys depend only on the position. Keys of one map may also depend
  on z and y, so these bounds do not apply. qsa-bits and qsa-bits-all hold for any map to m numbers of p bits.
- *Inputs.* For m >= d' + 2N, the number of inputs, a linear map can preserve them all.
"""

from __future__ import annotations

import math
from typing import Any

from headcount.bounds import Sizes
from headcount.bounds.gap import ONE_MAP, constructed, embedding_bounds
from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, PINK, Canvas, canvas
from headcount.lab.figures.base import Data, Figure, Inputs, Scale, Training, groups
from headcount.lab.specs.run import RunSpec

NAME = "qsa-width"
TOKENS, DIM = 20, 4
BITS = 32
"""Bits of a number of the trained unit."""
BUILT = ("qsa-polytope", "qsa-certificate")
BOUNDS = ("qsa-bits", "qsa-bits-all")
"""Both apply to one map; the larger one is used."""
POLYTOPE, CERTIFICATE = (f"{name}, one map" for name in BUILT)


def goal(sparsity: int) -> float:
    """The error that counts as learned, eps = 1/(4q): inside the hypothesis eps < 1/(2q) of the bounds."""
    return 1 / (4 * sparsity)


def plan(scale: Scale) -> list[RunSpec]:
    """The bare unit at every width and q; a run stops when it reaches the goal."""
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


def data(inputs: Inputs) -> Data:
    """For each q: the smallest widths at which a majority of the seeds, and any seed, succeed, and the bounds."""
    rows: Data = []
    for (q,), group in groups(inputs.runs, "sparsity").items():
        learned = {
            width: [float(row.score if row.score is not None else math.inf) <= goal(q) for row in of_width]
            for (width,), of_width in groups(group, "width").items()
        }
        enough = [width for width, wins in learned.items() if 2 * sum(wins) > len(wins)]
        any_seed = [width for width, wins in learned.items() if any(wins)]
        rows.append(
            {
                "sparsity": q, "tokens": TOKENS, "dim": DIM, "goal": goal(q), "seeds": len(learned[max(learned)]),
                "learned": min(enough, default=None), "learned_by_one_seed": min(any_seed, default=None),
                "widest_tried": max(learned), **theory(q),
            }
        )  # fmt: skip
    return rows


def theory(q: int) -> dict[str, Any]:
    """The lower bounds and the built dimensions at this q for a unit with one map."""
    sizes = Sizes(tokens=TOKENS, sparsity=q, dim=DIM, epsilon=goal(q), precision_bits=BITS)
    built = {f"{name}, one map": unit.certificate.single_map_dim for name, unit in constructed("qsa", sizes).items()}
    return {**embedding_bounds("qsa", sizes, ONE_MAP), **built, "inputs": DIM + 2 * TOKENS}


def bound(row: dict[str, Any]) -> int:
    """The largest lower bound that applies to one map."""
    return max(int(row[name]) for name in BOUNDS)


def verdict(data: Data) -> str:
    """How the learned dimensions compare with the built ones and the bounds."""
    rows = [row for row in data if row["learned"] is not None]
    if not rows:
        return f"No width up to {data[0]['widest_tried']} learned qSA at any q."
    values = ", ".join(f"q = {row['sparsity']}: {row['learned']}" for row in rows)
    below = sum(row["learned"] < bound(row) for row in rows)
    over = [row["learned"] / row[POLYTOPE] for row in rows]
    failed = [str(row["sparsity"]) for row in data if row["learned"] is None]
    tail = f" No width up to {data[0]['widest_tried']} sufficed for q = {', '.join(failed)}." if failed else ""
    largest = max(map(bound, rows))
    return (
        f"Smallest embedding dimension that learns qSA to error 1/(4q): {values}. They are {min(over):.1f} to "
        f"{max(over):.1f} times the d' + 4q of the built unit with one map. {below} of {len(rows)} lie below the "
        f"largest lower bound for one map ({', '.join(BOUNDS)}), which is at most {largest} here ({BITS}-bit numbers)."
        f"{tail}"
    )


def draw(data: Data) -> Canvas:
    """Learned dimensions, built dimensions and the lower bound over q."""
    figure = canvas(6.4, 4.4)
    axes = figure.subplots()
    q = [row["sparsity"] for row in data]
    axes.plot(
        q, [bound(row) for row in data], color=GREEN, label=f"impossible below: {', '.join(BOUNDS)}, {BITS}-bit numbers"
    )
    axes.plot(q, [row[POLYTOPE] for row in data], color=ORANGE, marker="s",
              label="built with one map: qsa-polytope, d' + 4q")  # fmt: skip
    axes.plot(
        q, [row[CERTIFICATE] for row in data], color=PINK, marker="^", label="built with one map: qsa-certificate"
    )
    axes.plot(q, [row["inputs"] for row in data], color=GREY, linestyle="--",
              label="inputs of the trained map, d' + 2N")  # fmt: skip
    learned = [row for row in data if row["learned"] is not None]
    axes.plot([r["sparsity"] for r in learned], [r["learned"] for r in learned], color=BLUE, marker="o",
              label="learned, most seeds")  # fmt: skip
    if failed := [row for row in data if row["learned"] is None]:
        axes.plot([r["sparsity"] for r in failed], [r["widest_tried"] for r in failed], linestyle="none", marker="x",
                  color=GREY, label="not learned up to here")  # fmt: skip
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("sparsity q")
    axes.set_ylabel("embedding dimension m")
    axes.set_title(f"q-sparse averaging, N = {TOKENS}, d' = {DIM}, error 1/(4q)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


FIGURE = Figure(
    name=NAME,
    title="Embedding dimensions that learn sparse averaging",
    data=data,
    verdict=verdict,
    draw=draw,
    training=Training(plan),
)
