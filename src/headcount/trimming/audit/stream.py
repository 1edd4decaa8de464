"""Running a model one layer at a time, with an attention hook.

The residual stream between layers is stored in files, and the results of a layer are written before the next layer
begins, so a killed run resumes after the last completed layer and produces the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headcount.core.progress import Progress, silent
from headcount.core.store import read_tensors, write_tensors
from headcount.pretrained.families import attention_of, family_of, layers_of
from headcount.pretrained.running.capture import AttentionCall, observed_attention
from headcount.pretrained.running.layerwise import LayerCall, StreamFile, batches_of, layer_calls, run_layer
from headcount.trimming.audit.passes import mixed_precision

BATCH_TOKENS = 2048
"""Tokens per batch when all of a layer's calls are held in memory."""

Visit = Callable[[int, list[AttentionCall]], dict[str, torch.Tensor]]
"""Called with a layer's index and its attention calls, one per batch of windows; the returned tensors are stored."""


class Walk:
    """Runs ids (windows, tokens) through a model: call ``enter``, then ``layer`` for each layer starting at ``first``.

    work: a folder used only by this run; completed layers in it are reused. It is not removed.
    batch_tokens: tokens per batch. dtype: of matrix products (``None``: the model's own).
    """

    def __init__(
        self, model: PreTrainedModel, ids: torch.Tensor, work: Path, batch_tokens: int, dtype: torch.dtype | None
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.model, self.ids, self.work, self.dtype = model, ids, work, dtype
        self.family = family_of(model.config)
        self.layers = layers_of(model, self.family)
        self.attentions = [attention_of(layer, self.family) for layer in self.layers]
        self.batches = batches_of(len(ids), max(1, batch_tokens // ids.shape[1]))
        self.first = len(self._files())
        self._calls: dict[int, list[LayerCall]] = {}
        self._streams: list[StreamFile] = []

    def _files(self) -> list[Path]:
        return sorted(self.work.glob("layer-*.safetensors"))

    def enter(self) -> None:
        """Write the input stream of the first layer, and record the arguments of each layer."""
        shape = (len(self.ids), self.ids.shape[1], self.model.config.hidden_size)
        self._streams = [StreamFile(self.work / f"stream-{turn}.bin", shape, self.model.dtype) for turn in (0, 1)]
        with self._computing(self.attentions, lambda call: None):
            for rows in self.batches:
                size = rows.stop - rows.start
                if self.first == 0 or size not in self._calls:
                    ids = self.ids[rows].to(self.model.device).long()
                    stream, self._calls[size] = layer_calls(self.model, self.family, ids)
                    if self.first == 0:
                        self._streams[0].write(rows, stream)

    def layer(
        self,
        index: int,
        observe: Callable[[int, AttentionCall], None],
        entering: Callable[[int, torch.Tensor], None] = lambda number, stream: None,
    ) -> None:
        """Run all windows through one layer; ``observe`` and ``entering`` receive the batch number."""
        layer, attentions = self.layers[index], self.attentions[index : index + 1]
        current, following = self._streams[index % 2], self._streams[(index + 1) % 2]
        held = _cast_once(layer, self.dtype)
        for number, rows in enumerate(self.batches):
            call = self._calls[rows.stop - rows.start][index]
            with self._computing(attentions, partial(observe, number)):
                stream = current.read(rows, self.model.device)
                entering(number, stream)
                following.write(rows, run_layer(layer, stream, call, held))

    def _computing(self, attentions: list[nn.Module], observe: Callable[[AttentionCall], None]) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(mixed_precision(self.model.device, self.dtype))
        stack.enter_context(observed_attention(self.model, attentions, observe))
        return stack

    def keep(self, index: int, tensors: dict[str, torch.Tensor]) -> None:
        """Store the results of a layer, which marks it as completed."""
        write_tensors(self.work / f"layer-{index:04d}.safetensors", tensors)

    def found(self) -> list[dict[str, torch.Tensor]]:
        """The stored results, one mapping per completed layer."""
        return [read_tensors(file) for file in self._files()]


def _cast_once(layer: nn.Module, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Cast once the weights that autocast would cast for every batch: saves a tenth of a small model's forward pass."""
    if dtype is None:
        return {}
    return {
        f"{name}.{parameter_name}": parameter.detach().to(dtype)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        for parameter_name, parameter in module.named_parameters(recurse=False)
    }


@torch.no_grad()
def visit_layers(
    model: PreTrainedModel,
    ids: torch.Tensor,
    work: Path,
    visit: Visit,
    *,
    dtype: torch.dtype | None = None,
    stage: str = "layers",
    progress: Progress = silent,
) -> list[dict[str, torch.Tensor]]:
    """Run ids (windows, tokens) through the model; returns the results of ``visit`` for each layer.

    Queries, keys and values of all windows of one layer are held in memory: ids should be a sample, not a corpus.

    Args:
        model: a model of a supported family.
        ids: windows of equal length.
        work: see ``Walk``.
        visit: see ``Visit``.
        dtype: of matrix products (``None``: the model's own).
        stage: the stage name passed to ``progress``.
        progress: progress callback.
    """
    walk = Walk(model, ids, work, BATCH_TOKENS, dtype)
    if walk.first < len(walk.layers):
        walk.enter()
    for index in range(walk.first, len(walk.layers)):
        progress(stage, index, len(walk.layers))
        seen: list[AttentionCall] = []

        def note(number: int, call: AttentionCall, seen: list[AttentionCall] = seen) -> None:
            seen.append(call)

        walk.layer(index, note)
        walk.keep(index, visit(index, seen))
    progress(stage, len(walk.layers), len(walk.layers))
    return walk.found()


def forget(work: Path) -> None:
    """Remove a work folder whose results are stored elsewhere."""
    shutil.rmtree(work, ignore_errors=True)
