"""Repair: refit each output matrix so that the trimmed stack follows the dense model's residual stream.

Bottom up, with Z the trimmed layer's mixed heads (the inputs of ``o_proj``), x the dense stream before the layer, a the
dense attention's output, and x~ the trimmed stream before the layer, which carries the error accumulated below:

    min over W, b of  sum_tokens |W z + b - (x + a - x~)|^2 + lambda |W - W_old|^2,
    lambda = ``ridge`` * mean of the diagonal of Z'Z.

The target is the dense stream after attention, so each layer also compensates for error accumulated below it. (If the
attention output is normalised before it is added to the stream, the target is a itself.) The normal equations are in
float64; both streams are stored in files, so memory does not grow with the number of tokens, and a killed run resumes
at the layer where it stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from headcount.core.progress import Progress, silent
from headcount.core.store import read_tensors, write_tensors
from headcount.pretrained.families import attention_of, family_of, layers_of
from headcount.pretrained.running.layerwise import LayerCall, StreamFile, batches_of, layer_calls, run_layer
from headcount.trimming.audit.gather import BATCH_TOKENS
from headcount.trimming.audit.passes import mixed_precision
from headcount.trimming.trim.build import output_of

RIDGE = 1e-2
"""Ridge toward the old weights, relative to the mean energy of the inputs: undetermined directions stay unchanged."""


class _EnoughError(Exception):
    """Raised to skip the rest of a layer once its input to the output matrix is recorded."""


@contextlib.contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def attention_output(layer: nn.Module, attention: nn.Module, stream: torch.Tensor, call: LayerCall) -> tuple[Any, Any]:
    """(stream after the layer, output of its attention) of a dense layer."""
    seen: list[torch.Tensor] = []
    handle = attention.register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    with _hooked(handle):
        return run_layer(layer, stream, call), seen[0]


def mixed_heads(layer: nn.Module, output: nn.Module, stream: torch.Tensor, call: LayerCall) -> torch.Tensor:
    """The input of a trimmed layer's output matrix: (batch, tokens, features). The rest of the layer is not run."""
    seen: list[torch.Tensor] = []

    def stop(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0])
        raise _EnoughError

    with _hooked(output.register_forward_pre_hook(stop)), contextlib.suppress(_EnoughError):
        run_layer(layer, stream, call)
    return seen[0]


