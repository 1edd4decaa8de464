"""One training run: {task, model, training}, written as three parts or as flat fields.

The command line, a sweep's file, rows and run folders speak flat fields, ``{"task": "qsa", "tokens": 8, "width": 12,
"steps": 500}``: the sizes that tasks declare (``headcount.tasks.sizes``), the options that models declare
(``headcount.lab.models``), the fields of ``TrainingPart``. ``inputs`` gives them in one order, whatever the spec was
made from, so that digests and folders do not depend on how it was written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

import pydantic

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.core.options import Option
from headcount.lab import models
from headcount.lab.models import ModelConfig, Reading
from headcount.tasks import Kind, Task


class Part(pydantic.BaseModel):
    """Fields that are checked when they are made, and stay."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), ignored_types=(cached_property,)
    )


class Spec(Part):
    """What every kind of training run is described by: fields that are checked, and that name it."""

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """The names of its flat fields, in the order of ``inputs``."""
        return tuple(cls.model_fields)

    @classmethod
    def checked(cls, fields: Mapping[str, Any]) -> Self:
        """From untyped fields; what is unknown or out of range is named in a HeadcountError."""
        fields = flattened(fields)
        unknown = sorted(set(fields) - set(cls.fields()))
        if unknown:
            raise HeadcountError(
                f"{', '.join(map(repr, unknown))} is no field of a run",
                fix=f"the fields are {', '.join(cls.fields())}",
            )
        try:
            return cls(**fields)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = _flat_name(first["loc"])
            raise HeadcountError(f"{name}: {first['msg']}, not {first.get('input')!r}", fix=f"change {name}") from None

    def inputs(self) -> dict[str, Any]:
        """The flat fields as JSON values, without those at None: what a run folder is made from."""
        return self.model_dump(mode="json", exclude_none=True)

    def identity(self) -> str:
        """What two runs must share for one's result to be the other's."""
        return json.dumps(self.inputs(), sort_keys=True)


