"""Running a model one layer at a time, so that only one layer's weights and sums are in memory.

The residual stream of all windows is stored in files; a layer reads one file and writes the next, so a killed run
resumes after the last completed layer. The other arguments of layers (masks, rotations) are recorded from the model:
its forward method is called once with each layer replaced by a recorder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from headcount.core.errors import HeadcountError
from headcount.core.store import require_space, write_atomic
from headcount.pretrained.families import Family, base_model, layers_of

_ZEROS = 2**24


class LayerCall(NamedTuple):
    """The arguments of a layer after the residual stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Recorder(nn.Module):
    """Replaces a layer: records its arguments and returns the stream unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: torch.Tensor | None = None
        self.call = LayerCall((), {})

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.stream, self.call = hidden_states, LayerCall(args, kwargs)
        return hidden_states


@contextlib.contextmanager
def _recorders(layers: nn.ModuleList) -> Iterator[list[_Recorder]]:
    originals = list(layers)
    stand_ins = [_Recorder() for _ in originals]
    try:
        for index, stand_in in enumerate(stand_ins):
            layers[index] = stand_in
        yield stand_ins
    finally:
        for index, layer in enumerate(originals):
            layers[index] = layer


@torch.no_grad()
def layer_calls(model: PreTrainedModel, family: Family, ids: torch.Tensor) -> tuple[torch.Tensor, list[LayerCall]]:
    """The input stream of the first layer, and the other arguments of each layer.

    ids (batch, tokens) -> stream (batch, tokens, hidden). The calls are valid for every batch of the same shape.
    """
    with _recorders(layers_of(model, family)) as stand_ins:
        options = {"use_cache": False} if family.causal else {}
        base_model(model)(ids, **options)
    stream = stand_ins[0].stream
    assert stream is not None
    return stream, [stand_in.call for stand_in in stand_ins]


def run_layer(
    layer: nn.Module, stream: torch.Tensor, call: LayerCall, weights: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Run one layer on one batch of the stream; ``weights``, if given, replace its parameters."""
    if weights:
        out: Any = functional_call(layer, dict(weights), (stream, *call.args), call.kwargs)
    else:
        out = layer(stream, *call.args, **call.kwargs)
    moved_on: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return moved_on


class StreamFile:
    """The residual stream of all windows in a file: (windows, tokens, hidden), read and written by rows.

    An existing file is reused; one of a different size is rejected. Disk space is allocated when the file is created:
    if the disk filled up under a memory-mapped file, the process would be killed without an error message.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        size = shape[0] * shape[1] * shape[2]
        size_bytes = size * dtype.itemsize
        if not path.exists():
            require_space(path.parent, size_bytes)
            write_atomic(path, lambda place: _allocate(place, size_bytes))
        elif path.stat().st_size != size_bytes:
            raise HeadcountError(
                f"{path} has {path.stat().st_size:,} bytes, not the {size_bytes:,} of {shape} {dtype}",
                fix="remove it, or choose another --out",
            )
        self.path = path
        self.rows = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)

    def read(self, rows: slice, device: torch.device) -> torch.Tensor:
        """A copy of some windows on ``device``; changes to it do not affect the file."""
        return self.rows[rows].to(device, copy=True)

    def write(self, rows: slice, stream: torch.Tensor) -> None:
        """Write windows to their rows."""
        self.rows[rows] = stream.to(self.rows.dtype).cpu()


def batches_of(count: int, size: int) -> list[slice]:
    """Slices of at most ``size`` windows that cover ``count``."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _allocate(place: Path, size_bytes: int) -> None:
    """Fill a file with zeros, with its disk space allocated."""
    with place.open("rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        else:  # macOS
            for start in range(0, size_bytes, _ZEROS):
                file.write(bytes(min(_ZEROS, size_bytes - start)))
