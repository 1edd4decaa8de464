"""A witness: two inputs that a model cannot distinguish although their targets differ.

If the outputs at one token differ by o and the targets by t, then the error of the model on one of the two
inputs is at least (t - o)/2, whatever its training. Every witness here is measured by running the
model.

A lower bound applies only to models that satisfy its hypotheses. ``Verdict`` distinguishes these cases:
a model is called impossible only with a measured witness, or if its code guarantees the hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headcount.bounds.registry import get
from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.tasks import Task

Inputs = Mapping[str, NDArray[Any]]
"""One sequence: the task's input arrays without the first axis."""

Run = Callable[[Inputs], NDArray[np.float64]]
"""The model on a batch of inputs: (count, N, d) outputs."""

CLOSE = 0.01
"""Outputs count as equal if their distance is at most this fraction of the target distance: the error of the
model is then at least 99% of half that distance. Exact arithmetic gives 0; the tolerance allows for float32 nets."""

Verdict = Literal["witness", "counting", "allowed", "undecided", "does not apply"]
"""The possible conclusions about a model:

- ``witness``: two inputs were found on which it cannot be correct for both, and it was run on them;
- ``counting``: no such inputs were found, but the model is below the bound, and its type guarantees every
  hypothesis of the bound;
- ``allowed``: it is at or above the bound;
- ``undecided``: it is below the bound, no inputs were found, and the hypotheses cannot be checked from outside;
- ``does not apply``: it violates a hypothesis of the bound, so the bound gives no information about it.
"""


@dataclass(frozen=True, eq=False)
class Witness:
    """Two inputs, the token at which they are compared, and the measured distances."""

    first: Inputs
    second: Inputs
    token: int
    output_distance: float
    target_distance: float

    @property
    def error(self) -> float:
        """A lower bound on the error of the model on one of the two inputs."""
        return max(0.0, (self.target_distance - self.output_distance) / 2)

    @property
    def holds(self) -> bool:
        """Whether the outputs are equal within ``CLOSE`` and the targets differ."""
        return bool(self.target_distance > 0 and self.output_distance <= CLOSE * self.target_distance)


def measure(task: Task, run: Run, first: Inputs, second: Inputs, token: int) -> Witness:
    """Run the model on both inputs as one batch and compute the targets of both."""
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
    if not np.isfinite(distances[0]):  # non-finite outputs are no evidence of equal outputs
        distances[0] = float("inf")
    return Witness(first, second, token, *distances)


@dataclass(frozen=True, eq=False)
class Refutation:
    """The result of ``headcount.refute``.

    ``needed`` and ``has`` count the same ``unit``; they are ``None`` if a violated hypothesis leaves nothing
    to count. ``failing_hypothesis`` is the hypothesis of the bound that the model violates, in the wording of the
    bound. ``reason`` is the human-readable explanation.
    """

    task: Task
    bound: str
    needed: int | None
    has: int | None
    unit: str
    reason: str
    verdict: Verdict
    witness: Witness | None = None
    failing_hypothesis: str | None = None

    @property
    def witness_found(self) -> bool:
        """Whether there is a verified witness."""
        return self.witness is not None

    @property
    def impossible(self) -> bool:
        """Whether the model is proved unable to solve the task: by a witness, or by counting."""
        return self.verdict in ("witness", "counting")

    def as_dict(self) -> JsonObject:
        """The fields of the JSON answer."""
        witness = self.witness
        return {
            "verdict": self.verdict,
            "witness_found": self.witness_found,
            "output_distance": witness.output_distance if witness else None,
            "target_distance": witness.target_distance if witness else None,
            "bound": self.bound,
            "status": get(self.bound).status,
            "needed": self.needed,
            "has": self.has,
            "unit": self.unit,
            "impossible": self.impossible,
            "failing_hypothesis": self.failing_hypothesis,
            "error_at_least": witness.error if witness else None,
            "token": witness.token if witness else None,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Comparison:
    """Comparison of one model with one bound; the methods construct the five verdicts.

    >>> from headcount import tasks
    >>> compared = Comparison(tasks.get("qsa", tokens=8, sparsity=2), "qsa-bits", 5, 4, "embedding bits")
    >>> compared.undecided("100 subsets were tried").impossible
    False
    >>> compared.fails("through phi only", "equal embeddings, different outputs").failing_hypothesis
    'tokens are read through phi only (no residual around it)'
    """

    task: Task
    bound: str
    needed: int | None
    has: int | None
    unit: str

    def _answer(self, verdict: Verdict, reason: str, **more: Any) -> Refutation:
        return Refutation(self.task, self.bound, self.needed, self.has, self.unit, reason, verdict, **more)

    def refuted(self, witness: Witness, reason: str) -> Refutation:
        """Two inputs were found and the model was run on them."""
        assert witness.holds
        return self._answer("witness", reason, witness=witness)

    def allowed(self) -> Refutation:
        """The model is at or above the bound."""
        reason = f"no witness from this bound ({self.bound}): {self.has} >= {self.needed} ({self.unit})"
        return self._answer("allowed", reason)

    def by_counting(self, searched: str) -> Refutation:
        """The model is below the bound and its type guarantees the hypotheses; nothing was found."""
        reason = (
            f"no witness found, but {self.bound} rules the model out by counting: {self.has} < {self.needed} "
            f"({self.unit}); {searched}"
        )
        return self._answer("counting", reason)

    def undecided(self, searched: str) -> Refutation:
        """The model is below the bound, nothing was found, and the hypotheses cannot be checked."""
        conditions = "; ".join(get(self.bound).hypotheses)
        reason = (
            f"undecided: {self.has} < {self.needed} ({self.unit}), but no witness was found ({searched}), and "
            f"whether the model meets the hypotheses of {self.bound} cannot be checked from outside: {conditions}"
        )
        return self._answer("undecided", reason)

    def fails(self, words: str, evidence: str) -> Refutation:
        """The model violates the hypothesis of the bound that contains ``words``."""
        hypothesis = next(text for text in get(self.bound).hypotheses if words in text)
        reason = f'this bound does not apply ({self.bound}): the model does not meet "{hypothesis}": {evidence}'
        return self._answer("does not apply", reason, failing_hypothesis=hypothesis)
