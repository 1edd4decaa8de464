"""The files of an audit's run folder and the schema of its records; nothing here needs torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from headcount.core.spec import ModelSpec

Metric = Literal["fisher", "output", "whitened"]
UnusedSide = Literal["keys", "values"]
RECORD, MOMENTS, TOKENS, TIMING = "audit.json", "moments.safetensors", "tokens.safetensors", "timing.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextRecord(_Record):
    """One kind of text that was measured on."""

    kind: str
    windows: int
    tokens: int
    digest: str
    """Hash of the token ids that statistics were gathered on."""
    control_tokens: int = 0
    """Control tokens that the text spells out (such as ``</s>``) and that were read as plain text."""


class HeadRecord(_Record):
    """One query head, averaged over queries (see ``heads``)."""

    entropy: float
    strongest: float
    first: float
    logit_range: float
    logit_peak: float


class SideRecord(_Record):
    """Energies of one side, descending: joint over the KV heads, and of each KV head alone."""

    joint: list[float]
    per_head: list[list[float]]


class LayerRecord(_Record):
    """One layer."""

    layer: int
    heads: list[HeadRecord]
    sides: dict[str, SideRecord]
    unused: tuple[UnusedSide, ...] = ()
    """Sides that do not affect the model's output on this text (see ``unused.unused_sides``)."""


class AuditRecord(_Record):
    """``audit.json``."""

    format: Literal[1] = 1
    model: str
    fingerprint: str
    spec: ModelSpec
    metric: Metric
    seed: int
    context: int
    tokens: int
    texts: list[TextRecord]
    layers: list[LayerRecord]


class TimingRecord(_Record):
    """``timing.json``: what the audit cost; apart, since it differs from run to run."""

    seconds: float
    plain_forward_seconds: float
    """What a plain forward pass over the same tokens takes, from batches timed within the run."""
    cost_ratio: float
    threads: int
    matmul_dtype: str
