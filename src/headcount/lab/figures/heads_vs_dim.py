"""Figure: trained and predicted error of n-gram extraction for every split of H d = 64, and why they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, PINK, Canvas, canvas
from headcount.core.store import read_tensors
from headcount.lab.figures import heads_vs_dim_theory as theory
from headcount.lab.figures.base import Data, Figure, Inputs, Scale, Training, groups, mean_and_half_width
from headcount.lab.figures.heads_vs_dim_verdict import NO_LIMIT, PAPER, best, linear, verdict
from headcount.lab.models import build
from headcount.lab.models.positional import Positional
from headcount.lab.specs.run import RunSpec
from headcount.lab.sweep import runner as sweep
from headcount.lab.sweep.runner import Row
from headcount.lab.train import start
from headcount.lab.train.loop import WEIGHTS
from headcount.lags import least_squares as squares
from headcount.tasks.ngram import NGram

NAME = "heads-vs-dim"
BUDGET, TOKENS = 64, 64
"""H d, and the number of tokens of a sequence, which is also the number of lags of a head."""
HEADS = {"quick": (4, 8, 16, 32), "full": (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)}
"""Numbers of heads at order ``PAPER``; ``OTHERS`` applies at other orders."""
OTHERS = {"quick": (2, 4, 8, 32), "full": (2, 4, 6, 8, 12, 16, 32, 64)}
BENT = {"quick": (4, 8, 32), "full": (2, 4, 8, 16, 32, 64)}
"""Numbers of heads with the nonlinear target."""
ORDERS = {"quick": (2, 4), "full": (2, 3, 4, 5)}
STEPS, LONG = {"quick": 400, "full": 1000}, 4000
COLOURS = {"alibi": BLUE, "relative": GREEN, "rope": PINK, "alibi-fixed": GREY}


def plan(scale: Scale) -> list[RunSpec]:
    """The base runs (three schemes, linear), the nonlinear runs, and at ``PAPER`` the ablation runs.

    Runs from the constructed start save their weights before the first step: the best known layer with these heads.
    """
    quick = scale == "quick"

    def runs(order: int, heads: int, seeds: int, **options: Any) -> list[RunSpec]:
        common: dict[str, Any] = {"steps": STEPS[scale], "batch": 32, "evaluate_every": 1000, "evaluations": 512}
        return [
            RunSpec(
                task="ngram", order=order, tokens=TOKENS, model="positional", heads=heads,
                width=BUDGET // heads * heads, seed=seed, **common | options,
            )
            for seed in range(1 if quick else seeds)
        ]  # fmt: skip

    specs: list[RunSpec] = []
    for order in ORDERS[scale]:
        for heads in HEADS[scale] if order == PAPER else OTHERS[scale]:
            for position in ("alibi", "relative", "rope"):
                specs += runs(order, heads, 3, position=position)
            if order == PAPER or not quick:
                seeds = 2 if order == PAPER else 1
                specs += runs(order, heads, seeds, position="alibi", start="constructed", snapshots=(0,))
        for heads in BENT[scale] if order == PAPER or not quick else ():
            for position in ("alibi", "relative"):
                specs += runs(order, heads, 2, position=position, nonlinear=True, mlp=True, inner=64)
    for heads in HEADS[scale]:
        specs += runs(PAPER, heads, 3, position="alibi-fixed")
        specs += runs(PAPER, heads, 2, position="alibi", start="kernels")
        if not quick or heads in (4, 8, 32):
            specs += runs(PAPER, heads, 1, position="relative", start="constructed", snapshots=(0,))
        if not quick and heads in (2, 4, 8, 16, 32):
            specs += runs(PAPER, heads, 1, position="alibi", content=True)
            specs += runs(PAPER, heads, 1, position="alibi", steps=LONG)
    return specs


def arm(fields: dict[str, Any]) -> str:
    """The variant of a run; ``random`` for base runs."""
    longer = "longer" if fields.get("steps") == LONG else "random"
    return "content" if fields.get("content") else str(fields.get("start") or longer)


def data(inputs: Inputs) -> Data:
    """For each split, scheme and arm: the relative error over seeds, and the theoretical error of the same heads.

    error: root mean square error relative to that of answering 0, averaged over seeds. readout: the same with
    optimal values and outputs for the trained kernels (closed form, linear targets). predicted: the solver's error.
    best_known: the error of the best layer found by joint least squares, from which constructed runs start.
    """
    lines: Data = []
    known = _best_known(inputs.runs, inputs.work)
    names = ("order", "nonlinear", "position", "heads", "start", "content", "steps")
    for (order, nonlinear, position, heads, *_), group in groups(inputs.runs, *names).items():
        spec = RunSpec.checked(group[0].spec)
        task = spec.problem
        assert isinstance(task, NGram)
        errors = [start.relative_error(task, float((row.result or {})["error"])) for row in group]
        mean, half = mean_and_half_width(errors)
        dim = BUDGET // heads
        line: dict[str, Any] = {
            "order": order, "nonlinear": bool(nonlinear), "position": position, "arm": arm(group[0].spec),
            "heads": heads, "dim": dim, "seeds": len(errors), "error": round(mean, 5),
            "half_width_95": round(half, 5), "best_seed": round(min(errors), 5),
            "readout": None, "predicted": None, "best_known": None,
        }  # fmt: skip
        if not nonlinear and line["arm"] != "content":
            line["readout"] = _mean([_readout(RunSpec.checked(row.spec), inputs.work) for row in group])
            line["predicted"] = _rounded(theory.predicted(task, position, heads, dim))
            line["best_known"] = known.get((order, position, heads))
        if order == PAPER and not nonlinear and line["arm"] == "random" and position == "alibi":
            splits = [(h, BUDGET // h) for h in dict.fromkeys(row.spec["heads"] for row in inputs.runs)]
            for exponent in (1, 2, 4):
                limits = theory.constants(task, splits, exponent, heads)
                line[f"bound p={exponent} from"] = None if limits is None else float(f"{limits[0]:.4g}")
                line[f"bound p={exponent} to"] = None if limits is None else min(NO_LIMIT, float(f"{limits[1]:.4g}"))
        lines.append(line)
    return lines


def _closed_form(spec: RunSpec, file: Path, refit: bool) -> float | None:
    """The relative error of saved weights, with an optimal readout if ``refit``; None if no weights were saved."""
    if not file.exists():
        return None
    model = build(spec.config, spec.reading, spec.seed)
    model.load_state_dict(read_tensors(file))
    assert isinstance(model.body, Positional) and isinstance(spec.problem, NGram)
    targets, weights = start.problem(spec.problem, model.body.config.context)
    layer = start.taken(model.body)[1]
    return squares.error(squares.best_readout(layer, targets, weights) if refit else layer, targets, weights)


def _readout(spec: RunSpec, folder: Path) -> float | None:
    return _closed_form(spec, sweep.run_folder(folder, spec) / WEIGHTS, refit=True)


def _best_known(rows: Sequence[Row], folder: Path) -> dict[tuple[int, str, int], float]:
    """The error of the initial layers of constructed runs, by order, position and heads."""
    errors = {}
    for row in rows:
        spec = RunSpec.checked(row.spec)
        if spec.start == "constructed":
            value = _closed_form(spec, sweep.run_folder(folder, spec) / "weights-0.safetensors", refit=False)
            if value is not None and spec.order and spec.heads:
                errors[spec.order, str(spec.position), spec.heads] = round(value, 5)
    return errors


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 5) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def draw(data: Data) -> Canvas:
    """Top row: trained and predicted error of each n-gram; bottom row: ablations and nonlinear targets."""
    figure = canvas(14, 8.8)
    panels = figure.subplots(2, 4)
    orders = sorted({row["order"] for row in data})
    for axes, order in zip(panels[0], orders, strict=False):
        _confront(axes, [row for row in data if row["order"] == order and not row["nonlinear"]])
        axes.set_title(f"{order}-gram: trained and predicted", fontsize=9)
    for axes in panels[0][len(orders) :]:
        axes.set_visible(False)
    paper = [row for row in data if row["order"] == PAPER]
    _reasons(panels[1][0], [row for row in paper if not row["nonlinear"]])
    for axes, position in zip(panels[1][1:3], ("alibi", "relative"), strict=True):
        _nonlinear(axes, [row for row in data if row["position"] == position])
    _best(panels[1][3], data)
    for axes in (*panels[0][: len(orders)], *panels[1][:3]):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(f"heads H, of dimension {BUDGET} / H")
        axes.set_ylim(5e-3, 5)
    for row_of_panels in panels:
        row_of_panels[0].set_ylabel("error over the target's own (rms)")
    return figure


def _legend(axes: Any) -> None:
    """Place the legend below the panel, where it covers no curve."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2,
                    handlelength=1.7, columnspacing=0.8, handletextpad=0.5)  # fmt: skip


