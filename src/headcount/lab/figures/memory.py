"""Figure: the state size that recurrent and state-space models need to remember N signs, compared with N - 1 bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headcount import bounds
from headcount.core import store
from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, Canvas, canvas
from headcount.lab.figures.base import Data, Figure, Inputs, Scale, Training, groups
from headcount.lab.models import TokenModel, build
from headcount.lab.models.recurrent import Recurrent
from headcount.lab.specs.run import RunSpec
from headcount.lab.sweep import runner as sweep
from headcount.lab.train.data import Portion
from headcount.lab.train.exam import held_out, score

NAME = "memory"
GOAL = 0.25
"""Largest root mean square error that counts as remembered; with signs +-1, at least 1 - GOAL^2 are correct."""
MODELS = {"gru": BLUE, "ssm": ORANGE}
WIDTHS = {"gru": (1, 2, 4, 8, 16, 32, 64), "ssm": (1, 2, 4, 8, 16, 32)}
MOST_BITS = 16


def plan(scale: Scale) -> list[RunSpec]:
    """qSA with q = 1 on signs, with causal models; only the last token is answered."""
    quick = scale == "quick"
    specs = []
    for model, widths in WIDTHS.items():
        for tokens in (4, 8) if quick else (4, 8, 16, 24):
            for width in widths:
                if width > 4 * tokens:
                    continue
                for seed in range(1 if quick else 2):
                    spec = RunSpec(
                        task="qsa",
                        tokens=tokens,
                        sparsity=1,
                        dim=1,
                        kind="signs",
                        answered="last",
                        model=model,
                        width=width,
                        inner=4 if model == "ssm" else None,
                        causal=True,
                        seed=seed,
                        steps=600 if quick else 2000,
                        evaluate_every=100,
                        target=0.8 * GOAL,
                    )
                    specs.append(spec)
    return specs


def state_numbers(spec: RunSpec) -> int:
    """The number of values that the model carries from one token to the next."""
    width = spec.config.width
    if spec.model.name != "ssm":
        return width * (2 if spec.model.name == "lstm" else 1)
    states = spec.config.finer
    return 2 * width * states + 3 * (2 * width + 2 * states)  # the recurrence, and the convolution's three tokens


def quantised(state: Tensor, bits: int) -> Tensor:
    """Round numbers in [-1, 1] to the nearest of 2^bits equally spaced levels, endpoints included.

    >>> quantised(torch.tensor([-1.0, 0.2, 0.7]), 1)
    tensor([-1.,  1.,  1.])
    """
    levels: int = 2**bits - 1
    return ((state + 1) / 2 * levels).round() / levels * 2 - 1


@torch.no_grad()
def error_with_bits(model: TokenModel, portion: Portion, bits: int) -> float:
    """The error of a one-layer GRU whose state is rounded to ``bits`` bits per unit before it reads the query."""
    body = model.body
    assert isinstance(body, Recurrent) and isinstance(body.cells, nn.GRU)
    stream = body.embed(model.reader(portion.inputs))
    _, state = body.cells(stream[:, :-1])
    hidden, _ = body.cells(stream[:, -1:], quantised(state, bits))
    return score(body.answer(hidden), portion, last=True)


def fewest_bits(model: TokenModel, portion: Portion) -> int | None:
    """The fewest bits per unit at which the error is at most ``GOAL``."""
    return next((b for b in range(1, MOST_BITS + 1) if error_with_bits(model, portion, b) <= GOAL), None)


def data(inputs: Inputs) -> Data:
    """For each model and N: the smallest width at which any seed succeeds, its state size, and the proved bits."""
    entries: Data = []
    for (model, tokens), group in groups(inputs.runs, "model", "tokens").items():
        good = [row for row in group if row.score is not None and row.score <= GOAL]
        needed = bounds.get("qsa-rnn-q1").evaluate(tokens=tokens, sparsity=1, epsilon=0.5).value
        entry: dict[str, Any] = {
            "model": model, "tokens": tokens, "proved_bits": needed, "average_bits": round(average_bits(tokens), 2),
            "widest_tried": max(row.spec["width"] for row in group), "width": None, "state_numbers": None,
            "bits_a_number": None, "state_bits": None,
        }  # fmt: skip
        if good:
            width = min(row.spec["width"] for row in good)
            specs = [RunSpec.checked(row.spec) for row in good if row.spec["width"] == width]
            entry |= {"width": width, "state_numbers": state_numbers(specs[0]), "bits_a_number": 32}
            if model == "gru":
                entry["bits_a_number"] = min((b for spec in specs if (b := _bits_of(spec, inputs.work))), default=32)
            entry["state_bits"] = entry["state_numbers"] * entry["bits_a_number"]
        entries.append(entry)
    return entries


def _bits_of(spec: RunSpec, folder: Path) -> int | None:
    model = build(spec.config, spec.reading, spec.seed)
    model.load_state_dict(store.read_tensors(sweep.run_folder(folder, spec) / "weights.safetensors"))
    return fewest_bits(model, held_out(spec, "signs", 2048))


def average_bits(tokens: int) -> float:
    """Bits that a state needs to recall a random sign with probability 1 - GOAL^2, by Fano's inequality.

    The answer to a query determines each of the N - 1 signs before the last token with error probability GOAL^2,
    so each sign has mutual information of at least 1 - h(GOAL^2) bits with the state; the signs are independent.
    """
    p = GOAL**2
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    return (tokens - 1) * (1 - entropy)


def verdict(data: Data) -> str:
    """How the state size compares with N - 1 bits."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in data):
        rows = [row for row in data if row["model"] == model and row["width"] is not None]
        failed = [str(row["tokens"]) for row in data if row["model"] == model and row["width"] is None]
        sizes = ", ".join(f"N = {r['tokens']}: {r['state_numbers']} numbers, {r['state_bits']} bits" for r in rows)
        parts.append(f"{model} needs " + (sizes or "more than was tried"))
        if failed:
            parts[-1] += f" (not learned at N = {', '.join(failed)})"
    under = [row for row in data if row["state_bits"] is not None and row["state_bits"] < row["average_bits"]]
    word = "No state is" if not under else f"{len(under)} states are"
    return f"To recall one of N - 1 signs: {'; '.join(parts)}. {word} below the bits that information theory asks for."


def draw(data: Data) -> Canvas:
    """State bits against N."""
    figure = canvas(6.4, 4.4)
    axes = figure.subplots()
    for model, colour in MODELS.items():
        rows = [row for row in data if row["model"] == model and row["state_bits"] is not None]
        what = "rounded as far as it bears" if model == "gru" else "32 bits a number"
        axes.plot([r["tokens"] for r in rows], [r["state_bits"] for r in rows], color=colour, marker="o",
                  label=f"{model}: smallest state learned, {what}")  # fmt: skip
    lengths = sorted({row["tokens"] for row in data})
    first = {row["tokens"]: row for row in data}
    axes.plot(
        lengths, [first[n]["proved_bits"] for n in lengths], color=GREEN, label="N - 1 bits (proved, every input)"
    )
    axes.plot(lengths, [first[n]["average_bits"] for n in lengths], color=GREY, linestyle="--",
              label="bits that this average error needs")  # fmt: skip
    axes.set_yscale("log", base=2)
    axes.set_xlabel("tokens N")
    axes.set_ylabel("bits of state before the query")
    axes.legend(frameon=False, fontsize=8)
    return figure


FIGURE = Figure(
    name=NAME,
    title="State that remembering takes",
    data=data,
    verdict=verdict,
    draw=draw,
    training=Training(plan, keep=True),
)
