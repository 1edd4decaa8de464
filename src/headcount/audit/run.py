"""Running an audit: stream windows through a model, sum moments, resume after a kill, write the folder.

``fisher`` goes batch by batch and keeps its sums in a checkpoint; ``output`` and ``whitened`` go layer by layer
and keep finished layers. Both are sequential and seeded by batch or layer, so that a run that was killed and
started again writes the same bytes as one that was not. Memory does not grow with the number of tokens.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headcount.audit.heads import STRIDE, HeadStatistics, attention_rows
from headcount.audit.moments import LayerMoments
from headcount.audit.passes import LocalGradients, fisher_batch, mixed_precision
from headcount.audit.record import (
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
from headcount.audit.spectra import directions, head_blocks
from headcount.errors import HeadcountError
from headcount.pretrained.capture import AttentionCall, observed_attention
from headcount.pretrained.families import Family, attention_of, family_of, layers_of, projections_of, read_spec
from headcount.pretrained.layerwise import LayerCall, StreamFile, batches_of, layer_calls, run_layer
from headcount.pretrained.loading import fingerprint, is_trimmed
from headcount.progress import Progress, silent
from headcount.seeds import torch_generator
from headcount.spec import ModelSpec
from headcount.store import digest, open_run_folder, read_tensors, write_json, write_tensors

BATCH_TOKENS = 1024
"""Tokens that go through the model at once: enough for full speed on a CPU, small enough for a laptop."""
CHECKPOINT_SECONDS = 30.0
PLAIN_EVERY = 8
"""One batch in this many is also timed in a plain forward pass, for ``cost_ratio``."""


class LayerSums:
    """All that is summed for one layer."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        own = spec.layers[layer]
        self.prefix = f"layers.{layer}"
        self.moments = LayerMoments(own.k_width, own.v_width, own.rotary_dim > 0)
        self.heads = HeadStatistics(own.n_heads)
        self.stream_energy = torch.zeros((), dtype=torch.float64)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All sums by name."""
        own = {f"{self.prefix}.stream_energy": self.stream_energy}
        return self.moments.tensors(self.prefix) | self.heads.tensors(self.prefix) | own

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Take up what ``tensors`` gave."""
        self.moments.restore(self.prefix, saved)
        self.heads.restore(self.prefix, saved)
        self.stream_energy = saved[f"{self.prefix}.stream_energy"]


class Stopwatch:
    """Seconds of the audit itself and of plain forward passes beside it."""

    def __init__(self) -> None:
        self.audit = self.plain = 0.0
        self.audit_tokens = self.plain_tokens = 0

    @contextlib.contextmanager
    def time(self, what: str, tokens: int) -> Iterator[None]:
        """Add the block's time to ``audit`` or ``plain``."""
        start = time.perf_counter()
        yield
        setattr(self, what, getattr(self, what) + time.perf_counter() - start)
        setattr(self, f"{what}_tokens", getattr(self, f"{what}_tokens") + tokens)


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
) -> Audit:
    """Run or go on with an audit in a folder that is opened already; see ``audit``."""
    if (folder / RECORD).is_file():
        return Audit.open(folder)
    family = family_of(model.config)
    dtype = resolve_matmul_dtype(model, matmul_dtype)
    ids = torch.cat(list(counted.values()))
    watch = Stopwatch()
    run = _run_fisher if metric == "fisher" else _run_layerwise
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
            TextRecord(kind=kind, windows=len(part), tokens=part.numel(), digest=digest(part.numpy().tobytes()))
            for kind, part in counted.items()
        ],
        layers=[_layer_record(moments, spec, index, metric) for index in range(len(spec.layers))],
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