def _line(axes: Any, rows: Data, key: str, **style: Any) -> None:
    """One curve over heads; values below the axis limit are clipped to it."""
    shown = sorted((row for row in rows if row[key] is not None), key=lambda row: row["heads"])
    if shown:
        axes.plot([row["heads"] for row in shown], [max(row[key], 5e-3) for row in shown], **style)


def _confront(axes: Any, rows: Data) -> None:
    for position in ("alibi", "relative", "rope"):
        curve = [row for row in rows if row["position"] == position and row["arm"] == "random"]
        _line(axes, curve, "error", color=COLOURS[position], marker="o", markersize=3, label=f"{position}, trained")
        _line(
            axes, curve, "predicted", color=COLOURS[position], linestyle="--", linewidth=1, label=f"{position}, solver"
        )
        _line(axes, curve, "best_known", color=COLOURS[position], linestyle=":", label=f"{position}, best known")
    _legend(axes)


def _reasons(axes: Any, rows: Data) -> None:
    free = [row for row in rows if row["position"] == "alibi"]
    base = [row for row in free if row["arm"] == "random"]
    fixed = [row for row in rows if row["position"] == "alibi-fixed"]
    content = [row for row in free if row["arm"] == "content"]
    _line(axes, base, "error", color=BLUE, marker="o", markersize=3, label="trained")
    _line(axes, fixed, "error", color=GREY, marker="s", markersize=3, label="slopes not trained")
    longer = [row for row in free if row["arm"] == "longer"]
    _line(axes, longer, "error", color=BLUE, marker="*", linestyle="-.", label=f"trained, {LONG:,} steps")
    _line(axes, content, "error", color=ORANGE, marker="x", markersize=4, label="with content logits")
    kernels = [row for row in free if row["arm"] == "kernels"]
    _line(axes, kernels, "error", color=PINK, marker="v", markersize=3, label="best kernels, fixed")
    _line(axes, kernels, "readout", color=PINK, linestyle="--", label="best kernels, best readout")
    _line(axes, base, "readout", color=BLUE, linestyle="--", label="trained kernels, best readout")
    begun = [row for row in free if row["arm"] == "constructed"]
    _line(axes, begun, "error", color=GREEN, marker="^", markersize=3, label="trained from the best layer")
    _line(axes, base, "best_known", color=GREEN, linestyle=":", label="best layer known")
    axes.set_title(f"{PAPER}-gram, ALiBi: reasons taken out", fontsize=9)
    _legend(axes)


