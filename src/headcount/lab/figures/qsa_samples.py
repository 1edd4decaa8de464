"""Figure: error on qSA against the number of training sequences, for models of equal size."""

from __future__ import annotations

from headcount.core.drawing import BLUE, GREEN, ORANGE, PINK, Canvas, canvas
from headcount.lab.figures.base import Data, Figure, Inputs, Scale, Training, groups, mean_and_half_width
from headcount.lab.specs.run import RunSpec

NAME = "qsa-samples"
MODELS = {"attention": BLUE, "lstm": ORANGE, "ssm": GREEN, "mlp": PINK}
GOALS = (0.25, 0.1, 0.05)
"""Target errors at which sample counts are compared; always answering 0 has error 0.33."""


def plan(scale: Scale) -> list[RunSpec]:
    """All models with 12,000 parameters on the same sequences; attention is the bare unit of the theory."""
    quick = scale == "quick"
    steps = 500 if quick else 1500
    specs = []
    for model in MODELS:
        bare = False if model == "attention" else None
        for count in (300, 3000, 30_000) if quick else (100, 1000, 10_000, 100_000):
            for seed in range(2 if quick else 5):
                spec = RunSpec(
                    task="qsa",
                    tokens=20,
                    sparsity=3,
                    dim=4,
                    model=model,
                    residual=bare,
                    mlp=bare,
                    samples=count,
                    seed=seed,
                    steps=steps,
                    batch=64,
                    evaluate_every=steps,
                )
                specs.append(spec)
    return specs


def data(inputs: Inputs) -> Data:
    """Mean error and its 95% interval for each model and number of sequences."""
    rows: Data = []
    for (model, samples), group in groups(inputs.runs, "model", "samples").items():
        errors = [float(row.score or 0.0) for row in group]
        mean, half = mean_and_half_width(errors)
        used = (group[0].result or {})["parameters"]
        rows.append(
            {
                "model": model, "parameters": used, "samples": samples, "seeds": len(errors), "error": round(mean, 5),
                "half_width_95": round(half, 5), "least": round(min(errors), 5), "largest": round(max(errors), 5),
            }
        )  # fmt: skip
    return rows


def samples_needed(data: Data, model: str, goal: float) -> int | None:
    """The fewest sequences of the plan from which on the mean error is at most ``goal``."""
    rows = sorted((row for row in data if row["model"] == model), key=lambda row: -row["samples"])
    needed = None
    for row in rows:
        if row["error"] > goal:
            break
        needed = row["samples"]
    return needed


def verdict(data: Data) -> str:
    """The number of sequences that each model needs for each target error."""
    models = list(dict.fromkeys(row["model"] for row in data))
    most = max(row["samples"] for row in data)
    best = {model: min(row["error"] for row in data if row["model"] == model) for model in models}
    parts = []
    for goal in GOALS:
        counts = {model: samples_needed(data, model, goal) for model in models}
        shown = ", ".join(
            f"{model} {'not with ' + format(most, ',') if c is None else format(c, ',')}" for model, c in counts.items()
        )
        parts.append(f"error {goal:g} takes: {shown}")
    others = min(value for model, value in best.items() if model != "attention")
    return (
        f"Training sequences needed at {data[0]['parameters']:,} parameters: {'; '.join(parts)}. The least error of "
        f"attention is {best['attention']:.4f}, of the others {others:.4f} ({others / best['attention']:.0f} times)."
    )


def draw(data: Data) -> Canvas:
    """One line per model with its confidence band."""
    figure = canvas(6.4, 4.4)
    axes = figure.subplots()
    for model, colour in MODELS.items():
        rows = [row for row in data if row["model"] == model]
        x, mean, half = ([row[key] for row in rows] for key in ("samples", "error", "half_width_95"))
        axes.plot(x, mean, marker="o", color=colour, label=model)
        low = [max(m - h, min(r["least"], m)) for m, h, r in zip(mean, half, rows, strict=True)]
        axes.fill_between(x, low, [m + h for m, h in zip(mean, half, strict=True)], color=colour, alpha=0.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("distinct training sequences")
    axes.set_ylabel("root mean square error")
    axes.set_title("q-sparse averaging, N = 20, q = 3, d' = 4; 95% confidence", fontsize=10)
    axes.legend(frameon=False)
    return figure


FIGURE = Figure(
    name=NAME,
    title="Samples that sparse averaging takes",
    data=data,
    verdict=verdict,
    draw=draw,
    training=Training(plan),
)