def flattened(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Flat fields from a mapping that may hold the parts ``task``, ``model`` and ``training``.

    >>> flattened({"task": {"name": "qsa", "sizes": {"tokens": 8}}, "training": {"steps": 5}, "width": 4})
    {'task': 'qsa', 'tokens': 8, 'steps': 5, 'width': 4}
    """
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if not isinstance(value, Mapping):
            flat[name] = value
            continue
        for key, item in value.items():
            flat |= item if isinstance(item, Mapping) else {name if key == "name" else key: item}
    return flat


def _flat_name(place: tuple[int | str, ...]) -> str:
    """Where pydantic found a mistake, as the flat field that it is in."""
    names = [str(step) for step in place]
    if names[1:] == ["name"]:
        return names[0]
    return ".".join(names[1:] if names[0] in ("task", "model", "training") and names[1:] else names)


class TaskPart(Part):
    """The task of a run: its name, and the sizes that are given; the others take the task's defaults."""

    name: str
    sizes: dict[str, Any] = {}


class ModelPart(Part):
    """The model of a run: its name, its size, and the options that are given; the others take the model's defaults.

    parameters: the model is scaled to this many (``headcount.lab.models.sized``) unless ``width`` is among the options.
    Without an option for them, residual, mlp and blank of attention are off for tasks that ask for a mean (the bare
    unit of the theory), on for the others. start: of positional models on n-grams, ``constructed``: from the weights of
    the best uniform layer of ``headcount.lags``; ``kernels``: with its kernels only, which are not trained.
    """

    name: str = "attention"
    parameters: int = 12_000
    options: dict[str, Any] = {}
    start: Literal["constructed", "kernels"] | None = None


class TrainingPart(Part):
    """How a run is trained and examined.

    samples: distinct training sequences, gone through again and again; None draws fresh ones throughout.
    answered: ``last`` counts only the last token's answer. start_tokens: a curriculum for the matching tasks,
    lengths that double from here to ``tokens``, an equal share of the steps each, every length with its own
    natural modulus. target: evaluation stops the run once the error is at most, or the accuracy at least,
    this. kind: how training sequences are drawn; ``signs`` is for qSA, vectors z = +-e_1 by fair coins, and
    held-out sequences are then drawn so too. snapshots: steps after which the weights are kept.
    """

    seed: int = 0
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


@lru_cache(maxsize=16)
def _checker(options: tuple[Option, ...]) -> type[pydantic.BaseModel]:
    """A model whose fields are declared options, all of them optional."""
    fields: dict[str, Any] = {option.name: (option.kind | None, None) for option in options}
    return pydantic.create_model("Declared", __config__=pydantic.ConfigDict(protected_namespaces=()), **fields)


def _given(options: tuple[Option, ...], flat: dict[str, Any]) -> dict[str, Any]:
    """Take the options out of flat fields: those that are given, checked, in the order of their declaration."""
    values = {option.name: flat.pop(option.name) for option in options if option.name in flat}
    checked = _checker(options)(**values)
    return {option.name: value for option in options if (value := getattr(checked, option.name)) is not None}


class RunSpec(Spec):
    """A task, a model, and how it is trained. Every flat field is an attribute, too; sizes and options that are not
    given are None there.

    >>> spec = RunSpec(task="match3", model="lstm", tokens=8, steps=100)
    >>> spec.config.name, spec.task.sizes, spec.training.steps, spec.tokens, spec.modulus
    ('lstm', {'tokens': 8}, 100, 8, None)
    >>> task, model = {"name": "match3", "sizes": {"tokens": 8}}, {"name": "lstm"}
    >>> spec == RunSpec(task=task, model=model, training={"steps": 100})
    True
    """

    task: TaskPart
    model: ModelPart
    training: TrainingPart

    def __init__(self, **fields: Any) -> None:
        flat = flattened(fields)
        parts = {
            "task": {"sizes": _given(tasks.declared_sizes(), flat)},
            "model": {"options": _given(models.declared_options(), flat)},
        }
        parts["model"] |= {name: flat.pop(name) for name in ("parameters", "start") if name in flat}
        for name, part in parts.items():
            if name in flat:
                part["name"] = flat.pop(name)
        super().__init__(**parts, **{"training": flat})

    def __getattr__(self, name: str) -> Any:
        parts = self.__dict__
        if name in TrainingPart.model_fields and "training" in parts:
            return getattr(parts["training"], name)
        if name in ("parameters", "start") and "model" in parts:
            return getattr(parts["model"], name)
        if not name.startswith("_") and name in self.fields():
            return {**parts["task"].sizes, **parts["model"].options}.get(name)
        raise AttributeError(f"a run has no field {name!r}")

    def __hash__(self) -> int:
        return hash(self.identity())

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """The names of the flat fields. Raises ``ValueError`` where a size or an option has another field's name."""
        sizes, options = (
            [option.name for option in each] for each in (tasks.declared_sizes(), models.declared_options())
        )
        training = [name for name in TrainingPart.model_fields if name != "seed"]
        names = ("task", "model", "seed", *sizes, "parameters", *options, "start", *training)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} would name two fields of a run: give the task's size another name")
        return names

    def inputs(self) -> dict[str, Any]:
        """The flat fields that are given, as JSON values, in the order of ``fields``."""
        flat = {"task": self.task.name, "model": self.model.name, **self.task.sizes, **self.model.options}
        flat |= {"parameters": self.model.parameters, "start": self.model.start}
        flat |= self.training.model_dump(mode="json", exclude_none=True)
        return {name: flat[name] for name in self.fields() if flat.get(name) is not None}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A spec with other flat fields."""
        return type(self)(**self.inputs() | dict(update or {}))

    @property
    def task_name(self) -> str:
        """The task, as messages and tables name it."""
        return self.task.name

    @property
    def model_name(self) -> str:
        """The model, as messages and tables name it."""
        return self.model.name

    @cached_property
    def problem(self) -> Task:
        """The task at its sizes."""
        return tasks.get(self.task.name, **self.task.sizes)

    @cached_property
    def reading(self) -> Reading:
        """What the model is built for."""
        return Reading.of(self.problem)

    @cached_property
    def config(self) -> ModelConfig:
        """The model's config, scaled to ``parameters`` unless a width is given."""
        chosen = dict(self.model.options)
        known = {field.name for field in dataclasses.fields(models.config_class(self.model.name))}
        # Where a mean is asked, the theory's bare unit spends its parameters best; a match must be told from the
        # best non-match, which takes a blank and a threshold.
        averages = self.problem.answer == "vector"
        for name, default in (("residual", not averages), ("mlp", not averages), ("blank", not averages)):
            if name in known:
                chosen.setdefault(name, default)
        found = models.config(self.model.name, **chosen)
        return found if "width" in chosen else models.sized(found, self.reading, self.model.parameters)

    @property
    def lengths(self) -> list[int]:
        """The lengths of the curriculum's stages; the task's own alone where there is none."""
        tokens = self.problem.tokens
        shortest = self.training.start_tokens
        if shortest is None:
            return [tokens]
        if not (self.reading.circular and self.config.stretches(self.reading) and self.config.embedding == "frozen"):
            raise HeadcountError(
                f"a curriculum over lengths needs a matching task and a model of any length, not {self.task.name} with "
                f"{self.model.name}",
                fix="leave out --start-tokens",
            )
        found = [tokens]
        while found[0] % 2 == 0 and found[0] > shortest:
            found.insert(0, found[0] // 2)
        if found[0] != shortest or self.modulus is not None or self.training.samples is not None:
            raise HeadcountError(
                f"{shortest} tokens do not double to {tokens} with moduli of their own and fresh sequences",
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
        return "signs" if self.training.kind == "signs" else "uniform"

    def check(self) -> RunSpec:
        """The spec itself; HeadcountError for one that cannot be run, before any work."""
        _ = self.config, self.lengths
        if self.training.kind == "signs" and self.task.name != "qsa":
            raise HeadcountError(f"{self.task.name} has no signs to draw", fix="leave out --kind signs")
        if self.model.start is not None:
            if self.task.name != "ngram" or self.config.name != "positional":
                raise HeadcountError(
                    f"no start is constructed for {self.model.name} on {self.task.name}", fix="use positional on ngram"
                )
            if self.model.options.get("position") not in (None, "alibi", "relative"):
                raise HeadcountError(f"no start is constructed for {self.position}", fix="use alibi or relative")
        return self

    def described(self) -> dict[str, Any]:
        """What a run is of, as its result says it."""
        return {
            "task": self.task.name,
            "sizes": self.problem.parameters(),
            "model": self.model.name,
            "config": self.config.settings(),
        }
