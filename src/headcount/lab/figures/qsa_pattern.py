"""Figure: the attention matrix of a unit learning qSA over training, next to the target pattern."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headcount.core import store
from headcount.core.drawing import BLUE, Canvas, canvas
from headcount.lab.figures.base import Data, Figure, Inputs, Scale, Training
from headcount.lab.models import TokenModel, build
from headcount.lab.models.attention import Block, Stack
from headcount.lab.specs.run import RunSpec
from headcount.lab.sweep import runner as sweep
from headcount.lab.train.exam import held_out

NAME = "qsa-pattern"
SEQUENCES = 64
"""Number of sequences over which the distance from the pattern is averaged."""


def plan(scale: Scale) -> list[RunSpec]:
    """The bare unit on 20 tokens with q = 3; weights are saved during training."""
    steps, seeds = (900, 1) if scale == "quick" else (1500, 3)
    return [
        RunSpec(
            task="qsa", tokens=20, sparsity=3, dim=4, width=64, residual=False, mlp=False, seed=seed, steps=steps,
            snapshots=(0, steps // 15, steps // 6, steps // 3, steps),
        )
        for seed in range(seeds)
    ]  # fmt: skip


@torch.no_grad()
def attention_matrix(model: TokenModel, inputs: Tensor) -> NDArray[np.float32]:
    """The attention weights of a one-layer, one-head unit without a blank token, (batch, N, N)."""
    stack = model.body
    assert isinstance(stack, Stack)
    (block,) = stack.blocks
    assert isinstance(block, Block)
    attend = block.attention
    stream = stack.stream(model.reader(inputs))
    logits = attend.q_proj(stream) @ attend.k_proj(stream).mT * attend.head_dim**-0.5
    weights: NDArray[np.float32] = logits.softmax(-1).numpy()
    return weights


def data(inputs: Inputs) -> Data:
    """For each seed and snapshot: the distance from the pattern; for the first seed, also the matrix of one sequence.

    The distance is the total variation between a token's weights and 1/q on its set, averaged over tokens.
    """
    entries: Data = []
    for row in inputs.runs:
        spec = RunSpec.checked(row.spec)
        portion = held_out(spec, "uniform", SEQUENCES)
        d, q, n = spec.reading.dim, spec.reading.sparsity, spec.reading.tokens
        sets = portion.inputs[..., d : d + q].long()
        target = torch.zeros(*sets.shape[:2], n).scatter_(-1, sets, 1 / q).numpy()
        model = build(spec.config, spec.reading, spec.seed)
        for step in spec.snapshots:
            model.load_state_dict(
                store.read_tensors(sweep.run_folder(inputs.work, spec) / f"weights-{step}.safetensors")
            )
            weights = attention_matrix(model, portion.inputs)
            distance = float(np.abs(weights - target).sum(-1).mean() / 2)
            common = {"seed": spec.seed, "step": step, "distance": round(distance, 5)}
            if spec.seed == inputs.runs[0].spec["seed"]:
                entries += [
                    common | {"token": i, "attended": j, "weight": round(float(weights[0, i, j]), 5),
                              "target": round(float(target[0, i, j]), 5)}
                    for i in range(n) for j in range(n)
                ]  # fmt: skip
            else:
                entries.append(common)
    return entries


def distances(data: Data) -> dict[int, dict[int, float]]:
    """Distances by seed and step."""
    by_seed: dict[int, dict[int, float]] = {}
    for row in data:
        by_seed.setdefault(row["seed"], {})[row["step"]] = row["distance"]
    return by_seed


def verdict(data: Data) -> str:
    """The distance of the weights from the pattern before and after training."""
    by_seed = distances(data)
    first = [next(iter(steps.values())) for steps in by_seed.values()]
    last = [list(steps.values())[-1] for steps in by_seed.values()]
    steps = list(next(iter(by_seed.values())))[-1]
    word = "finds" if max(last) < 0.1 else "does not find"
    return (
        f"The unit {word} the pattern 1/q on the token's set: the total variation between its attention weights and "
        f"the pattern falls from {np.mean(first):.2f} to {np.mean(last):.3f} in {steps} steps (mean of {len(last)} "
        f"seeds; the worst ends at {max(last):.3f})."
    )


def draw(data: Data) -> Canvas:
    """Top: the matrices of the first seed, followed by the pattern; bottom: the distance over training."""
    shown = [row for row in data if "token" in row]
    steps = list(dict.fromkeys(row["step"] for row in shown))
    n = max(row["token"] for row in shown) + 1
    figure = canvas(2.1 * (len(steps) + 1), 4.6)
    places = figure.add_gridspec(2, len(steps) + 1, height_ratios=(1.2, 1))
    top = max(row["target"] for row in shown)
    for column, step in enumerate([*steps, None]):
        axes = figure.add_subplot(places[0, column])
        chosen = [row for row in shown if row["step"] == (steps[-1] if step is None else step)]
        values = np.array([row["target" if step is None else "weight"] for row in chosen]).reshape(n, n)
        axes.imshow(values, vmin=0, vmax=top, cmap="Greys")
        axes.set_title("pattern" if step is None else f"step {step}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    below = figure.add_subplot(places[1, :])
    for seed, by_step in distances(data).items():
        below.plot(list(by_step), list(by_step.values()), marker="o", color=BLUE, alpha=1 if seed == 0 else 0.4)
    below.set_xlabel("steps")
    below.set_ylabel("distance from the pattern")
    below.set_ylim(0, 1)
    return figure


FIGURE = Figure(
    name=NAME,
    title="Attention of a unit that learns sparse averaging",
    data=data,
    verdict=verdict,
    draw=draw,
    training=Training(plan, keep=True),
)
