"""The two gathering passes: batch by batch with gradients, or layer by layer without.

Both are sequential and seeded by batch or layer, so a run that is killed and restarted writes the same bytes as an
uninterrupted one. Memory use does not grow with the number of tokens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headcount.core.seeds import torch_generator
from headcount.core.spec import ModelSpec
from headcount.core.store import read_tensors, write_tensors
from headcount.pretrained.families import attention_of, family_of, layers_of, projections_of, read_spec
from headcount.pretrained.running.capture import AttentionCall
from headcount.pretrained.running.layerwise import batches_of
from headcount.trimming.audit.heads import STRIDE, HeadStatistics, attention_rows
from headcount.trimming.audit.moments import LayerMoments
from headcount.trimming.audit.options import AuditOptions
from headcount.trimming.audit.passes import LocalGradients, fisher_batch, mixed_precision
from headcount.trimming.audit.stream import Walk

BATCH_TOKENS = 1024
"""Tokens per batch: enough for full speed on a CPU, small enough for the memory of a laptop."""
CHECKPOINT_SECONDS = 30.0
PLAIN_EVERY = 8
"""One in this many batches is also timed in a plain forward pass, for ``cost_ratio``."""


class LayerSums:
    """All statistics accumulated for one layer."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        layer_spec = spec.layers[layer]
        self.prefix = f"layers.{layer}"
        self.moments = LayerMoments(layer_spec.k_width, layer_spec.v_width, layer_spec.rotary_dim > 0)
        self.heads = HeadStatistics(layer_spec.n_heads)
        self.stream_energy = torch.zeros((), dtype=torch.float64)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All sums by name."""
        stream_energy = {f"{self.prefix}.stream_energy": self.stream_energy}
        return self.moments.tensors(self.prefix) | self.heads.tensors(self.prefix) | stream_energy

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Restore the sums from the output of ``tensors``."""
        self.moments.restore(self.prefix, saved)
        self.heads.restore(self.prefix, saved)
        self.stream_energy = saved[f"{self.prefix}.stream_energy"]


class Stopwatch:
    """Elapsed seconds of the audit and of the interleaved plain forward passes."""

    def __init__(self) -> None:
        self.audit = self.plain = 0.0
        self.audit_tokens = self.plain_tokens = 0

    @contextlib.contextmanager
    def time(self, what: str, tokens: int) -> Iterator[None]:
        """Add the time of the ``with`` block to ``audit`` or ``plain``."""
        start = time.perf_counter()
        yield
        setattr(self, what, getattr(self, what) + time.perf_counter() - start)
        setattr(self, f"{what}_tokens", getattr(self, f"{what}_tokens") + tokens)


def _batches(ids: torch.Tensor) -> list[slice]:
    return batches_of(len(ids), max(1, BATCH_TOKENS // ids.shape[1]))


@torch.no_grad()
def _plain(model: PreTrainedModel, ids: torch.Tensor, dtype: torch.dtype | None, watch: Stopwatch) -> None:
    """Time a plain forward pass, the baseline for the cost of the audit."""
    options = {"use_cache": False} if family_of(model.config).causal else {}
    with mixed_precision(ids.device, dtype), watch.time("plain", ids.numel()):
        model(ids, **options)


def gather_fisher(
    model: PreTrainedModel, ids: torch.Tensor, options: AuditOptions, folder: Path, watch: Stopwatch
) -> dict[str, torch.Tensor]:
    """Gather statistics batch by batch; the checkpoint stores all sums and the index of the next batch."""
    family, spec = family_of(model.config), read_spec(model)
    sums = [LayerSums(spec, index) for index in range(len(spec.layers))]
    attentions = [attention_of(layer, family) for layer in layers_of(model, family)]
    index_of = {id(module): index for index, module in enumerate(attentions)}

    def gather(call: AttentionCall, k_grad: torch.Tensor | None, v_grad: torch.Tensor | None) -> None:
        layer_sums = sums[index_of[id(call.module)]]
        with torch.no_grad():
            layer_sums.heads.add(attention_rows(call, STRIDE))
            layer_sums.moments.add(call, k_grad, v_grad)

    checkpoint = folder / "work" / "checkpoint.safetensors"
    first = 0
    if checkpoint.is_file():
        saved = read_tensors(checkpoint)
        first = int(saved.pop("next"))
        for entry in sums:
            entry.restore(saved)
    batches = _batches(ids)
    written = time.monotonic()
    for index in range(first, len(batches)):
        options.progress("audit", index, len(batches))
        batch = ids[batches[index]].to(model.device)
        generator = torch_generator(options.seed, "labels", index, device=model.device)
        with watch.time("audit", batch.numel()):
            fisher_batch(model, attentions, batch, generator, gather, options.dtype)
        if index % PLAIN_EVERY == 0:
            _plain(model, batch, options.dtype, watch)
        if time.monotonic() - written > CHECKPOINT_SECONDS:
            write_tensors(checkpoint, _together(sums) | {"next": torch.tensor(index + 1)})
            written = time.monotonic()
    options.progress("audit", len(batches), len(batches))
    return _together(sums)


def _together(sums: list[LayerSums]) -> dict[str, torch.Tensor]:
    return {name: tensor for layer_sums in sums for name, tensor in layer_sums.tensors().items()}


@torch.no_grad()
def gather_layerwise(
    model: PreTrainedModel, ids: torch.Tensor, options: AuditOptions, folder: Path, watch: Stopwatch
) -> dict[str, torch.Tensor]:
    """Gather statistics layer by layer; the work folder stores completed layers' sums and the residual stream."""
    family, spec = family_of(model.config), read_spec(model)
    walk = Walk(model, ids, folder / "work", BATCH_TOKENS, options.dtype)
    with watch.time("audit", 0):
        walk.enter()
    every = len(walk.batches)
    plain = {number * len(walk.layers) // every: number for number in range(0, every, PLAIN_EVERY)}
    for index in range(walk.first, len(walk.layers)):
        layer_sums = LayerSums(spec, index)
        output_matrix = projections_of(walk.layers[index], family, model.config).o
        gradients = LocalGradients(output_matrix, options.seed, index) if options.metric == "output" else None

        def entering(number: int, stream: torch.Tensor, layer_sums: LayerSums = layer_sums, index: int = index) -> None:
            options.progress("audit", index * every + number, len(walk.layers) * every)
            layer_sums.stream_energy += stream.double().square().sum().cpu()

        with watch.time("audit", 0):
            walk.layer(index, partial(_add_local, layer_sums, gradients), entering)
        walk.keep(index, layer_sums.tensors())
        if index in plain:  # spread over the run, so that a slowdown of the machine affects both timings
            _plain(model, ids[walk.batches[plain[index]]].to(model.device), options.dtype, watch)
    watch.audit_tokens += ids.numel() if walk.first == 0 else 0
    options.progress("audit", len(walk.layers) * every, len(walk.layers) * every)
    return {name: tensor for layer_tensors in walk.found() for name, tensor in layer_tensors.items()}


def _add_local(layer_sums: LayerSums, gradients: LocalGradients | None, batch: int, call: AttentionCall) -> None:
    rows = attention_rows(call, STRIDE)
    layer_sums.heads.add(rows)
    layer_sums.moments.add(call, *(gradients(call, rows, batch) if gradients else (None, None)))
