"""The content of a report as plain values, the only input of the page and the terminal tables.

``collect`` fills them from the records of a run; tests and other programs may construct them directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from headcount.report.saturation_view import SaturationView, SelectionView
from headcount.trimming.evaluate.record import Group

GROUPS: tuple[Group, ...] = ("calibrated", "unseen", "other")
"""Kinds used for calibration, kinds known not to be used, and user texts for which this is unknown."""

Format = Literal["perplexity", "nats", "share", "count", "rate", "bytes", "ratio"]
"""Number format of a measure (see ``words.value``)."""


@dataclass(frozen=True)
class HeadView:
    """One query head, averaged over queries: entropy in nats, weights as shares, logits in logit units."""

    entropy: float
    strongest: float
    first: float
    logit_range: float
    logit_peak: float


@dataclass(frozen=True)
class LayerView:
    """One layer: energies by side in descending order, and head statistics."""

    k_width: int
    v_width: int
    spectra: Mapping[str, tuple[float, ...]]
    """``keys``, ``rotated_keys`` (only with a rotary embedding), ``values``."""
    heads: tuple[HeadView, ...]


@dataclass(frozen=True)
class TextView:
    """One kind of calibration text."""

    kind: str
    windows: int
    tokens: int
    digest: str


@dataclass(frozen=True)
class AuditView:
    """Measurements of the dense model."""

    model: str
    family: str
    metric: str
    context: int
    tokens: int
    seed: int
    attention_params: int
    cache_numbers_per_token: int
    layers: tuple[LayerView, ...]
    texts: tuple[TextView, ...]
    seconds: float | None = None
    cost_ratio: float | None = None
    """Ratio of the audit time to that of a plain forward pass over the same tokens."""
    notes: tuple[str, ...] = ()
    """Sentences about unused layers and control tokens in the text."""


@dataclass(frozen=True)
class PlanView:
    """Ranks of one plan. ``pareto``: (cache share, predicted loss increase in nats per token)."""

    name: str
    form: str
    allocator: str
    metric: str
    multiple: int
    cache_ratio: float
    predicted_loss_increase: float | None
    ranks: tuple[tuple[int, int], ...]
    """(k_rank, v_rank) of each layer."""
    key_side: str
    """The side whose spectrum is truncated by the key ranks."""
    pareto: tuple[tuple[float, float | None], ...]
    repaired: bool | None = None


@dataclass(frozen=True)
class KindView:
    """One kind of evaluation text."""

    name: str
    group: Group
    windows: int
    tokens: int
    """Number of predicted tokens."""
    digest: str


@dataclass(frozen=True)
class ModelView:
    """One evaluated model; the first model of an evaluation is the baseline."""

    name: str
    perplexity: Mapping[str, float]
    cache_bytes_per_token: int
    attention_params: int
    decode_tokens_per_s: float | None = None
    how: str = ""
    """Short description of how the model was made."""
    sample: str = ""


@dataclass(frozen=True)
class Measure:
    """A row of the comparison: one number per model, ``None`` if not measured."""

    group: str
    label: str
    short: str
    """Short label and unit on up to two lines, for the terminal."""
    unit: str
    values: tuple[float | None, ...]
    form: Format
    better: Literal["lower", "higher", ""] = ""
    compared: bool = True
    """Whether the ratio to the first model is meaningful."""


@dataclass(frozen=True)
class EvaluationView:
    """A comparison of models."""

    models: tuple[ModelView, ...]
    kinds: tuple[KindView, ...]
    measures: tuple[Measure, ...]
    prompt: str = ""
    notes: tuple[str, ...] = ()
    """Sentences on the measurement: window, stride, speed setting."""
    speed_setting: str = ""
    """Short description of the decoding-speed setting."""

    def ratios(self, model: ModelView, group: Group) -> dict[str, float]:
        """Perplexity ratios to the first model by kind of text, for one group of kinds."""
        first = self.models[0].perplexity
        return {kind.name: model.perplexity[kind.name] / first[kind.name] for kind in self.kinds if kind.group == group}

    def cache_ratio(self, model: ModelView) -> float:
        """Ratio of cache bytes per token to the first model."""
        return model.cache_bytes_per_token / self.models[0].cache_bytes_per_token

    def speedup(self, model: ModelView) -> float | None:
        """Ratio of decoded tokens per second to the first model."""
        first = self.models[0].decode_tokens_per_s
        return model.decode_tokens_per_s / first if model.decode_tokens_per_s and first else None


@dataclass(frozen=True)
class MadeView:
    """The provenance of a report. Command lines contain no local paths (see ``words.without_paths``)."""

    commands: tuple[str, ...] = ()
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportView:
    """The content of one report; sections without data are omitted."""

    audit: AuditView
    plans: tuple[PlanView, ...] = ()
    evaluation: EvaluationView | None = None
    made: MadeView = field(default_factory=MadeView)
    saturation: SaturationView | None = None
    selection: SelectionView | None = None

    @property
    def plan(self) -> PlanView | None:
        """The plan shown on the page: that of the first trimmed model."""
        return self.plans[0] if self.plans else None
