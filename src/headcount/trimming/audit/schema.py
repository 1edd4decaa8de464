"""The files of an audit's run folder and the schema of its records; does not import torch."""

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
    """One kind of text that the audit measured."""

    kind: str
    windows: int
    tokens: int
    digest: str
    """Hash of the token ids that statistics were gathered on."""
    control_tokens: int = 0
    """Number of control tokens that the text spells out (such as ``</s>``) and that were read as plain text."""


class HeadRecord(_Record):
    """Statistics of one query head, averaged over queries (see ``heads``)."""

    entropy: float
    strongest: float
    first: float
    logit_range: float
    logit_peak: float


class SideRecord(_Record):
    """Energies of one side, in descending order: joint over the KV heads, and of each KV head separately."""

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
    """``timing.json``: the cost of the audit; a separate file, since it differs between runs."""

    seconds: float
    plain_forward_seconds: float
    """Time of a plain forward pass over the same tokens, estimated from batches timed within the run."""
    cost_ratio: float
    threads: int
    matmul_dtype: str
