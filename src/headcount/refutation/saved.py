"""Witnesses on disk: one safetensors file with both inputs, the claim, and the model if it can be rebuilt.

Models that can be rebuilt: ``nn.Sequential`` of the layers in ``LAYERS``, ``QuantisedRNN`` with a linear readout,
and ``PBitAttention`` with the embeddings of ``headcount.pbit``. For any other model the file contains only the
inputs, and the caller must pass the model to replay the witness.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from headcount import tasks
from headcount.core.errors import CheckFailedError, HeadcountError
from headcount.core.payload import JsonObject
from headcount.core.store import read_tensors, write_tensors
from headcount.pbit.portable import describe, rebuild
from headcount.pbit.recurrent import RecurrentNet
from headcount.refutation import attention as refute_attention
from headcount.refutation import mlp as refute_mlp
from headcount.refutation import rnn as refute_rnn
from headcount.refutation.witness import Refutation, Run, Witness, measure
from headcount.tasks import Task
from headcount.tasks.qsa import QSA


class Record(BaseModel):
    """The claim of a witness file (its metadata); validated when read."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["headcount witness 1"] = "headcount witness 1"
    task: str
    sizes: dict[str, int | bool | None]
    bound: str
    needed: int
    has: int
    unit: str
    reason: str
    token: int
    output_distance: float
    target_distance: float
    model: JsonObject | None


class Replay(BaseModel):
    """The result of replaying a witness."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    record: Record
    witness: Witness


def save(path: Path, refutation: Refutation, model: Any) -> None:
    """Write the witness, and the model if it can be rebuilt."""
    witness = refutation.witness
    if witness is None:
        raise HeadcountError("there is no witness to save")
    assert refutation.needed is not None and refutation.has is not None, "a witness compares two numbers"
    spec, weights = describe(model) or (None, {})
    record = Record(
        task=refutation.task.name,
        sizes=refutation.task.parameters(),
        bound=refutation.bound,
        needed=refutation.needed,
        has=refutation.has,
        unit=refutation.unit,
        reason=refutation.reason,
        token=witness.token,
        output_distance=witness.output_distance,
        target_distance=witness.target_distance,
        model=spec,
    )
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    for side, inputs in (("first", witness.first), ("second", witness.second)):
        tensors |= {f"{side}.{name}": torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    write_tensors(Path(path), tensors, {"headcount": record.model_dump_json()})


def replay(path: Path, model: Any = None) -> Replay:
    """Replay a saved witness; raise ``CheckFailedError`` if it no longer holds.

    The targets are recomputed and the model is run again; only the two inputs are taken from the file and, if
    ``model`` is ``None``, the model.
    """
    record, tensors = _read(Path(path))
    inputs: dict[str, dict[str, Any]] = {"first": {}, "second": {}}
    weights = {}
    for name, tensor in tensors.items():
        side, _, rest = name.partition(".")
        if side == "model":
            weights[rest] = tensor
        elif side in inputs:
            inputs[side][rest] = tensor.numpy()
    if model is None and record.model is None:
        raise HeadcountError(
            f"{path} holds inputs but no model (it cannot be rebuilt from a file)",
            fix="call headcount.refutation.saved.replay(path, model)",
        )
    task = tasks.get(record.task, **record.sizes)
    try:
        model = rebuild(record.model, weights) if model is None and record.model is not None else model
        witness = measure(task, run_of(model, task), inputs["first"], inputs["second"], record.token)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        raise HeadcountError(f"{path} does not hold what it says ({error})", fix="make it again") from error
    if not witness.holds:
        raise CheckFailedError(
            f"the witness does not hold: outputs {witness.output_distance:.3g} apart, targets "
            f"{witness.target_distance:.3g}",
            fix="the model or the file has changed",
        )
    return Replay(record=record, witness=witness)


def _read(path: Path) -> tuple[Record, dict[str, Tensor]]:
    tensors = read_tensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("headcount", "")
        return Record.model_validate_json(text), tensors
    except (ValidationError, SafetensorError) as error:
        raise HeadcountError(
            f"{path} is not a witness that headcount wrote", fix="give the file of `headcount refute --out`"
        ) from error


def run_of(model: Any, task: Task) -> Run:
    """The function that runs a model of any supported kind on batches of the task."""
    if isinstance(model, refute_attention.EmbeddedUnit):
        return refute_attention.make_run(model, task.tokens)
    if not isinstance(task, QSA):
        raise HeadcountError(f"a {type(model).__name__} is not run on {task.name}", fix="use the task qsa")
    if isinstance(model, RecurrentNet) and isinstance(model, nn.Module):
        return refute_rnn.make_run(model, task)
    return refute_mlp.make_run(model, task, refute_mlp.default_encode(model, task))
