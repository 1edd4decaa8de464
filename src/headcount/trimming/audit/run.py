"""Running an audit: validate the inputs, gather moments (see ``gather``), write the run folder."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.core.spec import ModelSpec
from headcount.core.store import digest, open_run_folder, write_json, write_tensors
from headcount.pretrained.families import UNEQUAL, family_of, layers_of, projections_of, read_spec
from headcount.pretrained.opening.fingerprint import fingerprint
from headcount.pretrained.opening.loading import OpenModel, is_trimmed
from headcount.pretrained.text.calibration import KEPT_TOKENS
from headcount.trimming.audit.gather import LayerSums, Stopwatch, gather_fisher, gather_layerwise
from headcount.trimming.audit.options import AuditOptions
from headcount.trimming.audit.record import Audit, read_moments
from headcount.trimming.audit.schema import (
    MOMENTS,
    RECORD,
    TIMING,
    TOKENS,
    AuditRecord,
    HeadRecord,
    LayerRecord,
    Metric,
    SideRecord,
    TextRecord,
    TimingRecord,
    UnusedSide,
)
from headcount.trimming.audit.spectra import directions, head_blocks
from headcount.trimming.audit.text import AuditText, ReadText, TokenIds
from headcount.trimming.audit.unused import unused_sides


def audit(
    model: OpenModel | PreTrainedModel,
    tokens: int | torch.Tensor | Mapping[str, torch.Tensor] = 36_864,
    *,
    metric: Metric = "fisher",
    context: int = 512,
    texts: Sequence[Path | str] = (),
    kept_tokens: int = KEPT_TOKENS,
    self_text: Path | str | None = None,
    count: int | Mapping[str, int] | None = None,
    seed: int = 0,
    matmul_dtype: str = "auto",
    name: str | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Audit:
    """Measure what a model's attention uses; ``headcount audit`` calls this and writes the same folder.

    Args:
        model: a dense model of a supported family; reading text requires the result of ``open_model``.
        tokens: the number of text tokens to gather statistics on, or token ids: a (windows, context) tensor, or such
            tensors by kind of text.
        metric: ``fisher`` (gradients of the loss), ``output`` (gradients of each layer's attention output, no backward
            pass), ``whitened`` (no gradients: the baseline).
        context: window length in tokens when text is cut.
        texts: UTF-8 files to use instead of the default mixture (prose, code, text sampled from the model).
        kept_tokens: tokens of text to keep for ``trim``'s repair, at least ``tokens``; fewer if the text is too short.
        self_text: folder for the sampled text, so that audits with other metrics can share it; ``None``: in ``out``.
        count: with token ids, windows of each kind that statistics are gathered on (``None``: all); the rest are kept
            for ``trim``'s repair.
        seed: random seed for text selection and for label and direction draws.
        matmul_dtype: ``auto`` (bfloat16 where the processor supports it natively, else the model's own dtype),
            ``model``, or ``bfloat16``. Sums are always float64.
        name: the model's name in the record; ``None``: the name it was opened under, or "model".
        out: run folder; ``None`` keeps everything in memory.
        overwrite: replace a run folder that was made from other inputs.
        progress: progress callback.

    Returns:
        The ``Audit``; with ``out`` it is also on disk.

    Raises:
        HeadcountError: unknown family, trimmed model, no language-model head (``fisher``), wrong shapes, text without a
            tokenizer, text that is too short.

    Example:
        >>> audit(open_model("demo"), out="runs/audit")                    # doctest: +SKIP
        >>> record = audit(model, token_ids, metric="output")              # doctest: +SKIP
        >>> record.directions(0, "values").energies[:4]                    # doctest: +SKIP
    """
    opened = model if isinstance(model, OpenModel) else None
    live = model.model if isinstance(model, OpenModel) else model
    text: TokenIds | ReadText
    if not isinstance(tokens, int):
        if texts:
            raise HeadcountError("both token ids and texts are given", fix="give one of them")
        text = TokenIds(tokens, count)
    elif opened is None:
        raise HeadcountError(
            "a model without a tokenizer cannot read text", fix="pass what headcount.open_model returns, or token ids"
        )
    else:
        text = ReadText(
            opened,
            tokens=tokens,
            context=context,
            texts=texts,
            kept_tokens=kept_tokens,
            self_text=self_text,
            seed=seed,
            overwrite=overwrite,
        )
    check_inputs(live, text.windows, metric)
    options = AuditOptions(
        metric=metric,
        seed=seed,
        dtype=resolve_matmul_dtype(live, matmul_dtype),
        name=name or (opened.name if opened else "model"),
        progress=progress,
    )
    if out is None:
        with tempfile.TemporaryDirectory(prefix="headcount-") as place:
            return replace(run_audit(live, text.complete(Path(place), options), options, Path(place)), folder=None)
    inputs = text.inputs(opened.fingerprint if opened else fingerprint(live), options)
    folder = open_run_folder(Path(out), "audit", inputs, overwrite)
    if (folder / RECORD).is_file():
        return Audit.open(folder)
    return run_audit(live, text.complete(folder, options), options, folder)


def run_audit(model: PreTrainedModel, text: AuditText, options: AuditOptions, folder: Path) -> Audit:
    """Run or resume an audit in a folder; see ``audit``."""
    ids = torch.cat(list(text.counted.values()))
    watch = Stopwatch()
    gather = gather_fisher if options.metric == "fisher" else gather_layerwise
    moments = gather(model, ids, options, folder, watch)
    record = AuditRecord(
        model=options.name,
        fingerprint=fingerprint(model),
        spec=read_spec(model),
        metric=options.metric,
        seed=options.seed,
        context=ids.shape[1],
        tokens=ids.numel(),
        texts=[
            TextRecord(
                kind=kind,
                windows=len(part),
                tokens=part.numel(),
                digest=digest(part.numpy().tobytes()),
                control_tokens=text.control_tokens.get(kind, 0),
            )
            for kind, part in text.counted.items()
        ],
        layers=_layer_records(moments, model, options),
    )
    timing = _timing(watch, ids.numel(), options.dtype, model)
    windows = {kind: part.to(torch.int32) for kind, part in text.windows.items()}
    write_tensors(folder / MOMENTS, moments)
    write_tensors(folder / TOKENS, windows)
    write_json(folder / TIMING, timing)
    write_json(folder / RECORD, record)
    shutil.rmtree(folder / "work", ignore_errors=True)
    return Audit(record, moments, windows, timing, folder)


def check_inputs(model: PreTrainedModel, windows: Mapping[str, torch.Tensor], metric: str) -> ModelSpec:
    """Reject inputs that cannot be audited; returns the model's spec."""
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
    """The autocast dtype for ``auto``, ``model`` or ``bfloat16``; ``None``: the model's own dtype."""
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
    moments: Mapping[str, torch.Tensor], model: PreTrainedModel, options: AuditOptions
) -> list[LayerRecord]:
    family, spec = family_of(model.config), read_spec(model)
    records = []
    for index, layer in enumerate(layers_of(model, family)):
        options.progress("spectra", index, len(spec.layers))
        weights = projections_of(layer, family, model.config)
        records.append(_layer_record(moments, spec, index, options.metric, unused_sides(moments, index, weights)))
    options.progress("spectra", len(spec.layers), len(spec.layers))
    return records


