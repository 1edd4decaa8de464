"""Showing a model's attention layer by layer: queries, keys and values of all windows of one layer at once.

Only one layer's tensors are held; the residual stream between layers lies in files, and what is found of a layer is
written before the next one begins, so a killed run goes on from the last finished layer and ends with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headcount.audit.passes import mixed_precision
from headcount.pretrained.capture import AttentionCall, observed_attention
from headcount.pretrained.families import attention_of, family_of, layers_of
from headcount.pretrained.layerwise import LayerCall, StreamFile, batches_of, layer_calls, run_layer
from headcount.progress import Progress, silent
from headcount.store import read_tensors, write_tensors

BATCH_TOKENS = 2048
"""Tokens that go through a layer at once."""

Visit = Callable[[int, list[AttentionCall]], dict[str, torch.Tensor]]
"""Told a layer's index and its calls, one a batch of windows; what it returns is kept."""


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
    """Run ids (windows, tokens) through the model a layer at a time; returns what ``visit`` found of each.

    Args:
        model: a model of a known family.
        ids: windows of one length.
        work: a folder of this run alone; what it has of the same run already is taken from there. It is left in place.
        visit: see ``Visit``.
        dtype: of matrix products (``None``: the model's own).
        stage: what ``progress`` is told.
        progress: told how far it is.
    """
    work.mkdir(parents=True, exist_ok=True)
    family = family_of(model.config)
    layers = layers_of(model, family)
    attentions = [attention_of(layer, family) for layer in layers]
    batches = batches_of(len(ids), max(1, BATCH_TOKENS // ids.shape[1]))
    shape = (len(ids), ids.shape[1], model.config.hidden_size)
    done = [read_tensors(file) for file in sorted(work.glob("layer-*.safetensors"))]
    if len(done) == len(layers):
        return done
    streams = [StreamFile(work / f"stream-{turn}.bin", shape, model.dtype) for turn in (0, 1)]
    calls: dict[int, list[LayerCall]] = {}
    seen: list[AttentionCall] = []
    with mixed_precision(model.device, dtype), observed_attention(model, attentions, lambda call: None):
        for rows in batches:
            size = rows.stop - rows.start
            if not done or size not in calls:
                stream, calls[size] = layer_calls(model, family, ids[rows].to(model.device).long())
                if not done:
                    streams[0].write(rows, stream)
    for index in range(len(done), len(layers)):
        progress(stage, index, len(layers))
        current, following = streams[index % 2], streams[(index + 1) % 2]
        seen.clear()
        observed = observed_attention(model, attentions[index : index + 1], seen.append)
        with mixed_precision(model.device, dtype), observed:
            for rows in batches:
                stream = current.read(rows, model.device)
                following.write(rows, run_layer(layers[index], stream, calls[rows.stop - rows.start][index]))
        found = visit(index, seen)
        write_tensors(work / f"layer-{index:04d}.safetensors", found)
        done.append({name: tensor.cpu() for name, tensor in found.items()})
    progress(stage, len(layers), len(layers))
    return done


def forget(work: Path) -> None:
    """Remove a work folder whose findings are kept elsewhere."""
    shutil.rmtree(work, ignore_errors=True)
