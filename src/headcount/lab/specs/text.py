"""One training run of a language model on text, described by flat fields, as ``spec.RunSpec`` describes a task's."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pydantic

from headcount.lab.specs.run import RunSpec, Spec
from headcount.shapes.decoder import DecoderSpec
from headcount.shapes.planned import plan_scratch

KINDS = ("prose", "code", "library")
"""Kinds of text (``pretrained.texts``) that language models are trained and examined on by default."""
Count = Annotated[int, pydantic.Field(ge=1)]


class TextSpec(Spec):
    """A new model under a budget, and how it is trained to predict the next token.

    model: a scheme of ``plan --scratch``. cache_share: besides its budget of ``parameters``, the model's cache has at
    most this share of the bytes a token that the uniform model's has by itself. start: new weights as
    ``models.decoder`` draws them (``scaled``), or ``plain``, as transformers' Llama does: what layers add is then
    larger by sqrt(2 layers). vocab: entries of the byte-pair vocabulary. evaluations: held-out windows that the curve
    is taken on; the examination at the end takes ``examined`` of every kind. autocast: products in bfloat16.

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
        """The task, as messages and tables name it."""
        return self.task

    @property
    def model_name(self) -> str:
        """The model, as messages and tables name it."""
        return self.model

    @property
    def design(self) -> DecoderSpec:
        """The model that the scheme makes of the budget."""
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
        """Nats a token."""
        return "loss"

    @property
    def main_kind(self) -> str:
        """The text that the score is taken on: all kinds together."""
        return "text"

    def check(self) -> TextSpec:
        """The spec itself; HeadcountError for a model that cannot be had."""
        _ = self.design
        return self

    def identity(self) -> str:
        """The fields and the model's sizes: once the planner's rules change, a scheme's old results are not its own."""
        return super().identity() + self.design.model_dump_json(exclude={"layers": {"__all__": {"reason"}}})

    def described(self) -> dict[str, Any]:
        """What a run is of, as its result says it."""
        return {
            "task": self.task,
            "sizes": {"context": self.context, "vocab": self.vocab},
            "model": self.model,
            "config": self.design.model_dump(mode="json"),
        }


def _design(
    scheme: str, layers: int, hidden: int, context: int, vocab: int, params: int, cache_bytes: int | None = None
) -> DecoderSpec:
    """A scheme's model; MLP widths are whole numbers, so that all schemes come close to one number of parameters."""
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
    """The spec that fields describe: of text where ``task`` says so, else of a task."""
    return TextSpec.checked(fields) if fields.get("task") == "text" else RunSpec.checked(fields)