def _layer_record(
    moments: Mapping[str, torch.Tensor], spec: ModelSpec, index: int, metric: Metric, unused: tuple[UnusedSide, ...]
) -> LayerRecord:
    sums = LayerSums(spec, index)
    sums.restore(dict(moments))
    sides = {}
    for side in sums.moments.sides:
        side_moments = read_moments(moments, index, side, metric)
        blocks = head_blocks(*side_moments, spec.layers[index].n_kv_heads)
        sides[side] = SideRecord(
            joint=directions(*side_moments).energies.tolist(), per_head=[block.energies.tolist() for block in blocks]
        )
    heads = [HeadRecord(**head) for head in sums.heads.averages()]
    return LayerRecord(layer=index, heads=heads, sides=sides, unused=unused)


def _timing(watch: Stopwatch, tokens: int, dtype: torch.dtype | None, model: PreTrainedModel) -> TimingRecord:
    """Time of the audit and of the plain forward passes timed between its batches."""
    plain = watch.plain / max(watch.plain_tokens, 1) * tokens
    spent = watch.audit / watch.audit_tokens * tokens if watch.audit_tokens else math.nan
    return TimingRecord(
        seconds=watch.audit,
        plain_forward_seconds=plain,
        cost_ratio=spent / plain if plain and spent == spent else 0.0,
        threads=torch.get_num_threads(),
        matmul_dtype=str(dtype or model.dtype).removeprefix("torch."),
    )
