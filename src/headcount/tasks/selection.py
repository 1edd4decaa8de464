"""Sparse token selection: every token outputs the mean over one set shared by the whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.tasks.base import Answer, Batch, Task
from headcount.tasks.qsa import QSA
from headcount.tasks.sizes import DIM, SPARSITY
from headcount.tasks.subsets import random_subsets


@dataclass(frozen=True)
class SparseSelection(Task):
    """Sparse selection: target_i = (1/q) sum of z_j over j in y, one y for all tokens (Wang et al. 2024).

    Inputs: ``z`` (count, N, d') in the unit ball, ``y`` (count, q) sorted without repeats. Targets:
    (count, N, d'), the same at every token. This is qSA with all sets equal.

    - uniform: as qSA.
    - balanced: over the batch, since all tokens of a sequence share a target: sequences come in pairs z, -z.
    - adversarial: sequences 2k, 2k+1 share z = +-e_1 and their sets differ in one element of opposite sign,
      so the targets are 2/q apart.

    >>> print(SparseSelection(tokens=3, sparsity=2, dim=1).draw(z=[[1.0], [0.5], [-1.0]], y=[0, 1]))
    z       1      0.5   -1
    y       {0,1}
    target  0.75   0.75  0.75
    """

    name: ClassVar[str] = "sparse-selection"
    answer: ClassVar[Answer] = "vector"
    summary: ClassVar[str] = "the mean of z_j over one set y of q tokens, shared by the sequence"
    input_names: ClassVar[tuple[str, ...]] = ("z", "y")

    sparsity: int = SPARSITY.field(4)
    dim: int = DIM.field(8)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.as_qsa()

    def as_qsa(self) -> QSA:
        """The qSA task of the same sizes."""
        return QSA(self.tokens, self.sparsity, self.dim)

    def model_input(self, batch: Batch) -> NDArray[Any]:
        """Tokens (z_i; y; i) as float32, (count, N, d' + q + 1), the same y at each."""
        return self.as_qsa().model_input(Batch(self._repeated(batch.inputs), batch.targets))

    def _repeated(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        y = np.repeat(inputs["y"][:, None, :], self.tokens, axis=1)
        return {"z": inputs["z"], "y": y}

    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        z = self.as_qsa().vectors(rng, count, self.tokens)
        return {"z": z, "y": random_subsets(rng, count, self.tokens, self.sparsity)}

    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        drawn = self._uniform(rng, (count + 1) // 2)
        z = np.stack([drawn["z"], -drawn["z"]], axis=1).reshape(-1, self.tokens, self.dim)
        return {"z": z[:count], "y": np.repeat(drawn["y"], 2, axis=0)[:count]}

    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        # The first token of each sequence of the adversarial qSA, and its neighbour's set.
        drawn = self.as_qsa().sample(rng, (count + 1) // 2, "adversarial").inputs
        y = drawn["y"][:, :2].reshape(-1, self.sparsity)
        return {"z": np.repeat(drawn["z"], 2, axis=0)[:count], "y": y[:count]}

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        z, y = self._named(inputs)
        z = z[None] if z.ndim == 2 else z
        y = y[None] if y.ndim == 1 else y
        if y.ndim != 2 or y.shape != (len(z), self.sparsity):
            raise HeadcountError(
                f"y has shape {y.shape}, not ({len(z)}, {self.sparsity})", fix="give one set a sequence"
            )
        checked = self.as_qsa().checked(self._repeated({"z": z, "y": y}))
        return {"z": checked["z"], "y": checked["y"][:, 0]}

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        z = inputs["z"].astype(np.float64)
        mean = np.take_along_axis(z, inputs["y"][..., None], axis=1).sum(axis=1) / self.sparsity
        return np.repeat(mean[:, None, :], self.tokens, axis=1)
