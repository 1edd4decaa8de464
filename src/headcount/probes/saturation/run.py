"""Running a saturation audit: each context layer by layer, then the whole model with all heads reduced at once.

At each context every other window is used for the moments, and errors are measured on the rest. Completed layers, loss
variants and contexts are saved, so an interrupted run resumes and produces the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.core.seeds import numpy_generator
from headcount.core.spec import ModelSpec
from headcount.core.store import digest, open_run_folder, read_tensors, write_json, write_tensors
from headcount.pretrained.families import attention_of, base_model, family_of, layers_of
from headcount.pretrained.opening.loading import OpenModel
from headcount.pretrained.running.capture import AttentionCall, observed_attention
from headcount.probes.saturation.changepoint import Boundary, find_boundary
from headcount.probes.saturation.claims import FIVE, Draws, Measured, claims_of, draws_of, interval, loss_draws
from headcount.probes.saturation.energy import components, logit_components, weight_components
from headcount.probes.saturation.perturbation import MEASURES, bound_ranks, bound_records, window_rows
from headcount.probes.saturation.ranks import TOLERANCES, HeadForms, head_forms, looked_at, relative, saturation_ranks
from headcount.probes.saturation.ranks import window_errors as errors_of_window
from headcount.probes.saturation.record import (
    RECORD,
    ContextRecord,
    HeadCurve,
    LayerCurves,
    LossRecord,
    Saturation,
    SaturationRecord,
)
from headcount.probes.windows import check_contexts
from headcount.trimming.audit.passes import LOGIT_CHUNK, mixed_precision
from headcount.trimming.audit.run import check_inputs, resolve_matmul_dtype
from headcount.trimming.audit.stream import forget, visit_layers

QUERIES = 128
"""Approximate number of sampled queries over all measured windows of a context."""
LOSS_TOKENS = 2048
"""Tokens per context used to measure losses; at least one window."""
BY_WINDOW = ("squares", "lengths", "ranges", "energy_ranks", "energy_squares", *MEASURES)
"""Quantities stored per layer and measured window of a context."""
VARIANTS = (
    "dense",
    *(f"{kind} {tolerance:.0%}" for tolerance in TOLERANCES for kind in ("own", "uniform")),
    "first half d/4",
    "second half d/4",
)
"""Rank reductions of the model: each head at its own rank at a tolerance, all at the mean rank, or half the layers."""


def saturation(
    opened: OpenModel,
    windows: Mapping[int, Mapping[str, torch.Tensor]],
    *,
    out: Path,
    seed: int = 0,
    matmul_dtype: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Saturation:
    """Measure the ranks at which a model's heads saturate, at several contexts.

    Args:
        opened: a dense model of a known family.
        windows: ids (windows, context) by kind of text for each context, ascending; at least two windows in total.
        out: the run folder.
        seed: seed of the resamples.
        matmul_dtype: see ``audit``.
        overwrite: replace a run folder made from different inputs.
        progress: progress callback.

    Raises:
        HeadcountError: no context, contexts not ascending or beyond the model's positions, or too little text.
    """
    check_contexts(list(windows))
    model = opened.model
    for context, kinds in windows.items():
        spec = check_inputs(model, kinds, "output")
        if sum(len(ids) for ids in kinds.values()) < 2:
            raise HeadcountError(
                f"one window of {context} tokens is too little: moments and errors need one each",
                fix="ask for more --tokens or give more text",
            )
    inputs = {
        "fingerprint": opened.fingerprint,
        "seed": seed,
        "matmul_dtype": str(resolve_matmul_dtype(model, matmul_dtype)),
        "tokens": {str(c): digest(*(ids.numpy().tobytes() for ids in kinds.values())) for c, kinds in windows.items()},
    }
    folder = open_run_folder(out, "saturation", inputs, overwrite)
    if (folder / RECORD).is_file():
        return Saturation.open(folder)
    dtype = resolve_matmul_dtype(model, matmul_dtype)
    contexts, draws = [], []
    losses: dict[str, np.ndarray] = {}
    boundary = None
    for context, kinds in windows.items():
        ids = torch.cat(list(kinds.values()))
        sums = _context(model, spec, ids, folder, dtype, progress)
        generator = numpy_generator(seed, "saturation", context)
        record, drawn, boundary, losses = _summary(context, sums, generator)
        contexts.append(record)
        draws.append(drawn)
    made = SaturationRecord(
        model=opened.name,
        fingerprint=opened.fingerprint,
        spec=spec,
        seed=seed,
        tokens=min(sum(ids.numel() for ids in kinds.values()) for kinds in windows.values()),
        matmul_dtype=str(dtype or model.dtype).removeprefix("torch."),
        kinds=list(next(iter(windows.values()))),
        tolerances=list(TOLERANCES),
        contexts=contexts,
        claims=claims_of(draws, boundary, losses, numpy_generator(seed, "claims")),
        weight_ranks=weight_components(model),
    )
    write_json(folder / RECORD, made)
    return Saturation(made, folder)


def _context(
    model: PreTrainedModel,
    spec: ModelSpec,
    ids: torch.Tensor,
    folder: Path,
    dtype: torch.dtype | None,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """All sums of one context, read from its file or measured."""
    context = ids.shape[1]
    # Older versions used files named context-*, which lack rows and energies.
    file, work = folder / f"measured-{context:06d}.safetensors", folder / "work" / f"measured-{context:06d}"
    if file.is_file():
        return read_tensors(file)
    measured = ids[1::2]
    positions = looked_at(context, max(1, -(-QUERIES // len(measured))))

    def visit(index: int, calls: list[AttentionCall]) -> dict[str, torch.Tensor]:
        starts = np.cumsum([0, *(len(call.q) for call in calls)])
        chosen = [[w for w in range(len(c.q)) if (s + w) % 2 == 0] for s, c in zip(starts, calls, strict=False)]
        forms = head_forms(calls, chosen)
        ranks = bound_ranks(forms.a.shape[-1])
        collected: dict[str, list[torch.Tensor]] = {name: [] for name in BY_WINDOW}
        for start, call in zip(starts, calls, strict=False):
            for window in range(len(call.q)):
                if (start + window) % 2:
                    squares, lengths, ranges = errors_of_window(call, window, positions, forms)
                    measures = window_rows(call, window, positions, forms, ranks)
                    measures |= {"squares": squares, "lengths": lengths, "ranges": ranges}
                    measures["energy_ranks"], measures["energy_squares"] = logit_components(call, window, positions)
                    for name, rows in collected.items():
                        rows.append(measures[name])
        stacked = {name: torch.stack(rows) for name, rows in collected.items()}
        return stacked | {"mean": forms.mean, "a": forms.a, "b": forms.b, "energies": forms.energies}

    layers = visit_layers(model, ids, work, visit, dtype=dtype, stage=f"context {context}", progress=progress)
    sums = {name: torch.stack([layer[name] for layer in layers]) for name in (*BY_WINDOW, "energies")}
    sums["windows"] = torch.tensor([len(ids) - len(measured), len(measured), len(positions) * len(measured)])
    if model.get_output_embeddings() is not None and spec.layers[0].causal:
        forms = [HeadForms(*(layer[name] for name in ("mean", "a", "b", "energies"))) for layer in layers]
        tested = measured[: max(1, LOSS_TOKENS // context)]
        sums |= _losses(model, tested, forms, _variants(sums), work, dtype, progress)
    write_tensors(file, sums)
    forget(work)
    return sums


def _ranks(sums: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Saturation ranks (L, H, tolerances) from the sums over all measured windows."""
    errors = relative(sums["squares"].sum(1).numpy(), sums["lengths"].sum(1).numpy())
    return np.stack([saturation_ranks(errors, tolerance) for tolerance in TOLERANCES], -1)


