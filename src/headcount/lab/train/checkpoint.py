"""The state of a training run in one safetensors file: weights, optimiser moments and the curve so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from headcount.core import store

FILE = "state.safetensors"


@dataclass
class Curve:
    """The loss of every step, and the score at every evaluation as (steps done, score)."""

    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)


def save(path: Path, model: nn.Module, optimizer: torch.optim.AdamW, curve: Curve) -> None:
    """Write the state atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    tensors["curve.losses"] = torch.tensor(curve.losses, dtype=torch.float64)
    tensors["curve.scores"] = torch.tensor(curve.scores, dtype=torch.float64).reshape(-1, 2)
    store.write_tensors(path, tensors)


def load(path: Path, model: nn.Module, optimizer: torch.optim.AdamW) -> Curve:
    """Load a state into the model and the optimiser; the number of losses in the curve is the number of steps done."""
    tensors = store.read_tensors(path)
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    for index, parameter in enumerate(_parameters(optimizer)):
        prefix = f"optimizer.{index}."
        optimizer.state[parameter] = {
            name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)
        }
    scores = [(int(step), float(value)) for step, value in tensors["curve.scores"].tolist()]
    return Curve(tensors["curve.losses"].tolist(), scores)


def _parameters(optimizer: torch.optim.AdamW) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