def _batches(ids: torch.Tensor) -> list[slice]:
    return batches_of(len(ids), max(1, BATCH_TOKENS // ids.shape[1]))


@torch.no_grad()
def _plain(model: PreTrainedModel, ids: torch.Tensor, dtype: torch.dtype | None, watch: Stopwatch, index: int) -> None:
    """Now and then, time what the audit is compared with."""
    if index % PLAIN_EVERY == 0:
        options = {"use_cache": False} if family_of(model.config).causal else {}
        with mixed_precision(ids.device, dtype), watch.time("plain", ids.numel()):
            model(ids, **options)


def _run_fisher(
    model: PreTrainedModel,
    family: Family,
    spec: ModelSpec,
    ids: torch.Tensor,
    metric: str,
    seed: int,
    dtype: torch.dtype | None,
    folder: Path,
    watch: Stopwatch,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """Batch by batch; the checkpoint holds every sum and the next batch."""
    sums = [LayerSums(spec, index) for index in range(len(spec.layers))]
    attentions = [attention_of(layer, family) for layer in layers_of(model, family)]
    index_of = {id(module): index for index, module in enumerate(attentions)}

    def gather(call: AttentionCall, k_grad: torch.Tensor | None, v_grad: torch.Tensor | None) -> None:
        own = sums[index_of[id(call.module)]]
        with torch.no_grad():
            own.heads.add(attention_rows(call, STRIDE))
            own.moments.add(call, k_grad, v_grad)

    checkpoint = folder / "work" / "checkpoint.safetensors"
    first = 0
    if checkpoint.is_file():
        saved = read_tensors(checkpoint)
        first = int(saved.pop("next"))
        for own in sums:
            own.restore(saved)
    batches = _batches(ids)
    written = time.monotonic()
    for index in range(first, len(batches)):
        progress("audit", index, len(batches))
        batch = ids[batches[index]].to(model.device)
        generator = torch_generator(seed, "labels", index, device=model.device)
        with watch.time("audit", batch.numel()):
            fisher_batch(model, attentions, batch, generator, gather, dtype)
        _plain(model, batch, dtype, watch, index)
        if time.monotonic() - written > CHECKPOINT_SECONDS:
            write_tensors(checkpoint, _together(sums) | {"next": torch.tensor(index + 1)})
            written = time.monotonic()
    progress("audit", len(batches), len(batches))
    return _together(sums)


def _together(sums: list[LayerSums]) -> dict[str, torch.Tensor]:
    return {name: tensor for own in sums for name, tensor in own.tensors().items()}


@torch.no_grad()
def _run_layerwise(
    model: PreTrainedModel,
    family: Family,
    spec: ModelSpec,
    ids: torch.Tensor,
    metric: str,
    seed: int,
    dtype: torch.dtype | None,
    folder: Path,
    watch: Stopwatch,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """Layer by layer; finished layers' sums and the stream between layers lie in the work folder."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    batches = _batches(ids)
    layers = layers_of(model, family)
    shape = (len(ids), ids.shape[1], model.config.hidden_size)
    streams = [StreamFile(work / f"stream-{turn}.bin", shape, model.dtype) for turn in (0, 1)]
    done = sorted(int(file.stem.split("-")[1]) for file in work.glob("layer-*.safetensors"))
    first = len(done)
    attentions = [attention_of(layer, family) for layer in layers]

    def nothing(call: AttentionCall) -> None:
        pass

    calls: dict[int, list[LayerCall]] = {}
    with mixed_precision(model.device, dtype), observed_attention(model, attentions, nothing):
        for rows in batches:
            size = rows.stop - rows.start
            if first == 0 or size not in calls:
                with watch.time("audit", 0):
                    stream, calls[size] = layer_calls(model, family, ids[rows].to(model.device))
                    if first == 0:
                        streams[0].write(rows, stream)
    for index, rows in enumerate(batches):
        _plain(model, ids[rows].to(model.device), dtype, watch, index)
    for index in range(first, len(layers)):
        own = LayerSums(spec, index)
        output_matrix = projections_of(layers[index], family, model.config).o
        gradients = LocalGradients(output_matrix, seed, index) if metric == "output" else None
        current, following = streams[index % 2], streams[(index + 1) % 2]
        for number, rows in enumerate(batches):
            progress("audit", index * len(batches) + number, len(layers) * len(batches))

            with (
                watch.time("audit", 0),
                mixed_precision(model.device, dtype),
                observed_attention(model, attentions[index : index + 1], partial(_add_local, own, gradients, number)),
            ):
                stream = current.read(rows, model.device)
                own.stream_energy += stream.double().square().sum().cpu()
                following.write(rows, run_layer(layers[index], stream, calls[rows.stop - rows.start][index]))
        write_tensors(work / f"layer-{index:04d}.safetensors", own.tensors())
    watch.audit_tokens += ids.numel() if first == 0 else 0
    progress("audit", len(layers) * len(batches), len(layers) * len(batches))
    together: dict[str, torch.Tensor] = {}
    for index in range(len(layers)):
        together |= read_tensors(work / f"layer-{index:04d}.safetensors")
    return together


def _add_local(own: LayerSums, gradients: LocalGradients | None, batch: int, call: AttentionCall) -> None:
    looked = attention_rows(call, STRIDE)
    own.heads.add(looked)
    own.moments.add(call, *(gradients(call, looked, batch) if gradients else (None, None)))


def _layer_record(moments: Mapping[str, torch.Tensor], spec: ModelSpec, index: int, metric: str) -> LayerRecord:
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
    return LayerRecord(layer=index, heads=heads, sides=sides)


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
