"""Running a selection audit: keys of real windows, layer by layer, dense and reduced to half their dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent
from headcount.core.seeds import numpy_generator, torch_generator
from headcount.core.spec import ModelSpec
from headcount.core.store import digest, open_run_folder, read_json, write_json
from headcount.pretrained.opening.loading import OpenModel
from headcount.pretrained.running.capture import AttentionCall
from headcount.probes.selection.capacity import (
    KINDS,
    QUANTILE,
    draw_subsets,
    half_point,
    margin_wanted,
    sizes_of,
    subset_margins,
)
from headcount.probes.selection.separation import separable_exactly
from headcount.trimming.audit.run import check_inputs, resolve_matmul_dtype
from headcount.trimming.audit.spectra import directions
from headcount.trimming.audit.stream import forget, visit_layers

RECORD = "selection.json"
SUBSETS = 8
"""Subsets of each kind and size in each window."""
MOST_TOKENS = 1024
"""Maximum keys per window: each subset is a quadratic program over all of them."""
CHECKED = 2
"""Subsets per layer whose separability is verified by the linear program."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Capacity(_Record):
    """One query head on one form of its keys; lists by size."""

    separable: dict[str, list[float]]
    selected: dict[str, list[float]]
    margin: dict[str, list[float]]
    """Median margin in logits of a query of norm rho (0 if none separates)."""
    separable_half: dict[str, float]
    selected_half: dict[str, float]
    undecided: float
    """Share of subsets for which the bounds are inconclusive; these count as not selected."""


class HeadSelection(_Record):
    """One query head: its query norm and its capacity with dense and trimmed keys."""

    query_norm: float
    dense: Capacity
    trimmed: Capacity


class LayerSelection(_Record):
    """One layer."""

    layer: int
    heads: list[HeadSelection]


class TheoryLine(_Record):
    """Reference values for a dimension: optimally placed keys and Gaussian keys."""

    dim: int
    neighbourly: int
    gaussian_half: dict[str, float]


class SelectionRecord(_Record):
    """``selection.json``."""

    format: Literal[1] = 1
    model: str
    fingerprint: str
    spec: ModelSpec
    seed: int
    context: int
    windows: int
    subsets: int
    sizes: list[int]
    trimmed_rank: int
    theory: list[TheoryLine]
    checked: int
    """Number of subsets also decided by the linear program."""
    agreed: int
    layers: list[LayerSelection]


@dataclass(frozen=True)
class Selection:
    """A selection audit and its folder."""

    record: SelectionRecord
    folder: Path

    @classmethod
    def open(cls, folder: Path | str) -> Selection:
        """Read the folder of an audit; missing or invalid content raises a HeadcountError."""
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise HeadcountError(f"{folder} holds no finished selection audit", fix="run headcount audit --selection")
        return cls(read_json(folder / RECORD, SelectionRecord), folder)


