"""Models to refute: random models of specified sizes, and fully connected nets loaded from a file."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.core.seeds import torch_generator
from headcount.core.store import read_tensors
from headcount.pbit.examples import random_match3_layer, random_qsa_layer
from headcount.pbit.portable import LAYERS
from headcount.pbit.recurrent import random_rnn
from headcount.tasks import Task


@dataclass(frozen=True)
class SampleSizes:
    """The sizes and options of ``headcount refute``."""

    task: str = "qsa"
    tokens: int = 64
    sparsity: int = 1
    dim: int = 8
    modulus: int | None = None
    width: int | None = None
    value_width: int | None = None
    rank: int | None = None
    depth: int = 1
    activation: str = "ReLU"
    cell: str = "rnn"
    precision_bits: int = 8
    heads: int = 1


def sample_model(kind: str, sizes: SampleSizes, weights: Path | None, seed: int) -> tuple[Task, Any]:
    """The task and the model: ``mlp``, ``rnn`` or ``attention``."""
    if sizes.task not in ("qsa", "match3") or (sizes.task == "match3" and kind != "attention"):
        raise HeadcountError(
            f"no bound refutes {kind} on {sizes.task!r}", fix="use --task qsa, or match3 with attention"
        )
    if weights is not None and kind != "mlp":
        raise HeadcountError("--weights is for the mlp", fix="leave it out, or use the Python function")
    if sizes.width is None and weights is None:
        raise HeadcountError("the width of the model is not given", fix="give --width")
    if sizes.value_width is not None and sizes.task != "match3":
        raise HeadcountError("--value-width is for attention on match3", fix="leave it out; on qsa it is d'")
    if sizes.rank is not None and (kind != "mlp" or weights is not None):
        raise HeadcountError("--rank is for an mlp with random weights", fix="leave it out")
    for name in ("width", "value_width", "rank", "depth", "precision_bits", "heads"):
        value = getattr(sizes, name)
        if value is not None and value < 1:
            raise HeadcountError(f"{name} is {value}", fix=f"choose {name} of at least 1")
    n, q, dim, width = sizes.tokens, sizes.sparsity, sizes.dim, sizes.width or 1
    if sizes.task == "match3":
        modulus = n + 1 if sizes.modulus is None else sizes.modulus
        task = tasks.get("match3", tokens=n, modulus=modulus)
        return task, random_match3_layer(n, modulus, width, sizes.precision_bits, sizes.heads, seed, sizes.value_width)
    task = tasks.get("qsa", tokens=n, sparsity=q, dim=dim)
    if kind == "attention":
        return task, random_qsa_layer(n, q, dim, width, sizes.precision_bits, sizes.heads, seed)
    if kind == "rnn":
        return task, random_rnn(n, q, dim, width, sizes.precision_bits, sizes.cell, seed)
    if weights is not None:
        return task, read_mlp(weights, sizes.activation)
    inputs = n * (dim + q + 1)
    return task, random_mlp([inputs, *[width] * sizes.depth, n * dim], sizes.activation, seed, sizes.rank)


def _activation(name: str) -> type[nn.Module]:
    if name not in LAYERS:
        raise HeadcountError(f"there is no activation {name!r}", fix=f"choose one of {', '.join(LAYERS)}")
    return LAYERS[name]


def random_mlp(
    widths: list[int], activation: str = "ReLU", seed: int = 0, first_rank: int | None = None
) -> nn.Sequential:
    """A float32 net with normal weights of standard deviation 1/sqrt(inputs) and small biases.

    With ``first_rank`` the weight matrix of the first layer is a product of two normal factors with that inner
    dimension, up to rounding of its entries.
    """
    if first_rank is not None and first_rank > min(widths[:2]):
        raise HeadcountError(
            f"rank {first_rank} is larger than a first layer of {widths[1]} x {widths[0]} allows",
            fix=f"choose a rank up to {min(widths[:2])}",
        )
    between = _activation(activation)
    generator = torch_generator(seed, "bounds", "random mlp")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(outputs, inputs, generator=generator) * inputs**-0.5)
            linear.bias.copy_(torch.randn(outputs, generator=generator) * 0.1)
        layers += [linear, between()]
    if first_rank is not None:
        left = torch.randn(widths[1], first_rank, generator=generator) * first_rank**-0.5
        right = torch.randn(first_rank, widths[0], generator=generator) * widths[0] ** -0.5
        with torch.no_grad():
            layers[0].weight.copy_(left @ right)  # type: ignore[operator]
    return nn.Sequential(*layers[:-1])


def read_mlp(path: Path, activation: str = "ReLU") -> nn.Sequential:
    """The linear layers of a saved ``nn.Sequential`` (keys ``0.weight``, ``0.bias``, ``2.weight``, ...).

    ``activation`` is inserted between consecutive linear layers; the file does not record it.
    """
    between = _activation(activation)
    tensors = read_tensors(path)
    numbers = sorted({int(match[1]) for key in tensors if (match := re.fullmatch(r"(\d+)\.weight", key))})
    known = {f"{number}.{part}" for number in numbers for part in ("weight", "bias")}
    matrices = all(tensors[f"{number}.weight"].dim() == 2 for number in numbers)
    if not numbers or not matrices or set(tensors) - known:
        raise HeadcountError(
            f"{path} does not hold the linear layers of an nn.Sequential",
            fix="save its state_dict: 0.weight, 0.bias, 2.weight, ...",
        )
    layers: list[nn.Module] = []
    for number in numbers:
        weight, bias = tensors[f"{number}.weight"], tensors.get(f"{number}.bias")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        layers += [linear, between()]
    return nn.Sequential(*layers[:-1])
