"""A construction: a task, a torch module that solves it with explicit weights, and a certificate."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from headcount.constructions.certificate import Certificate, Failure, Verification
from headcount.core import store
from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent
from headcount.pbit.formats import wide_bits
from headcount.pbit.simulate import Accumulate, run
from headcount.tasks import Batch, Task

WEIGHTS_FILE = "construction.safetensors"
RECORD_FILE = "construction.json"


class ConstructionModule(nn.Module):
    """Explicit weights as an ordinary module: ``forward`` takes the task's arrays as tensors.

    ``settings`` are the numbers that define the module besides its tensors; ``restore`` rebuilds the module from
    them and the tensors of its state dict.
    """

    input_names: ClassVar[tuple[str, ...]]
    settings: JsonObject

    @classmethod
    @abstractmethod
    def restore(cls, settings: JsonObject, tensors: dict[str, Tensor]) -> ConstructionModule:
        """The module with these settings and tensors."""

    def wide_outputs(self, *arguments: Tensor, bits: int) -> NDArray[np.float64]:
        """The outputs at more bits than float64 provides, if the construction supports it."""
        raise HeadcountError(f"precision 'wide:{bits}' is for qsa-polytope only", fix="choose one of at most 53 bits")

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        """The arrays of a batch in the form that ``forward`` expects (vectors in float64)."""
        arrays = (batch.inputs[name] for name in self.input_names)
        return tuple(torch.from_numpy(a.astype(np.float64 if a.dtype.kind == "f" else np.int64)) for a in arrays)


@dataclass(frozen=True)
class Construction:
    """Weights for one task at one size, with their certificate."""

    task: Task
    module: ConstructionModule
    certificate: Certificate

    def verify(
        self,
        batch: Batch,
        precision: str = "fp64",
        accumulate: Accumulate = "each",
        progress: Progress = silent,
    ) -> Verification:
        """Run the module on every sequence in the requested arithmetic and compare with the exact answers.

        Binary answers are thresholded at 1/2; a vector is wrong if its error exceeds the certificate's epsilon.
        """
        epsilon = self.certificate.epsilon
        checked = wrong = 0
        max_error = 0.0
        failure: Failure | None = None
        for row in range(len(batch)):
            one = batch[row : row + 1]
            outputs = self.outputs(one, precision, accumulate)
            score = self.task.score(outputs, one, epsilon)
            checked, wrong = checked + score.checked, wrong + score.wrong
            max_error = max(max_error, score.max_error)
            missed = score.wrong > 0 or (precision == "fp64" and score.max_error > epsilon)
            if missed and failure is None:
                failure = self._locate(outputs[0], one.targets[0], row)
            progress("verify", row + 1, len(batch))
        return Verification(
            precision=precision,
            accumulate=accumulate,
            checked=checked,
            wrong=wrong,
            max_error=max_error,
            verified=failure is None,
            first_failure=failure,
        )

    def outputs(self, batch: Batch, precision: str, accumulate: Accumulate) -> NDArray[np.float64]:
        """The module's outputs in the requested arithmetic."""
        arguments = self.module.arguments(batch)
        bits = wide_bits(precision)
        if bits is not None:
            return self.module.wide_outputs(*arguments, bits=bits)
        return np.asarray(run(self.module, *arguments, precision=precision, accumulate=accumulate).numpy())

    def _locate(self, outputs: Any, targets: Any, row: int) -> Failure:
        """The token with the largest error."""
        difference = np.abs(outputs - targets)
        error = difference if difference.ndim == 1 else np.sqrt(np.square(difference).sum(-1))
        error = np.where(np.isfinite(error), error, np.inf)
        token = int(error.argmax())
        return Failure(sequence=row, token=token, error=float(error[token]))

    def save(self, folder: Path) -> None:
        """Write the weights (safetensors) and their description (JSON); ``load`` reads them back."""
        store.write_tensors(folder / WEIGHTS_FILE, dict(self.module.state_dict()))
        record = _Record(
            certificate=self.certificate,
            task=self.task.name,
            sizes=self.task.parameters(),
            settings=self.module.settings,
        )
        store.write_json(folder / RECORD_FILE, record)


class _Record(BaseModel):
    """The contents of ``construction.json``."""

    model_config = ConfigDict(extra="forbid")

    certificate: Certificate
    task: str
    sizes: dict[str, int | bool | None]
    settings: dict[str, int | float | str]


def read_saved(folder: Path) -> tuple[_Record, dict[str, Tensor]]:
    """The record and the tensors of a saved construction."""
    if not folder.is_dir():
        raise HeadcountError(f"{folder} is no folder", fix="give the folder that --out wrote")
    return store.read_json(folder / RECORD_FILE, _Record), store.read_tensors(folder / WEIGHTS_FILE)


def check_epsilon(epsilon: float) -> None:
    """Raise if the error bound is not between 0 and 1/2."""
    if not 0 < epsilon < 0.5:
        raise HeadcountError(f"epsilon {epsilon} is outside (0, 0.5)", fix="choose one such as 1e-3")