def selection(
    opened: OpenModel,
    windows: Mapping[str, torch.Tensor],
    *,
    out: Path,
    subsets: int = SUBSETS,
    seed: int = 0,
    matmul_dtype: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Selection:
    """Measure how many keys one query of each head can select.

    Args:
        opened: a dense model of a known family.
        windows: ids (windows, context) by kind of text.
        out: the run folder.
        subsets: number of subsets of each kind and size per window.
        seed: seed of the subsets.
        matmul_dtype: see ``audit``.
        overwrite: replace a run folder made from different inputs.
        progress: progress callback.

    Raises:
        HeadcountError: inputs that ``audit`` rejects; fewer than 8 or more than ``MOST_TOKENS`` tokens per window.
    """
    model = opened.model
    spec = check_inputs(model, windows, "output")
    ids = torch.cat(list(windows.values()))
    context = ids.shape[1]
    if not 8 <= context <= MOST_TOKENS:
        raise HeadcountError(
            f"selection takes windows of 8 to {MOST_TOKENS} tokens, not {context}", fix="choose another --context"
        )
    if subsets < 1:
        raise HeadcountError(f"{subsets} subsets are none", fix="ask for at least 1")
    inputs = {
        "fingerprint": opened.fingerprint,
        "seed": seed,
        "subsets": subsets,
        "matmul_dtype": str(resolve_matmul_dtype(model, matmul_dtype)),
        "tokens": digest(ids.numpy().tobytes()),
    }
    folder = open_run_folder(out, "selection", inputs, overwrite)
    if (folder / RECORD).is_file():
        return Selection.open(folder)
    rank = max(1, spec.layers[0].qk_dim // 2)

    def visit(index: int, calls: list[AttentionCall]) -> dict[str, torch.Tensor]:
        return _layer(index, calls, rank, subsets, seed)

    dtype = resolve_matmul_dtype(model, matmul_dtype)
    work = folder / "work"
    layers = visit_layers(model, ids, work, visit, dtype=dtype, stage="selection", progress=progress)
    record = SelectionRecord(
        model=opened.name,
        fingerprint=opened.fingerprint,
        spec=spec,
        seed=seed,
        context=context,
        windows=len(ids),
        subsets=subsets,
        sizes=sizes_of(context),
        trimmed_rank=rank,
        theory=[theory_line(context, dim, subsets * len(ids), seed) for dim in (spec.layers[0].qk_dim, rank)],
        checked=sum(int(layer["checked"][0]) for layer in layers),
        agreed=sum(int(layer["checked"][1]) for layer in layers),
        layers=[_layer_record(index, layer, context) for index, layer in enumerate(layers)],
    )
    write_json(folder / RECORD, record)
    forget(work)
    return Selection(record, folder)


def _layer(index: int, calls: list[AttentionCall], rank: int, subsets: int, seed: int) -> dict[str, torch.Tensor]:
    """Bounds for every KV head and window: FORM.KIND.SIDE (kv, windows, sizes, count); ``reach`` (heads,): c rho."""
    q = torch.cat([call.q for call in calls]).detach().cpu().double()
    k = torch.cat([call.k for call in calls]).detach().cpu().double()
    n_heads, (windows, n_kv_heads, tokens, d) = q.shape[1], k.shape
    groups = n_heads // n_kv_heads
    rows: dict[str, list[torch.Tensor]] = {}
    checked = torch.zeros(2, dtype=torch.int64)
    for head in range(n_kv_heads):
        head_keys, asked = k[:, head].flatten(0, 1), q[:, head * groups : (head + 1) * groups].reshape(-1, d)
        chosen = directions(head_keys.mean(0), head_keys.T @ head_keys / len(head_keys), asked.T @ asked / len(asked))
        down, up = chosen.projection(rank)
        for window in range(windows):
            generator = numpy_generator(seed, "subsets", index, head, window)
            drawn = draw_subsets(tokens, subsets, generator)
            keys = k[window, head]
            for form, points in (("dense", keys), ("trimmed", (keys - chosen.mean) @ down.T @ up.T)):
                margins = subset_margins(points, drawn)
                for kind in KINDS:
                    rows.setdefault(f"{form}.{kind}.lower", []).append(margins.lower[kind])
                    rows.setdefault(f"{form}.{kind}.upper", []).append(margins.upper[kind])
                if form == "dense" and head == window == 0:
                    checked += _check(points, drawn["random"], margins.lower["random"], generator)
    scaling = calls[0].scaling
    lengths = q[:, :, tokens // 2 :].norm(dim=-1).transpose(0, 1).flatten(1)
    bounds = {name: torch.stack(tensors).unflatten(0, (n_kv_heads, windows)) for name, tensors in rows.items()}
    reach = scaling * lengths.quantile(QUANTILE, dim=1)
    return bounds | {"reach": reach, "scaling": torch.tensor(scaling), "checked": checked}


def _check(keys: torch.Tensor, subsets: torch.Tensor, lower: torch.Tensor, generator: Any) -> torch.Tensor:
    """(subsets checked, subsets on which the linear program agrees)."""
    every, margins = subsets.flatten(0, 1), lower.flatten()
    chosen = generator.permutation(len(every))[:CHECKED]
    agreed = sum(separable_exactly(keys, every[i]) == bool(margins[i] > 0) for i in chosen)
    return torch.tensor([len(chosen), agreed])


def _layer_record(index: int, bounds: Mapping[str, torch.Tensor], tokens: int) -> LayerSelection:
    reach = bounds["reach"]
    n_kv_heads = len(bounds["dense.random.lower"])
    groups = len(reach) // n_kv_heads
    heads = [
        HeadSelection(
            query_norm=float(reach[head] / bounds["scaling"]),
            dense=_capacity(bounds, "dense", head // groups, float(reach[head]), tokens),
            trimmed=_capacity(bounds, "trimmed", head // groups, float(reach[head]), tokens),
        )
        for head in range(len(reach))
    ]
    return LayerSelection(layer=index, heads=heads)


def _capacity(bounds: Mapping[str, torch.Tensor], form: str, kv_head: int, reach: float, tokens: int) -> Capacity:
    required = margin_wanted(tokens)[:, None]
    sizes = sizes_of(tokens)
    separable, selected, margin, open_ = {}, {}, {}, []
    for kind in KINDS:
        # (windows, sizes, count) -> (sizes, windows * count)
        low, high = (
            bounds[f"{form}.{kind}.{side}"][kv_head].transpose(0, 1).flatten(1) * reach for side in ("lower", "upper")
        )
        # For half of all tokens the required margin is zero, but the margin must still be positive.
        held = (low >= required) & (low > 0)
        separable[kind] = (low > 0).double().mean(1).tolist()
        selected[kind] = held.double().mean(1).tolist()
        margin[kind] = low.clamp_min(0.0).median(1).values.tolist()
        open_.append(((high >= required) & ~held & (required > 0)).double().mean())
    return Capacity(
        separable=separable,
        selected=selected,
        margin=margin,
        separable_half={kind: half_point(sizes, shares) for kind, shares in separable.items()},
        selected_half={kind: half_point(sizes, shares) for kind, shares in selected.items()},
        undecided=float(torch.stack(open_).mean()),
    )


def theory_line(tokens: int, dim: int, subsets: int, seed: int) -> TheoryLine:
    """The two reference values for a dimension: m // 2 for optimally placed keys, and a sample of Gaussian keys."""
    keys = torch.randn(tokens, dim, generator=torch_generator(seed, "gaussian", dim), dtype=torch.float64)
    margins = subset_margins(keys, draw_subsets(tokens, subsets, numpy_generator(seed, "gaussian", dim)))
    halves = {kind: half_point(sizes_of(tokens), (margins.lower[kind] > 0).double().mean(1).tolist()) for kind in KINDS}
    return TheoryLine(dim=dim, neighbourly=dim // 2, gaussian_half=halves)


def summary_json(audit: Selection) -> JsonObject:
    """The output of ``headcount audit --selection --json``."""
    record = audit.record
    return record.model_dump(exclude={"spec", "fingerprint", "format"}) | {"folder": str(audit.folder)}