def _nonlinear(axes: Any, rows: Data) -> None:
    """One colour per order; solid lines are the nonlinear target."""
    name = rows[0]["position"] if rows else ""
    for order, colour in zip(sorted({row["order"] for row in rows}), (GREY, ORANGE, BLUE, PINK), strict=False):
        rows_of_order = [row for row in rows if row["order"] == order and row["arm"] == "random"]
        bent = [row for row in rows_of_order if row["nonlinear"]]
        _line(axes, bent, "error", color=colour, marker="o", markersize=3, label=f"{order}-gram")
        _line(
            axes,
            [row for row in rows_of_order if not row["nonlinear"]],
            "error",
            color=colour,
            linestyle="--",
            linewidth=1,
        )
    axes.set_title(f"{name}: nonlinear target, MLP (dashed: linear)", fontsize=9)
    _legend(axes)


def _best(axes: Any, data: Data) -> None:
    """The best number of heads by order, trained and predicted."""
    for place, position in enumerate(("alibi", "relative", "rope")):
        shift = 0.05 * (place - 1)  # separates equal numbers
        for key, told, line, marker in (("error", "trained", "-", "o"), ("predicted", "solver", "--", "s")):
            points = [
                (order + shift, optimum.heads)
                for order in sorted({row["order"] for row in data})
                if (optimum := best(linear(data, order, position), key)) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), color=COLOURS[position], linestyle=line, marker=marker,
                          markersize=4, label=f"{position}, {told}")  # fmt: skip
    axes.set_title("best number of heads", fontsize=9)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(sorted({row["order"] for row in data}))
    axes.set_xlabel("order n")
    _legend(axes)


FIGURE = Figure(
    name=NAME,
    title="Heads against dimensions on n-grams",
    data=data,
    verdict=verdict,
    draw=draw,
    training=Training(plan, keep=True),
)
