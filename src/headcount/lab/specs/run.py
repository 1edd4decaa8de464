"""One training run: {task, model, training}, written as three parts or as flat fields.

The command line, sweep files, rows and run folders use flat fields, ``{"task": "qsa", "tokens": 8, "width": 12,
"steps": 500}``: the sizes declared by tasks (``headcount.tasks.sizes``), the options declared by models
(``headcount.lab.models``), and the fields of ``TrainingPart``. ``inputs`` returns them in a fixed order, so that
digests and folders do not depend on how the spec was written.
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
    """Immutable fields that are validated on construction."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), ignored_types=(cached_property,)
    )


class Spec(Part):
    """The base of all training run specs: validated fields that identify the run."""

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """The names of the flat fields, in the order of ``inputs``."""
        return tuple(cls.model_fields)

    @classmethod
    def checked(cls, fields: Mapping[str, Any]) -> Self:
        """Create a spec from untyped fields; a HeadcountError names fields that are unknown or out of range."""
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
        """The flat fields that are not None, as JSON values; a run folder stores these."""
        return self.model_dump(mode="json", exclude_none=True)

    def identity(self) -> str:
        """The key that two runs must share for their results to be interchangeable."""
        return json.dumps(self.inputs(), sort_keys=True)


def flattened(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Flat fields from a mapping that may contain the parts ``task``, ``model`` and ``training``.

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
    """The flat field of the location of a pydantic error."""
    names = [str(step) for step in place]
    if names[1:] == ["name"]:
        return names[0]
    return ".".join(names[1:] if names[0] in ("task", "model", "training") and names[1:] else names)


class TaskPart(Part):
    """The task of a run: its name and the specified sizes; all other sizes take the task's defaults."""

    name: str
    sizes: dict[str, Any] = {}


class ModelPart(Part):
    """The model of a run: its name, its size and the specified options; all other options take the model's defaults.

    parameters: the model is scaled to this number (``headcount.lab.models.sized``) unless ``width`` is specified.
    If unspecified, residual, mlp and blank of attention are off for tasks that ask for a mean (the bare unit of the
    theory) and on for all others. start: for positional models on n-grams; ``constructed``: start from the weights of
    the best uniform layer of ``headcount.lags``; ``kernels``: start from its kernels only, and do not train them.
    """

    name: str = "attention"
    parameters: int = 12_000
    options: dict[str, Any] = {}
    start: Literal["constructed", "kernels"] | None = None


class TrainingPart(Part):
    """How a run is trained and examined.

    samples: number of distinct training sequences, cycled through repeatedly; None draws fresh sequences throughout.
    answered: ``last`` counts only the answer at the last token. start_tokens: a curriculum for the matching tasks, with
    lengths doubling from this to ``tokens``, an equal share of the steps each, and each length's default modulus.
    target: the run stops at the first evaluation with an error of at most, or an accuracy of at least, this
    value. kind: how training sequences are drawn; ``signs`` is for qSA with vectors z = +-e_1 by fair coins, and
    also applies to held-out sequences. snapshots: steps after which the weights are saved.
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
    """A pydantic model whose fields are the declared options, all optional."""
    fields: dict[str, Any] = {option.name: (option.kind | None, None) for option in options}
    return pydantic.create_model("Declared", __config__=pydantic.ConfigDict(protected_namespaces=()), **fields)


def _given(options: tuple[Option, ...], flat: dict[str, Any]) -> dict[str, Any]:
    """Remove the specified options from the flat fields and return them, validated, in order of declaration."""
    values = {option.name: flat.pop(option.name) for option in options if option.name in flat}
    checked = _checker(options)(**values)
    return {option.name: value for option in options if (value := getattr(checked, option.name)) is not None}


class RunSpec(Spec):
    """A task, a model, and how it is trained. Every flat field is also an attribute, with None for unspecified sizes
    and options.

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
        """The names of the flat fields. Raises ``ValueError`` if a size or an option has the name of another field."""
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
        """The specified flat fields as JSON values, in the order of ``fields``."""
        flat = {"task": self.task.name, "model": self.model.name, **self.task.sizes, **self.model.options}
        flat |= {"parameters": self.model.parameters, "start": self.model.start}
        flat |= self.training.model_dump(mode="json", exclude_none=True)
        return {name: flat[name] for name in self.fields() if flat.get(name) is not None}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some flat fields replaced."""
        return type(self)(**self.inputs() | dict(update or {}))

    @property
    def task_name(self) -> str:
        """The name of the task in messages and tables."""
        return self.task.name

    @property
    def model_name(self) -> str:
        """The name of the model in messages and tables."""
        return self.model.name

    @cached_property
    def problem(self) -> Task:
        """The task at its sizes."""
        return tasks.get(self.task.name, **self.task.sizes)

    @cached_property
    def reading(self) -> Reading:
        """The reading for which the model is built."""
        return Reading.of(self.problem)

    @cached_property
    def config(self) -> ModelConfig:
        """The model's config, scaled to ``parameters`` unless a width is specified."""
        chosen = dict(self.model.options)
        known = {field.name for field in dataclasses.fields(models.config_class(self.model.name))}
        # For tasks that ask for a mean, the theory's bare unit uses parameters most efficiently. Distinguishing a match
        # from the best non-match requires a blank and a threshold.
        averages = self.problem.answer == "vector"
        for name, default in (("residual", not averages), ("mlp", not averages), ("blank", not averages)):
            if name in known:
                chosen.setdefault(name, default)
        config = models.config(self.model.name, **chosen)
        return config if "width" in chosen else models.sized(config, self.reading, self.model.parameters)

    @property
    def lengths(self) -> list[int]:
        """The lengths of the curriculum's stages; only the task's length if there is no curriculum."""
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
        lengths = [tokens]
        while lengths[0] % 2 == 0 and lengths[0] > shortest:
            lengths.insert(0, lengths[0] // 2)
        if lengths[0] != shortest or self.modulus is not None or self.training.samples is not None:
            raise HeadcountError(
                f"{shortest} tokens do not double to {tokens} with moduli of their own and fresh sequences",
                fix="choose tokens divided by a power of two, and leave out --modulus and --samples",
            )
        return lengths

    @property
    def higher_is_better(self) -> bool:
        """Whether the score is an accuracy."""
        return self.problem.answer != "vector"

    @property
    def score_name(self) -> str:
        """The name of the score in results."""
        return "balanced_accuracy" if self.higher_is_better else "error"

    @property
    def main_kind(self) -> Kind | Literal["signs"]:
        """The kind of held-out sequences on which the score is computed."""
        return "signs" if self.training.kind == "signs" else "uniform"

    def check(self) -> RunSpec:
        """Return the spec; raise HeadcountError before any work if it cannot be run."""
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
        """The description of the run in its result."""
        return {
            "task": self.task.name,
            "sizes": self.problem.parameters(),
            "model": self.model.name,
            "config": self.config.settings(),
        }
