"""One training run, described by flat fields: what the command line, a sweep's file and a figure all speak."""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import pydantic

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.lab import models
from headcount.lab.models import ModelConfig, Reading
from headcount.lab.models.positional import Position
from headcount.tasks import Kind, Task

SIZES = ("tokens", "sparsity", "dim", "modulus", "order", "window", "symbols", "hops", "distinct", "nonlinear")
"""Fields that are sizes of the task."""
MODEL_OPTIONS = (
    "width", "inner", "depth", "heads", "residual", "mlp", "norm", "blank", "gain", "causal", "embedding",
    "frequencies", "position", "context", "content",
)  # fmt: skip
"""Fields that are options of the model."""


class Spec(pydantic.BaseModel):
    """What every kind of training run is described by: fields that are checked, and that name it."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), ignored_types=(cached_property,)
    )

    @classmethod
    def checked(cls, fields: dict[str, Any]) -> Self:
        """From untyped fields; what is unknown or out of range is named in a HeadcountError."""
        unknown = sorted(set(fields) - set(cls.model_fields))
        if unknown:
            raise HeadcountError(
                f"{', '.join(map(repr, unknown))} is no field of a run",
                fix=f"the fields are {', '.join(cls.model_fields)}",
            )
        try:
            return cls(**fields)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise HeadcountError(f"{name}: {first['msg']}, not {first.get('input')!r}", fix=f"change {name}") from None

    def inputs(self) -> dict[str, Any]:
        """The fields as JSON values, without those at None: what a run folder is made from."""
        return self.model_dump(mode="json", exclude_none=True)

    def identity(self) -> str:
        """What two runs must share for one's result to be the other's."""
        return json.dumps(self.inputs(), sort_keys=True)


class RunSpec(Spec):
    """A task, a model, and how it is trained. Fields left at None take the task's or the model's default.

    residual, mlp, blank: of attention, off for tasks that ask for a mean (the bare unit of the theory), on for
    the others. parameters: the model is scaled to this many (``headcount.models.sized``) unless ``width`` is given.
    samples: distinct training sequences, gone through again and again; None draws fresh ones throughout.
    answered: ``last`` counts only the last token's answer. start_tokens: a curriculum for the matching tasks,
    lengths that double from here to ``tokens``, an equal share of the steps each, every length with its own
    natural modulus. target: evaluation stops the run once the error is at most, or the accuracy at least,
    this. kind: how training sequences are drawn; ``signs`` is for qSA, vectors z = +-e_1 by fair coins, and
    held-out sequences are then drawn so too. snapshots: steps after which the weights are kept. start: of
    positional models on n-grams, ``constructed``: from the weights of ``headcount.allocation``'s best uniform layer;
    ``kernels``: with its kernels only, which are not trained.

    >>> RunSpec(task="match3", model="lstm", tokens=8).config.name
    'lstm'
    """

    task: str
    model: str = "attention"
    seed: int = 0

    tokens: int | None = None
    sparsity: int | None = None
    dim: int | None = None
    modulus: int | None = None
    order: int | None = None
    window: int | None = None
    symbols: int | None = None
    hops: int | None = None
    distinct: bool | None = None
    nonlinear: bool | None = None

    parameters: int = 12_000
    width: int | None = None
    inner: int | None = None
    depth: int | None = None
    heads: int | None = None
    residual: bool | None = None
    mlp: bool | None = None
    norm: bool | None = None
    blank: bool | None = None
    gain: float | None = None
    causal: bool | None = None
    embedding: Literal["frozen", "learned"] | None = None
    frequencies: int | None = None
    position: Position | None = None
    context: int | None = None
    content: bool | None = None
    start: Literal["constructed", "kernels"] | None = None

    kind: Kind | Literal["signs"] = "uniform"
    answered: Literal["all", "last"] = "all"
    start_tokens: int | None = None
    steps: Annotated[int, pydantic.Field(ge=1)] = 2000
    batch: Annotated[int, pydantic.Field(ge=1)] = 128
    samples: Annotated[int | None, pydantic.Field(ge=1)] = None
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 5e-3
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.0
    warmup: Annotated[int, pydantic.Field(ge=0)] = 100
    clip: Annotated[float, pydantic.Field(gt=0)] = 1.0
    target: float | None = None
    evaluate_every: Annotated[int, pydantic.Field(ge=1)] = 250
    evaluations: Annotated[int, pydantic.Field(ge=1)] = 256
    checkpoint_every: Annotated[int, pydantic.Field(ge=1)] = 500
    snapshots: tuple[int, ...] = ()

    @cached_property
    def problem(self) -> Task:
        """The task at its sizes."""
        return tasks.get(self.task, **{name: getattr(self, name) for name in SIZES if getattr(self, name) is not None})

    @cached_property
    def reading(self) -> Reading:
        """What the model is built for."""
        return Reading.of(self.problem)

    @cached_property
    def config(self) -> ModelConfig:
        """The model's config, scaled to ``parameters`` unless a width is given."""
        chosen = {name: getattr(self, name) for name in MODEL_OPTIONS if getattr(self, name) is not None}
        known = {field.name for field in dataclasses.fields(models.config_class(self.model))}
        # Where a mean is asked, the theory's bare unit spends its parameters best; a match must be told from the
        # best non-match, which takes a blank and a threshold.
        averages = self.problem.answer == "vector"
        for name, default in (("residual", not averages), ("mlp", not averages), ("blank", not averages)):
            if name in known:
                chosen.setdefault(name, default)
        found = models.config(self.model, **chosen)
        return found if self.width is not None else models.sized(found, self.reading, self.parameters)

    @property
    def lengths(self) -> list[int]:
        """The lengths of the curriculum's stages; the task's own alone where there is none."""
        tokens = self.problem.tokens
        if self.start_tokens is None:
            return [tokens]
        if not (self.reading.circular and self.config.stretches(self.reading) and self.config.embedding == "frozen"):
            raise HeadcountError(
                f"a curriculum over lengths needs a matching task and a model of any length, not {self.task} with "
                f"{self.model}",
                fix="leave out --start-tokens",
            )
        found = [tokens]
        while found[0] % 2 == 0 and found[0] > self.start_tokens:
            found.insert(0, found[0] // 2)
        if found[0] != self.start_tokens or self.modulus is not None or self.samples is not None:
            raise HeadcountError(
                f"{self.start_tokens} tokens do not double to {tokens} with moduli of their own and fresh sequences",
                fix="choose tokens divided by a power of two, and leave out --modulus and --samples",
            )
        return found

    @property
    def higher_is_better(self) -> bool:
        """Whether the score is an accuracy."""
        return self.problem.answer != "vector"

    @property
    def score_name(self) -> str:
        """What the score is called in results."""
        return "balanced_accuracy" if self.higher_is_better else "error"

    @property
    def main_kind(self) -> Kind | Literal["signs"]:
        """The kind of the held-out sequences that the score is taken on."""
        return "signs" if self.kind == "signs" else "uniform"

    def check(self) -> RunSpec:
        """The spec itself; HeadcountError for one that cannot be run, before any work."""
        _ = self.config, self.lengths
        if self.kind == "signs" and self.task != "qsa":
            raise HeadcountError(f"{self.task} has no signs to draw", fix="leave out --kind signs")
        if self.start is not None:
            if self.task != "ngram" or self.config.name != "positional":
                raise HeadcountError(
                    f"no start is constructed for {self.model} on {self.task}", fix="use positional on ngram"
                )
            if self.position not in (None, "alibi", "relative"):
                raise HeadcountError(f"no start is constructed for {self.position}", fix="use alibi or relative")
        return self

    def described(self) -> dict[str, Any]:
        """What a run is of, as its result says it."""
        return {
            "task": self.task,
            "sizes": self.problem.parameters(),
            "model": self.model,
            "config": self.config.settings(),
        }
