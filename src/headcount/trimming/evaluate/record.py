"""What an evaluation writes: the schemas of its files."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from headcount.core.spec import ModelSpec
from headcount.pretrained.runtimes.origin import Origin

RECORD, TIMING = "evaluation.json", "timing.json"
Group = Literal["calibrated", "unseen", "other"]


class _Record(BaseModel):
    # Non-finite numbers would be written as null and then refused when read.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TextRecord(_Record):
    """One kind of text that models were evaluated on."""

    kind: str
    group: Group
    windows: int
    window: int
    """Tokens of a window; all but the first are predicted."""
    stride: int
    """Tokens of the text from the start of one window to the next one's: less than ``window`` by what the tokenizer
    puts before a text. Windows never overlap."""
    digest: str
    """Hash of the token ids."""
    control_tokens: int = 0
    """Control tokens that the text spells out (such as ``</s>``) and that were read as plain text."""


class QualityRecord(_Record):
    """One model on one kind of text, against the first model; see ``quality`` for the formulas."""

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
    """Read off the live cache object and equal to the spec's."""
    texts: list[QualityRecord]
    sample: str | None
    """Greedy continuation of the prompt."""
    origin: Origin | None = None
    """How it was trimmed, where its config says so."""

    def text(self, kind: str) -> QualityRecord:
        """The quality on one kind of text."""
        return next(text for text in self.texts if text.kind == kind)

    def mean(self, what: Literal["kl", "top1_agreement"]) -> float:
        """Average over all predicted tokens of all kinds."""
        tokens = sum(text.tokens for text in self.texts)
        return sum(float(getattr(text, what)) * text.tokens for text in self.texts) / tokens


class SampleRecord(_Record):
    """A finished sample, while the rest of the run is not."""

    text: str


class EvaluationRecord(_Record):
    """``evaluation.json``: the same bytes from the same inputs."""

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
    """Single-token steps of the whole batch, by the model's whole forward pass and the choice of a token."""
    attention_seconds: list[float]
    """The same in the attention modules of all layers alone: projections, cache and attention."""


class ModelTiming(_Record):
    """The speed and memory of one model."""

    name: str
    ways: list[WayRecord]
    peak_memory_bytes: int
    """To fill the cache and decode two steps in the first way, above what was in use before (weights are not
    counted)."""


class TimingRecord(_Record):
    """``timing.json``: apart, since it differs from run to run."""

    decode_asked: str
    decode: str
    """Batch x context that was measured."""
    decode_note: str | None
    """Why it is smaller than what was asked for."""
    prefill: str
    threads: int
    memory_method: str
    models: list[ModelTiming]
