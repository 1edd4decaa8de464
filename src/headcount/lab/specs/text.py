"""One training run of a language model on text, described by flat fields like ``run.RunSpec`` for tasks."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pydantic

from headcount.lab.specs.run import RunSpec, Spec
from headcount.shapes.decoder import DecoderSpec
from headcount.shapes.planned import plan_scratch

KINDS = ("prose", "code", "library")
"""Default kinds of text (``pretrained.texts``) on which language models are trained and examined."""
Count = Annotated[int, pydantic.Field(ge=1)]


class TextSpec(Spec):
    """A new model under a budget, and how it is trained to predict the next token.

    model: a scheme of ``plan --scratch``. cache_share: in addition to the budget of ``parameters``, limits the cache
    bytes per token to this share of the unrestricted uniform model's. start: initial weights as drawn by
    ``shapes.decoder`` (``scaled``), or ``plain`` as in transformers' Llama, where the contributions of layers are
    larger by sqrt(2 layers). vocab: entries of the byte-pair vocabulary. evaluations: held-out windows per evaluation
    of the curve; the final examination uses ``examined`` windows of every kind. autocast: matrix products in bfloat16.

    >>> spec = TextSpec(model="uniform", layers=2, hidden=64, context=32, vocab=300, parameters=120_000)
    >>> spec.design.params <= 120_000
    True
    """

    task: Literal["text"] = "text"
    model: str = "planned"
    seed: int = 0

    layers: int = 6
    hidden: int = 192
    context: int = 256
    vocab: Annotated[int, pydantic.Field(ge=257)] = 1024
    kinds: tuple[str, ...] = KINDS
    parameters: int = 2_000_000
    cache_share: Annotated[float, pydantic.Field(gt=0)] | None = None
    start: Literal["scaled", "plain"] = "scaled"
    autocast: bool = False

    steps: Count = 1000
    batch: Count = 16
    samples: None = None
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.1
    warmup: Annotated[int, pydantic.Field(ge=0)] = 100
    clip: Annotated[float, pydantic.Field(gt=0)] = 1.0
    target: float | None = None
    evaluate_every: Count = 250
    evaluations: Count = 24
    examined: Count = 96
    checkpoint_every: Count = 250
    snapshots: tuple[int, ...] = ()

    @property
    def task_name(self) -> str:
        """The name of the task in messages and tables."""
        return self.task

    @property
    def model_name(self) -> str:
        """The name of the model in messages and tables."""
        return self.model

    @property
    def design(self) -> DecoderSpec:
        """The model that the scheme designs for the budget."""
        sizes = (self.layers, self.hidden, self.context, self.vocab, self.parameters)
        if self.cache_share is None:
            return _design(self.model, *sizes)
        cache_bytes = _design("uniform", *sizes).cache_bytes_per_token()
        return _design(self.model, *sizes, math.floor(self.cache_share * cache_bytes))

    @property
    def higher_is_better(self) -> bool:
        """Whether the score is an accuracy."""
        return False

    @property
    def score_name(self) -> str:
        """The name of the score in results, in nats per token."""
        return "loss"

    @property
    def main_kind(self) -> str:
        """The kind of text on which the score is computed: all kinds together."""
        return "text"

    def check(self) -> TextSpec:
        """Return the spec; raise HeadcountError if no model fits the budget."""
        _ = self.design
        return self

    def identity(self) -> str:
        """The fields and the model's sizes, so that a change of the planner's rules invalidates old results."""
        return super().identity() + self.design.model_dump_json(exclude={"layers": {"__all__": {"reason"}}})

    def described(self) -> dict[str, Any]:
        """The description of the run in its result."""
        return {
            "task": self.task,
            "sizes": {"context": self.context, "vocab": self.vocab},
            "model": self.model,
            "config": self.design.model_dump(mode="json"),
        }


def _design(
    scheme: str, layers: int, hidden: int, context: int, vocab: int, params: int, cache_bytes: int | None = None
) -> DecoderSpec:
    """A scheme's model; MLP widths may be any integer, so that all schemes come close to the same parameter count."""
    return plan_scratch(
        layers=layers,
        hidden=hidden,
        context=context,
        vocab=vocab,
        params=params,
        scheme=scheme,
        cache_bytes=cache_bytes,
        multiples=(1,),
    ).record.model


AnySpec = RunSpec | TextSpec


def checked(fields: dict[str, Any]) -> AnySpec:
    """The spec described by the fields: ``TextSpec`` if ``task`` is ``text``, else ``RunSpec``."""
    return TextSpec.checked(fields) if fields.get("task") == "text" else RunSpec.checked(fields)
