"""A witness: two inputs between which a model does not tell, though their targets are far apart.

If the outputs at one token are o apart and the targets t apart, then on one of the two inputs the model is
off by at least (t - o)/2, whatever it was trained for. Every witness here was measured by running the
model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headcount.bounds.registry import get
from headcount.errors import HeadcountError
from headcount.tasks import Task

Inputs = Mapping[str, NDArray[Any]]
"""One sequence: the task's input arrays without the first axis."""

Run = Callable[[Inputs], NDArray[np.float64]]
"""The model on a batch of inputs: (count, N, d) outputs."""

CLOSE = 0.01
"""Outputs count as equal when they are closer than this share of the targets' distance: the model is then
off by at least 99% of half of that distance. Exact arithmetic gives 0; this leaves room for a float32 net."""


@dataclass(frozen=True, eq=False)
class Witness:
    """Two inputs, the token at which they were compared, and what running the model gave."""

    first: Inputs
    second: Inputs
    token: int
    output_distance: float
    target_distance: float

    @property
    def error(self) -> float:
        """The model is off by at least this much on one of the two inputs."""
        return max(0.0, (self.target_distance - self.output_distance) / 2)

    @property
    def holds(self) -> bool:
        """Whether the outputs are as good as equal and the targets are not."""
        return bool(self.target_distance > 0 and self.output_distance <= CLOSE * self.target_distance)


def measure(task: Task, run: Run, first: Inputs, second: Inputs, token: int) -> Witness:
    """Run the model on both inputs, as one batch, and solve the task on both."""
    both = task.batch(**{name: np.stack([first[name], second[name]]) for name in first})
    outputs = np.asarray(run(both.inputs), dtype=np.float64)
    if task.answer == "vector" and outputs.shape != both.targets.shape:
        raise HeadcountError(
            f"the model gives outputs of shape {outputs.shape[1:]}, not {both.targets.shape[1:]}",
            fix="build it for this task",
        )
    distances = [
        float(np.linalg.norm(np.asarray(pair[0], dtype=np.float64) - np.asarray(pair[1], dtype=np.float64)))
        for pair in (outputs[:, token], both.targets[:, token])
    ]
    if not np.isfinite(distances[0]):  # a model that gives no number is no witness of equal outputs
        distances[0] = float("inf")
    return Witness(first, second, token, *distances)


@dataclass(frozen=True, eq=False)
class Refutation:
    """The answer of ``headcount.refute``.

    ``needed`` and ``has`` count the same ``unit``; ``impossible`` says that the bound alone rules the
    model out, with or without a witness. ``reason`` is the line for people.
    """

    task: Task
    bound: str
    needed: int
    has: int
    unit: str
    reason: str
    witness: Witness | None = None

    @property
    def witness_found(self) -> bool:
        """Whether a verified witness is there."""
        return self.witness is not None

    @property
    def impossible(self) -> bool:
        """Whether the model is below the bound."""
        return self.has < self.needed

    def as_dict(self) -> dict[str, Any]:
        """The fields of the JSON answer."""
        witness = self.witness
        return {
            "witness_found": self.witness_found,
            "output_distance": witness.output_distance if witness else None,
            "target_distance": witness.target_distance if witness else None,
            "bound": self.bound,
            "status": get(self.bound).status,
            "needed": self.needed,
            "has": self.has,
            "unit": self.unit,
            "impossible": self.impossible,
            "error_at_least": witness.error if witness else None,
            "token": witness.token if witness else None,
            "reason": self.reason,
        }


def no_witness(task: Task, bound: str, needed: int, has: int, unit: str, why: str = "") -> Refutation:
    """The answer for a model that the bound allows, or for which no witness was found."""
    if has >= needed:
        reason = f"no witness from this bound ({bound}): {has} >= {needed} ({unit})"
    else:
        reason = f"no witness found, but {bound} rules the model out by counting: {has} < {needed} ({unit})"
    return Refutation(task, bound, needed, has, unit, f"{reason}; {why}" if why else reason)
