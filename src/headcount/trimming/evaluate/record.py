"""The schemas of the files that an evaluation writes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from headcount.core.spec import ModelSpec
from headcount.pretrained.runtimes.origin import Origin

RECORD, TIMING = "evaluation.json", "timing.json"
Group = Literal["calibrated", "unseen", "other"]


class _Record(BaseModel):
    # Non-finite numbers would be written as null and then rejected when read.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TextRecord(_Record):
    """One kind of text that models were evaluated on."""

    kind: str
    group: Group
    windows: int
    window: int
    """Tokens per window; all except the first are predicted."""
    stride: int
    """Text tokens from the start of one window to the start of the next: ``window`` minus the length of the
    tokenizer's prefix. Windows never overlap."""
    digest: str
    """Hash of the token ids."""
    control_tokens: int = 0
    """Number of control tokens that the text spells out (such as ``</s>``) and that were read as plain text."""


class QualityRecord(_Record):
    """One model on one kind of text, relative to the first model; see ``quality`` for the formulas."""

    kind: str
    tokens: int
    perplexity: float
    kl: float
    top1_agreement: float


class ModelRecord(_Record):
    """One model."""

    name: str
    fingerprint: str
    dtype: str
    device: str
    spec: ModelSpec
    cache_bytes_per_token: int
    """Measured on the cache object; equal to the value from the spec."""
    texts: list[QualityRecord]
    sample: str | None
    """Greedy continuation of the prompt."""
    origin: Origin | None = None
    """How the model was trimmed, if its config records it."""

    def text(self, kind: str) -> QualityRecord:
        """The quality on one kind of text."""
        return next(text for text in self.texts if text.kind == kind)

    def mean(self, what: Literal["kl", "top1_agreement"]) -> float:
        """Average over all predicted tokens of all kinds."""
        tokens = sum(text.tokens for text in self.texts)
        return sum(float(getattr(text, what)) * text.tokens for text in self.texts) / tokens


class SampleRecord(_Record):
    """A completed sample of an unfinished run."""

    text: str


class EvaluationRecord(_Record):
    """``evaluation.json``: byte-identical for identical inputs."""

    format: Literal[1] = 1
    seed: int
    texts: list[TextRecord]
    prompt: str | None
    models: list[ModelRecord]


class WayRecord(_Record):
    """One model run in one way (see ``paths``): seconds of each timed run."""

    way: Literal["stock", "growing", "own", "latent"]
    prefill_seconds: list[float]
    decode_seconds: list[float]
    """Single-token steps of the whole batch: the full forward pass and the selection of a token."""
    attention_seconds: list[float]
    """The time within these steps spent in attention modules: projections, cache and attention."""


class ModelTiming(_Record):
    """The speed and memory of one model."""

    name: str
    ways: list[WayRecord]
    peak_memory_bytes: int
    """Peak memory to fill the cache and decode two steps in the first way, above the memory in use before (weights are
    not counted)."""


class TimingRecord(_Record):
    """``timing.json``: a separate file, since it differs between runs."""

    decode_asked: str
    decode: str
    """The measured batch x context."""
    decode_note: str | None
    """Why the measured size is smaller than the requested one."""
    prefill: str
    threads: int
    memory_method: str
    models: list[ModelTiming]
