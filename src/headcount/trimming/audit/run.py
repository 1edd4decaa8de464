"""Running an audit: check the inputs, gather moments (see ``gather``), write the folder."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.core.spec import ModelSpec
from headcount.core.store import digest, open_run_folder, write_json, write_tensors
from headcount.pretrained.families import UNEQUAL, family_of, layers_of, projections_of, read_spec
from headcount.pretrained.opening.loading import fingerprint, is_trimmed
from headcount.trimming.audit.gather import LayerSums, Stopwatch, gather_fisher, gather_layerwise
from headcount.trimming.audit.record import (
    MOMENTS,
    RECORD,
    TIMING,
    TOKENS,
    Audit,
    AuditRecord,
    HeadRecord,
    LayerRecord,
    Metric,
    SideRecord,
    TextRecord,
    TimingRecord,
    read_moments,
)
from headcount.trimming.audit.spectra import directions, head_blocks
from headcount.trimming.audit.unused import UnusedSide, unused_sides


def audit(
    model: PreTrainedModel,
    tokens: torch.Tensor | Mapping[str, torch.Tensor],
    *,
    metric: Metric = "fisher",
    count: int | Mapping[str, int] | None = None,
    seed: int = 0,
    matmul_dtype: str = "auto",
    name: str = "model",
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Audit:
    """Measure what a model's attention uses on given windows of tokens.

    Args:
        model: a dense model of a known family.
        tokens: ids (windows, context), or such tensors by kind of text.
        metric: ``fisher`` (gradients of the loss), ``output`` (of each layer's attention output, no backward
            pass), ``whitened`` (none: the baseline).
        count: windows of each kind that statistics are gathered on (``None``: all); the rest are kept for
            ``trim``'s repair.
        seed: seeds label and direction draws.
        matmul_dtype: ``auto`` (bfloat16 where the processor multiplies it natively, else the model's own),
            ``model``, or ``bfloat16``. Sums are float64 in any case.
        name: what the record calls the model.
        out: run folder; ``None`` keeps everything in memory.
        overwrite: replace a run folder that was made from other inputs.
        progress: told how far it is.

    Returns:
        The ``Audit``; with ``out`` it is also on disk.

    Raises:
        HeadcountError: unknown family, trimmed model, no language-model head (``fisher``), wrong shapes.

    Example:
        >>> found = audit(model, tokens, metric="output")        # doctest: +SKIP
        >>> found.directions(0, "values").energies[:4]           # doctest: +SKIP
    """
    windows = dict(tokens) if isinstance(tokens, Mapping) else {"text": tokens}
    spec = check_inputs(model, windows, metric)
    counted = _counted(windows, count)
    with contextlib.ExitStack() as stack:
        if out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headcount-")))
        else:
            inputs = {
                "fingerprint": fingerprint(model),
                "metric": metric,
                "seed": seed,
                "matmul_dtype": str(resolve_matmul_dtype(model, matmul_dtype)),
                "tokens": {kind: digest(ids.numpy().tobytes()) for kind, ids in windows.items()},
                "windows": {kind: len(ids) for kind, ids in counted.items()},
            }
            folder = open_run_folder(Path(out), "audit", inputs, overwrite)
        found = run_audit(model, spec, windows, counted, metric, seed, matmul_dtype, name, folder, progress)
        return found if out is not None else replace(found, folder=None)


def _counted(windows: Mapping[str, torch.Tensor], count: int | Mapping[str, int] | None) -> dict[str, torch.Tensor]:
    """The windows that statistics are gathered on: the first of each kind."""
    if count is None:
        return dict(windows)
    each = count if isinstance(count, Mapping) else dict.fromkeys(windows, count)
    if any(each.get(kind, 0) < 1 for kind in windows):
        raise HeadcountError("every kind of text needs at least one window to count", fix="ask for more tokens")
    return {kind: ids[: each[kind]] for kind, ids in windows.items()}


def run_audit(
    model: PreTrainedModel,
    spec: ModelSpec,
    windows: Mapping[str, torch.Tensor],
    counted: Mapping[str, torch.Tensor],
    metric: Metric,
    seed: int,
    matmul_dtype: str,
    name: str,
    folder: Path,
    progress: Progress,
    control_tokens: Mapping[str, int] | None = None,
) -> Audit:
    """Run or go on with an audit in a folder that is opened already; see ``audit``.

    ``control_tokens``: what ``TextRecord.control_tokens`` says of each kind of text.
    """
    if (folder / RECORD).is_file():
        return Audit.open(folder)
    family = family_of(model.config)
    dtype = resolve_matmul_dtype(model, matmul_dtype)
    ids = torch.cat(list(counted.values()))
    watch = Stopwatch()
    run = gather_fisher if metric == "fisher" else gather_layerwise
    moments = run(model, family, spec, ids, metric, seed, dtype, folder, watch, progress)
    record = AuditRecord(
        model=name,
        fingerprint=fingerprint(model),
        spec=spec,
        metric=metric,
        seed=seed,
        context=ids.shape[1],
        tokens=ids.numel(),
        texts=[
            TextRecord(
                kind=kind,
                windows=len(part),
                tokens=part.numel(),
                digest=digest(part.numpy().tobytes()),
                control_tokens=(control_tokens or {}).get(kind, 0),
            )
            for kind, part in counted.items()
        ],
        layers=_layer_records(moments, spec, metric, model, progress),
    )
    timing = _timing(watch, ids.numel(), dtype, model)
    kept = {kind: part.to(torch.int32) for kind, part in windows.items()}
    write_tensors(folder / MOMENTS, moments)
    write_tensors(folder / TOKENS, kept)
    write_json(folder / TIMING, timing)
    write_json(folder / RECORD, record)
    shutil.rmtree(folder / "work", ignore_errors=True)
    return Audit(record, moments, kept, timing, folder)


def check_inputs(model: PreTrainedModel, windows: Mapping[str, torch.Tensor], metric: str) -> ModelSpec:
    """Refuse what cannot be audited; returns the model's spec."""
    family = family_of(model.config)
    if is_trimmed(model):
        raise HeadcountError("the model is trimmed already", fix="audit the model it was made from")
    if family.model_type == UNEQUAL:
        raise HeadcountError(f"{family.name} cannot be audited", fix="audit a model whose layers are equal")
    if metric not in ("fisher", "output", "whitened"):
        raise HeadcountError(f"unknown metric {metric!r}", fix="use fisher, output or whitened")
    if metric == "fisher" and model.get_output_embeddings() is None:
        raise HeadcountError(
            f"{family.name} has no language-model head here, which the fisher metric needs", fix="use --metric output"
        )
    if not windows:
        raise HeadcountError("there is no text to measure on", fix="give at least one kind")
    contexts = {ids.shape[1] if ids.ndim == 2 else 0 for ids in windows.values()}
    if len(contexts) != 1 or 0 in contexts or any(len(ids) == 0 for ids in windows.values()):
        raise HeadcountError(
            "tokens must be (windows, context), one context for all kinds, none empty", fix="cut again"
        )
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    for kind, ids in windows.items():
        if int(ids.min()) < 0 or int(ids.max()) >= rows:
            raise HeadcountError(
                f"{kind}: token ids go to {int(ids.max())}, the model has {rows}", fix="use its tokenizer"
            )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and max(contexts) > longest:
        raise HeadcountError(
            f"a context of {max(contexts)} is beyond the model's {longest} positions", fix="shorten it"
        )
    return read_spec(model)


def resolve_matmul_dtype(model: PreTrainedModel, choice: str) -> torch.dtype | None:
    """The autocast dtype for a choice of ``auto``, ``model`` or ``bfloat16``; ``None``: the model's own."""
    if choice not in ("auto", "model", "bfloat16"):
        raise HeadcountError(f"unknown dtype {choice!r} for matrix products", fix="use auto, model or bfloat16")
    if choice == "model" or model.dtype != torch.float32:
        return None
    if choice == "bfloat16":
        return torch.bfloat16
    if model.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    native = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    )
    return torch.bfloat16 if model.device.type == "cpu" and native else None