class NormalEquations:
    """Normal equations of ridge regression with an intercept, accumulated over batches in float64."""

    def __init__(self, features: int, outputs: int) -> None:
        self.gram = torch.zeros(features + 1, features + 1, dtype=torch.float64)
        self.cross = torch.zeros(outputs, features + 1, dtype=torch.float64)

    def add(self, z: torch.Tensor, y: torch.Tensor) -> None:
        """Add rows: z (rows, features), y (rows, outputs)."""
        z = z.flatten(0, -2).double()
        z = torch.cat((z, z.new_ones(len(z), 1)), 1)
        y = y.flatten(0, -2).double()
        self.gram += (z.T @ z).cpu()
        self.cross += (y.T @ z).cpu()

    def solve(self, weight: torch.Tensor, bias: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The minimiser, regularised toward ``weight`` (outputs, features); the intercept is not regularised.

        Without regularisation (``ridge`` 0, or all features zero) the minimiser may not be unique; the one nearest to
        ``weight`` and ``bias`` is returned. A dead layer thus keeps its weights, and its bias becomes the target mean.
        """
        old = torch.cat((weight, bias[:, None]), 1).double().cpu()
        pull = torch.full((len(self.gram),), ridge * float(self.gram.diagonal()[:-1].mean()), dtype=torch.float64)
        pull[-1] = 0.0
        pulled = self.gram + pull.diag()
        if float(pull[0]) > 0.0:
            new = torch.linalg.solve(pulled, (self.cross + old * pull).T).T
        else:
            new = old + (self.cross - old @ self.gram) @ torch.linalg.pinv(pulled, hermitian=True)
        return new[:, :-1], new[:, -1]


@torch.no_grad()
def repair(
    dense: PreTrainedModel,
    trimmed: PreTrainedModel,
    ids: torch.Tensor,
    work: Path,
    *,
    ridge: float = RIDGE,
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> None:
    """Refit every output matrix of ``trimmed`` in place.

    Args:
        dense: the source model, not modified.
        trimmed: the result of ``build`` for it.
        ids: windows of calibration tokens (windows, context).
        work: folder for the streams and completed layers; the caller removes it.
        ridge: see the module docstring.
        dtype: autocast dtype of matrix products; ``None``: the models' own dtype.
        progress: progress callback.
    """
    family = family_of(dense.config)
    layers = list(zip(layers_of(dense, family), layers_of(trimmed, family), strict=True))
    batches = batches_of(len(ids), max(1, BATCH_TOKENS // ids.shape[1]))
    shape = (len(ids), ids.shape[1], dense.config.hidden_size)
    work.mkdir(parents=True, exist_ok=True)
    precise = torch.promote_types(torch.float32, dense.dtype)
    streams = [
        {who: StreamFile(work / f"{who}-{turn}.bin", shape, precise) for who in ("dense", "trimmed")} for turn in (0, 1)
    ]
    first = _take_up(trimmed, work)
    calls: dict[int, tuple[list[LayerCall], list[LayerCall]]] = {}
    with mixed_precision(dense.device, dtype):
        for rows in batches:
            size = rows.stop - rows.start
            if first == 0 or size not in calls:
                batch = ids[rows].to(dense.device)
                stream, dense_calls = layer_calls(dense, family, batch)
                calls[size] = (dense_calls, layer_calls(trimmed, family, batch)[1])
                if first == 0:
                    streams[0]["dense"].write(rows, stream)
                    streams[0]["trimmed"].write(rows, stream)
        for index in range(first, len(layers)):
            dense_layer, layer = layers[index]
            attention = attention_of(dense_layer, family)
            output = output_of(attention_of(layer, family))
            current, following = streams[index % 2], streams[(index + 1) % 2]
            equations = NormalEquations(output.in_features, output.out_features)
            for number, rows in enumerate(batches):
                progress("repair", index * len(batches) + number, len(layers) * len(batches))
                dense_call, call = (model_calls[index] for model_calls in calls[rows.stop - rows.start])
                dense_stream = current["dense"].read(rows, dense.device)
                trimmed_stream = current["trimmed"].read(rows, dense.device)
                after, made = attention_output(dense_layer, attention, dense_stream, dense_call)
                following["dense"].write(rows, after)
                target = made if family.attention_is_normed else dense_stream + made - trimmed_stream
                equations.add(mixed_heads(layer, output, trimmed_stream, call), target)
            weight, bias = equations.solve(output.weight, output.bias, ridge)
            output.weight.copy_(weight)
            output.bias.copy_(bias)
            for rows in batches:
                trimmed_stream = current["trimmed"].read(rows, dense.device)
                following["trimmed"].write(
                    rows, run_layer(layer, trimmed_stream, calls[rows.stop - rows.start][1][index])
                )
            write_tensors(work / f"layer-{index:04d}.safetensors", {"weight": output.weight, "bias": output.bias})
    progress("repair", len(layers) * len(batches), len(layers) * len(batches))


def _take_up(trimmed: PreTrainedModel, work: Path) -> int:
    """Load the output matrices of completed layers; returns the number of completed layers."""
    finished = sorted(work.glob("layer-*.safetensors"))
    family = family_of(trimmed.config)
    for file, layer in zip(finished, layers_of(trimmed, family), strict=False):
        saved = read_tensors(file)
        output = output_of(attention_of(layer, family))
        output.weight.copy_(saved["weight"])
        output.bias.copy_(saved["bias"])
    return len(finished)
