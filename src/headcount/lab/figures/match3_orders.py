"""Figure: accuracy of pairwise, third-order and Strassen attention on Match3, for N = 8 to 64."""

from __future__ import annotations

from typing import Any

from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, Canvas, canvas
from headcount.lab.figures.base import Data, Figure, Inputs, Scale, Training, groups, mean_and_half_width
from headcount.lab.specs.run import RunSpec

NAME = "match3-orders"
KINDS: tuple[tuple[str, int, bool], ...] = (
    ("attention", 1, True),
    ("attention", 2, True),
    ("attention", 3, True),
    ("attention", 4, True),
    ("third-order", 1, True),
    ("strassen", 1, True),
    ("attention", 1, False),
    ("third-order", 1, False),
    ("strassen", 1, False),
)
"""Model, number of layers, whether there is an MLP."""
SEEDS = {8: 3, 16: 3, 32: 2, 64: 1}
"""Seeds at full scale, by N: one run at N = 64 takes as long as ten at N = 8."""


def plan(scale: Scale) -> list[RunSpec]:
    """Every kind with 12,000 parameters at every length, on fresh sequences with the default modulus."""
    quick = scale == "quick"
    kinds = [kind for kind in KINDS if not quick or (kind[1] <= 2 and kind[2])]
    specs = []
    for tokens in (8, 16) if quick else (8, 16, 32, 64):
        for model, depth, mlp in kinds:
            for seed in range(1 if quick else SEEDS[tokens]):
                spec = RunSpec(
                    task="match3",
                    tokens=tokens,
                    model=model,
                    depth=depth,
                    mlp=mlp,
                    seed=seed,
                    start_tokens=8 if tokens > 8 else None,
                    steps=800 if quick else 2000 if tokens < 32 else 3000,
                    batch=64 if tokens < 64 else 32,
                    evaluate_every=200,
                    target=0.99,
                )
                specs.append(spec)
    return specs


def label(row: dict[str, Any]) -> str:
    """The label of a kind of model."""
    layers = f", {row['depth']} layers" if row["depth"] > 1 else ""
    return f"{row['model']}{layers}{'' if row['mlp'] else ', no MLP'}"


def data(inputs: Inputs) -> Data:
    """Mean balanced accuracy and its 95% interval for each kind and N."""
    rows: Data = []
    for (model, depth, mlp, tokens), group in groups(inputs.runs, "model", "depth", "mlp", "tokens").items():
        results = [row.result or {} for row in group]
        values = [float(result["balanced_accuracy"]) for result in results]
        mean, half = mean_and_half_width(values)
        balanced = [result["scores"]["balanced"]["balanced_accuracy"] for result in results]
        near = [result["scores"]["adversarial"]["balanced_accuracy"] for result in results]
        rows.append(
            {
                "model": model, "depth": depth, "mlp": mlp, "tokens": tokens,
                "modulus": results[0]["sizes"]["modulus"], "parameters": results[0]["parameters"],
                "seeds": len(values), "balanced_accuracy": round(mean, 4), "half_width_95": round(half, 4),
                "best_seed": round(max(values), 4), "on_balanced": round(sum(balanced) / len(balanced), 4),
                "on_adversarial": round(sum(near) / len(near), 4),
                "majority_accuracy": round(results[0]["scores"]["uniform"]["majority_accuracy"], 4),
            }
        )  # fmt: skip
    return rows


def verdict(data: Data) -> str:
    """The best model of each order at each length."""
    parts = []
    for tokens in dict.fromkeys(row["tokens"] for row in data):
        rows = [row for row in data if row["tokens"] == tokens]

        def best(model: str, among: Data = rows) -> dict[str, Any]:
            return max((row for row in among if row["model"] == model), key=lambda row: row["balanced_accuracy"])

        shown = ", ".join(
            f"{label(row)} {row['balanced_accuracy']:.3f}"
            for row in map(best, ("attention", "third-order", "strassen"))
        )
        parts.append(f"N = {tokens}: {shown}")
    return f"Best balanced accuracy on Match3 by order of attention (0.5 is chance): {'; '.join(parts)}."


def draw(data: Data) -> Canvas:
    """Accuracy against N; solid with an MLP, dashed without."""
    figure = canvas(7.6, 4.4)
    axes = figure.subplots()
    colours = {"attention": BLUE, "third-order": ORANGE, "strassen": GREEN}
    markers = {1: "o", 2: "s", 3: "^", 4: "D"}
    lengths = sorted({row["tokens"] for row in data})
    for name in dict.fromkeys(label(row) for row in data):
        rows = [row for row in data if label(row) == name]
        first = rows[0]
        axes.errorbar(
            [row["tokens"] for row in rows],
            [row["balanced_accuracy"] for row in rows],
            yerr=[row["half_width_95"] if row["seeds"] > 1 else 0 for row in rows],
            color=colours[first["model"]],
            marker=markers.get(first["depth"], "v"),
            markersize=4,
            linestyle="-" if first["mlp"] else "--",
            alpha=1.0 if first["depth"] == 1 else 0.6,
            capsize=2,
            label=name,
        )
    axes.axhline(0.5, color=GREY, linestyle=":", label="always one answer")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.set_xlabel("tokens N")
    axes.set_ylabel("balanced accuracy")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


FIGURE = Figure(
    name=NAME,
    title="Match3 by attention of order two and three",
    data=data,
    verdict=verdict,
    draw=draw,
    training=Training(plan),
)