def _layer_records(
    moments: Mapping[str, torch.Tensor], spec: ModelSpec, metric: str, model: PreTrainedModel, progress: Progress
) -> list[LayerRecord]:
    found = []
    family = family_of(model.config)
    for index, layer in enumerate(layers_of(model, family)):
        progress("spectra", index, len(spec.layers))
        weights = projections_of(layer, family, model.config)
        found.append(_layer_record(moments, spec, index, metric, unused_sides(moments, index, weights)))
    progress("spectra", len(spec.layers), len(spec.layers))
    return found


def _layer_record(
    moments: Mapping[str, torch.Tensor], spec: ModelSpec, index: int, metric: str, unused: tuple[UnusedSide, ...]
) -> LayerRecord:
    own = LayerSums(spec, index)
    own.restore(dict(moments))
    sides = {}
    for side in own.moments.sides:
        found = read_moments(moments, index, side, metric)
        blocks = head_blocks(*found, spec.layers[index].n_kv_heads)
        sides[side] = SideRecord(
            joint=directions(*found).energies.tolist(), per_head=[block.energies.tolist() for block in blocks]
        )
    heads = [HeadRecord(**head) for head in own.heads.averages()]
    return LayerRecord(layer=index, heads=heads, sides=sides, unused=unused)


def _timing(watch: Stopwatch, tokens: int, dtype: torch.dtype | None, model: PreTrainedModel) -> TimingRecord:
    """Seconds per token, of the audit and of plain forward passes timed between its batches."""
    plain = watch.plain / max(watch.plain_tokens, 1) * tokens
    spent = watch.audit / watch.audit_tokens * tokens if watch.audit_tokens else math.nan
    return TimingRecord(
        seconds=watch.audit,
        plain_forward_seconds=plain,
        cost_ratio=spent / plain if plain and spent == spent else 0.0,
        threads=torch.get_num_threads(),
        matmul_dtype=str(dtype or model.dtype).removeprefix("torch."),
    )