def _variants(sums: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Ranks (L, H) of each variant of the model: per head, uniform, and reduced in one half of the layers."""
    ranks = _ranks(sums)
    layers, heads, d = *ranks.shape[:2], sums["squares"].shape[-1] - 1
    full = np.full((layers, heads), d)
    late = np.arange(layers)[:, None] >= (layers + 1) // 2
    variants = {"dense": full}
    for index, tolerance in enumerate(TOLERANCES):
        variants[f"own {tolerance:.0%}"] = ranks[..., index]
        variants[f"uniform {tolerance:.0%}"] = np.full_like(full, round(float(ranks[..., index].mean())))
    # With an odd number of layers the middle one is unchanged, so that both halves have equal size.
    early = np.arange(layers)[:, None] < layers // 2
    variants["first half d/4"] = np.where(early, max(1, d // 4), full)
    variants["second half d/4"] = np.where(late, max(1, d // 4), full)
    return variants


def _losses(
    model: PreTrainedModel,
    ids: torch.Tensor,
    forms: Sequence[HeadForms],
    variants: Mapping[str, np.ndarray],
    work: Path,
    dtype: torch.dtype | None,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """Nats per token of every variant (``loss.NAME``) and its ranks (``ranks.NAME``)."""
    losses: dict[str, torch.Tensor] = {}
    stage = f"losses {ids.shape[1]}"
    for number, (name, ranks) in enumerate(variants.items()):
        progress(stage, number, len(variants))
        file = work / f"loss-{number:02d}.safetensors"
        if not file.is_file():
            maps = None
            if name != "dense":
                maps = [form.query_maps(row.tolist()) for form, row in zip(forms, ranks, strict=True)]
            write_tensors(file, {"loss": token_losses(model, ids, maps, dtype)})
        losses[f"loss.{name}"] = read_tensors(file)["loss"]
        losses[f"ranks.{name}"] = torch.from_numpy(ranks)
    progress(stage, len(variants), len(variants))
    return losses


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, ids: torch.Tensor, maps: Sequence[torch.Tensor] | None, dtype: torch.dtype | None
) -> torch.Tensor:
    """Loss of each predicted token in nats, (windows * (tokens - 1),); ``maps``: query maps (H, d, d) by layer."""
    attentions = [attention_of(layer, family_of(model.config)) for layer in layers_of(model, family_of(model.config))]
    index_of = {id(module): index for index, module in enumerate(attentions)}
    on_device = [layer_maps.to(model.device).float() for layer_maps in maps] if maps is not None else []

    def cut(call: AttentionCall) -> None:
        if maps is not None:
            with torch.autocast(call.q.device.type, enabled=False):
                call.q = (call.q.float() @ on_device[index_of[id(call.module)]]).to(call.q.dtype)

    losses = []
    head = model.get_output_embeddings()
    for window in ids:
        row = window[None].to(model.device).long()
        with mixed_precision(model.device, dtype), observed_attention(model, attentions, cut):
            hidden = base_model(model)(row, use_cache=False).last_hidden_state[0, :-1]
            for part, labels in zip(
                hidden.split(max(1, LOGIT_CHUNK // head.weight.shape[0])),
                row[0, 1:].split(max(1, LOGIT_CHUNK // head.weight.shape[0])),
                strict=True,
            ):
                losses.append(F.cross_entropy(head(part).float(), labels, reduction="none").double().cpu())
    return torch.cat(losses)


def _summary(
    context: int, sums: Mapping[str, torch.Tensor], generator: np.random.Generator
) -> tuple[ContextRecord, Draws, Boundary | None, dict[str, np.ndarray]]:
    """The record, resamples, boundary and per-token losses of one context."""
    fitted, measured, queries = sums["windows"].tolist()
    arrays = {name: sums[name].numpy() for name in ("squares", "lengths", "ranges")}
    drawn = draws_of(Measured(context, **arrays, queries=queries // measured), generator)
    boundary = find_boundary(drawn.ranks[0, :, FIVE], drawn.ranks[1:, :, FIVE])
    errors = relative(arrays["squares"].sum(1), arrays["lengths"].sum(1))
    ranks, ranges = _ranks(sums), arrays["ranges"].mean(1)
    output_rms = np.sqrt(arrays["lengths"].sum(1) / queries)
    energy_ranks, pooled = sums["energy_ranks"].double().mean(1).numpy(), components(sums["energies"]).numpy()
    energy_errors = relative(sums["energy_squares"].sum(1).numpy()[..., None], arrays["lengths"].sum(1))[..., 0]
    rows = {name: sums[name].numpy() for name in MEASURES}
    measured_ranks = bound_ranks(errors.shape[-1] - 1)
    layers = [
        LayerCurves(
            layer=layer,
            heads=[
                HeadCurve(
                    errors=[float(f"{e:.4g}") for e in errors[layer, head]],
                    ranks=ranks[layer, head].tolist(),
                    logit_range=float(ranges[layer, head]),
                    output_rms=float(output_rms[layer, head]),
                    energy_rank=float(energy_ranks[layer, head]),
                    energy_error=float(energy_errors[layer, head]),
                    pooled_energy_rank=int(pooled[layer, head]),
                )
                for head in range(ranks.shape[1])
            ],
            bounds=bound_records({name: values[layer] for name, values in rows.items()}, measured_ranks),
        )
        for layer in range(len(ranks))
    ]
    # Fixed order, whether or not they come from a file: resampling depends on it.
    losses = {name: sums[f"loss.{name}"].numpy() for name in VARIANTS if f"loss.{name}" in sums}
    record = ContextRecord(
        context=context,
        fitted_windows=fitted,
        measured_windows=measured,
        queries=queries,
        layers=layers,
        losses=[_loss_record(name, losses, sums, generator) for name in losses],
        bounds=bound_records(rows, measured_ranks),
        boundary=boundary,
    )
    return record, drawn, boundary, losses


def _loss_record(
    name: str, losses: Mapping[str, np.ndarray], sums: Mapping[str, torch.Tensor], generator: np.random.Generator
) -> LossRecord:
    increases = loss_draws(losses[name] - losses["dense"], generator)
    low, high = interval(increases[1:])
    return LossRecord(
        name=name,
        mean_rank=float(sums[f"ranks.{name}"].double().mean()),
        loss=float(losses[name].mean()),
        increase=float(increases[0]),
        low=low,
        high=high,
    )
