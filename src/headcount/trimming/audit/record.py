"""A completed audit: its validated record (``schema``) and the underlying moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headcount.core.errors import HeadcountError
from headcount.core.extras import optional_imports
from headcount.core.forms import trimmed_form, trimmed_names
from headcount.core.store import read_json, read_tensors
from headcount.pretrained.text.texts import control_words
from headcount.trimming.audit.schema import MOMENTS, RECORD, TIMING, TOKENS, AuditRecord, TimingRecord
from headcount.trimming.audit.spectra import Directions, directions, head_blocks
from headcount.trimming.audit.unused import unused_words

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Audit:
    """A completed audit. ``moments``: by name, as returned by ``moments.SideMoments``; ``windows``: by kind of text,
    all calibration windows, the first of which (per kind) were used for statistics."""

    record: AuditRecord
    moments: Mapping[str, torch.Tensor]
    windows: Mapping[str, torch.Tensor]
    timing: TimingRecord | None = None
    folder: Path | None = None
    _directions: dict[tuple[int, str], Directions] = field(default_factory=dict, repr=False)

    def moments_of(self, layer: int, side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(mean, second moment, metric) of one side of one layer, float64; see ``read_moments``."""
        return read_moments(self.moments, layer, side, self.record.metric)

    def directions(self, layer: int, side: str) -> Directions:
        """The joint directions of one side of one layer."""
        key = (layer, side)
        if key not in self._directions:
            self._directions[key] = directions(*self.moments_of(layer, side))
        return self._directions[key]

    def head_directions(self, layer: int, side: str) -> list[Directions]:
        """The directions of each KV head separately."""
        return head_blocks(*self.moments_of(layer, side), self.record.spec.layers[layer].n_kv_heads)

    @cached_property
    def key_side(self) -> dict[str, str]:
        """The kind of keys that each form projects; without a rotary embedding there is only one kind."""
        rotary = "rotated_keys" in self.record.layers[0].sides
        return {name: trimmed_form(name).key_side(rotary) for name in trimmed_names()}

    def to_pandas(self) -> pd.DataFrame:
        """The head statistics, one row per layer and head."""
        with optional_imports():
            import pandas as pd

        rows = [
            {"layer": layer.layer, "head": index, **head.model_dump()}
            for layer in self.record.layers
            for index, head in enumerate(layer.heads)
        ]
        return pd.DataFrame(rows).set_index(["layer", "head"])

    def _repr_html_(self) -> str:
        return str(self.to_pandas().groupby("layer").mean()._repr_html_())

    @classmethod
    def open(cls, folder: Path | str) -> Audit:
        """Read an audit folder; the error names any missing or invalid file."""
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise HeadcountError(f"{folder} holds no finished audit", fix="run headcount audit first")
        record = read_json(folder / RECORD, AuditRecord)
        timing = read_json(folder / TIMING, TimingRecord) if (folder / TIMING).is_file() else None
        return cls(record, read_tensors(folder / MOMENTS), read_tensors(folder / TOKENS), timing, folder)


def read_moments(
    moments: Mapping[str, torch.Tensor], layer: int, side: str, metric: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(mean, second moment, metric) from sums: (m_g, C_g, G_x), or (m, C, ``None``) for ``whitened``.

    ``whitened`` follows published methods, so values and keys before the rotary embedding are centred at zero as in
    those methods; centring at the plain mean would be far worse (LOG.md). A shift of rotated keys has no effect.

    G_x is scaled to the trace of G, so that tr(G_x) tr(C_g) = E[|g|^2 |x|^2]. For ``output`` it is also divided by the
    mean squared norm of the residual stream.
    """
    prefix = f"layers.{layer}.{side}"
    count = moments[f"{prefix}.count"]
    if metric == "whitened":
        mean = moments[f"{prefix}.mean"] / count
        return mean if side == "rotated_keys" else torch.zeros_like(mean), moments[f"{prefix}.C"] / count, None
    weight, G = moments[f"{prefix}.weight"], moments[f"{prefix}.weighted_G"]
    # Nothing depends on this side, or it is zero wherever something does: no direction has a cost.
    if float(weight) == 0.0 or float(G.trace()) == 0.0:
        return moments[f"{prefix}.mean"] / count, moments[f"{prefix}.C"] / count, torch.zeros_like(G)
    mean, second = moments[f"{prefix}.weighted_mean"] / weight, moments[f"{prefix}.weighted_C"] / weight
    scale = weight / count
    if metric == "output":
        stream = moments[f"layers.{layer}.stream_energy"] / count
        scale = scale / stream if float(stream) > 0.0 else torch.zeros_like(scale)
    return mean, second, G / G.trace() * scale


def unused_notes(record: AuditRecord) -> list[str]:
    """One line about layers that do not affect the output; empty if all layers do."""
    line = unused_words({layer.layer: layer.unused for layer in record.layers})
    return [line] if line else []


def notes(record: AuditRecord) -> list[str]:
    """Notes to show with the tables: unused layers, control tokens in the text."""
    control = control_words({text.kind: text.control_tokens for text in record.texts})
    return [*unused_notes(record), *([control] if control else [])]


def summary_json(audit: Audit) -> dict[str, Any]:
    """The output of ``headcount audit --json``."""
    record = audit.record
    return {
        "model": record.model,
        "metric": record.metric,
        "tokens": record.tokens,
        "context": record.context,
        "seconds": audit.timing.seconds if audit.timing else None,
        "cost_ratio": audit.timing.cost_ratio if audit.timing else None,
        "layers": [layer.model_dump() for layer in record.layers],
        "notes": notes(record),
        "texts": [text.model_dump() for text in record.texts],
        "attention_parameters": record.spec.attention_params,
        "cache_bytes_per_token": record.spec.cache_bytes_per_token(),
        "folder": str(audit.folder) if audit.folder else None,
    }
