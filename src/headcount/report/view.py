"""What a report shows, as plain values: the page and the terminal read these and nothing else.

``collect`` fills them from the records of a run; tests and other programs may fill them by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from headcount.report.saturation_view import SaturationView, SelectionView
from headcount.trimming.evaluate.record import Group

GROUPS: tuple[Group, ...] = ("calibrated", "unseen", "other")
"""Kinds that statistics came from, kinds known to be none of them, and a user's own, of which neither is known."""

Format = Literal["perplexity", "nats", "share", "count", "rate", "bytes", "ratio"]
"""How a measure's numbers are written (see ``words.value``)."""


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
    """One layer: energies by side, descending, and what each head does."""

    k_width: int
    v_width: int
    spectra: Mapping[str, tuple[float, ...]]
    """``keys``, ``rotated_keys`` (only with a rotary embedding), ``values``."""
    heads: tuple[HeadView, ...]


@dataclass(frozen=True)
class TextView:
    """One kind of text that statistics come from."""

    kind: str
    windows: int
    tokens: int
    digest: str


@dataclass(frozen=True)
class AuditView:
    """What was measured of the dense model."""

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
    """Time of the audit over the time of a plain forward pass over the same tokens."""
    notes: tuple[str, ...] = ()
    """Sentences about layers that are not used and control tokens in the text."""


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
    """The side whose spectrum the key ranks cut."""
    pareto: tuple[tuple[float, float | None], ...]
    repaired: bool | None = None


@dataclass(frozen=True)
class KindView:
    """One kind of text that models were compared on."""

    name: str
    group: Group
    windows: int
    tokens: int
    """Predicted tokens."""
    digest: str


@dataclass(frozen=True)
class ModelView:
    """One evaluated model; the first of an evaluation is what the others are compared with."""

    name: str
    perplexity: Mapping[str, float]
    cache_bytes_per_token: int
    attention_params: int
    decode_tokens_per_s: float | None = None
    how: str = ""
    """How it came to be, in a few words."""
    sample: str = ""


@dataclass(frozen=True)
class Measure:
    """A row of the comparison: one number a model, ``None`` where it was not measured."""

    group: str
    label: str
    short: str
    """Label and unit in few letters on up to two lines, for the terminal."""
    unit: str
    values: tuple[float | None, ...]
    form: Format
    better: Literal["lower", "higher", ""] = ""
    compared: bool = True
    """Whether the ratio to the first model means something."""


@dataclass(frozen=True)
class EvaluationView:
    """Models side by side."""

    models: tuple[ModelView, ...]
    kinds: tuple[KindView, ...]
    measures: tuple[Measure, ...]
    prompt: str = ""
    notes: tuple[str, ...] = ()
    """How it was measured: window, stride, speed setting; a sentence each."""
    speed_setting: str = ""
    """What the decoding speed was measured at, in a few words."""

    def ratios(self, model: ModelView, group: Group) -> dict[str, float]:
        """Perplexity over the first model's, by kind of text, for one group of kinds."""
        first = self.models[0].perplexity
        return {kind.name: model.perplexity[kind.name] / first[kind.name] for kind in self.kinds if kind.group == group}

    def cache_ratio(self, model: ModelView) -> float:
        """Cache bytes per token over the first model's."""
        return model.cache_bytes_per_token / self.models[0].cache_bytes_per_token

    def speedup(self, model: ModelView) -> float | None:
        """Decoded tokens per second over the first model's."""
        first = self.models[0].decode_tokens_per_s
        return model.decode_tokens_per_s / first if model.decode_tokens_per_s and first else None


@dataclass(frozen=True)
class MadeView:
    """How a report came to be. Command lines carry no machine's paths (see ``words.without_paths``)."""

    commands: tuple[str, ...] = ()
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportView:
    """Everything that one report shows; sections without data are left out."""

    audit: AuditView
    plans: tuple[PlanView, ...] = ()
    evaluation: EvaluationView | None = None
    made: MadeView = field(default_factory=MadeView)
    saturation: SaturationView | None = None
    selection: SelectionView | None = None

    @property
    def plan(self) -> PlanView | None:
        """The plan that the page is about: that of the first trimmed model."""
        return self.plans[0] if self.plans else None
