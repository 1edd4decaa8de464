"""Lower bounds: statement, hypotheses, status, and a number only if the constant is known.

Letters, as in THEORY: N = ``tokens``, q = ``sparsity``, d' = ``dim``, M = ``modulus``, p =
``precision_bits``, H = ``heads``, m = the embedding dimension (the width of the vectors that attention
reads), d_v = the value width of a head (the number of entries it sums), n = ``domain``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from headcount.core.errors import HeadcountError
from headcount.core.options import Option
from headcount.core.payload import JsonObject
from headcount.tasks.sizes import OF_BOUNDS

PROVED_HERE = "proved here"
CONJECTURED = "conjectured"

SIZE_LIMIT = 10**18
"""Larger sizes are rejected: the rounding analysis of ``counting`` is proved up to this size."""


def size_named(name: str) -> Option | None:
    """The declared size with this name: one that bounds are stated in, or one that is specific to a task."""
    usual = next((size for size in OF_BOUNDS if size.name == name), None)
    if usual is not None:
        return usual
    from headcount.tasks.registry import declared_sizes  # here, because the usual sizes need no NumPy

    return next((size for size in declared_sizes() if size.name == name), None)


@dataclass(frozen=True, init=False)
class Sizes:
    """The sizes at which a bound is evaluated, under the names declared by ``headcount.tasks.sizes`` and the tasks.

    Validated on construction. ``epsilon``: the target error; ``None``: any error that is small enough for the bound.
    An unspecified size is ``None``, except ``heads``, which defaults to 1.

    >>> Sizes(tokens=16, sparsity=4).sparsity
    4
    >>> Sizes(tokens=4, sparsity=16)
    Traceback (most recent call last):
    headcount.core.errors.HeadcountError: sparsity 16 is larger than tokens 4; choose q in [1, 4]
    """

    epsilon: float | None
    _values: dict[str, int]

    def __init__(self, *, epsilon: float | None = None, **sizes: int | None) -> None:
        values = {"heads": 1} | {name: value for name, value in sizes.items() if value is not None}
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "_values", values)
        for name, value in values.items():
            size = size_named(name)
            if size is None:
                raise HeadcountError(
                    f"there is no size {name!r}", fix=f"the usual ones are {', '.join(one.name for one in OF_BOUNDS)}"
                )
            if size.kind is not int:
                continue
            if value < size.least:
                raise HeadcountError(f"{name} is {value}", fix=f"choose {name} of at least {size.least}")
            if value > SIZE_LIMIT:
                raise HeadcountError(f"{name} is {value}", fix=f"choose {name} of at most {SIZE_LIMIT}")
        if self.tokens is not None and self.sparsity is not None and self.sparsity > self.tokens:
            raise HeadcountError(
                f"sparsity {self.sparsity} is larger than tokens {self.tokens}",
                fix=f"choose q in [1, {self.tokens}]",
            )
        if epsilon is not None and not 0 < epsilon < float("inf"):
            raise HeadcountError(f"epsilon is {epsilon}", fix="choose a positive epsilon")

    def __getattr__(self, name: str) -> int | None:
        if name.startswith("_") or (name not in self._values and size_named(name) is None):
            raise AttributeError(f"there is no size {name!r}")
        return self._values.get(name)

    @property
    def heads(self) -> int:
        """H; 1 by default."""
        return self._values["heads"]

    def given(self) -> dict[str, float]:
        """The specified sizes by name: the common sizes in order, then task-specific ones, then epsilon."""
        names = dict.fromkeys((*(size.name for size in OF_BOUNDS), *self._values))
        values: dict[str, float] = {name: self._values[name] for name in names if name in self._values}
        return values if self.epsilon is None else values | {"epsilon": self.epsilon}

    def need(self, name: str) -> int:
        """A size that a formula requires; raises ``HeadcountError`` if it is missing."""
        value = self._values.get(name)
        if value is None:
            size = size_named(name)
            letter = f" ({size.letter})" if size is not None and size.letter else ""
            raise HeadcountError(f"{name}{letter} is not given", fix=f"give {name}")
        return int(value)


class Quantity(NamedTuple):
    """A minimum value and its unit."""

    value: int
    unit: str


Constant = Literal["explicit", "unknown"]
Model = Literal["embedded", "positional keys", "as stated"]
"""The models that a bound covers. embedded: any network that reads tokens only through their embeddings. positional
keys: one head with linear values whose keys depend only on the position. as stated: only the models that satisfy the
bound's own hypotheses."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One lower bound.

    ``formula`` returns the minimum size that the bound allows: anything smaller is impossible. A bound
    with an unknown constant has no formula, so it has no numerical value; ``shape`` states how it grows.
    ``obstacle`` describes the hypothesis that the sizes violate, or returns ``None``.
    """

    id: str
    task: str
    limits: str
    """What is bounded from below, e.g. "embedding dimension of an attention layer"."""
    status: str
    source: str
    statement: str
    hypotheses: tuple[str, ...]
    shape: str
    formula: Callable[[Sizes], Quantity] | None = None
    obstacle: Callable[[Sizes], str | None] = lambda sizes: None
    model: Model = "as stated"
    """The models that the bound covers: ``gap`` compares bounds that cover the same models."""
    argument: str = ""
    """The proof; by default the docstring of ``formula``, so that it is kept next to the code."""

    def __post_init__(self) -> None:
        if not self.argument:
            assert self.formula is not None and self.formula.__doc__, f"{self.id} has no argument"
            object.__setattr__(self, "argument", inspect.cleandoc(self.formula.__doc__))

    @property
    def constant(self) -> Constant:
        """Whether the constant is known; the bound has a numerical value only if it is."""
        return "unknown" if self.formula is None else "explicit"

    def evaluate(self, sizes: Sizes | None = None, **size_values: Any) -> BoundValue:
        """The bound at these sizes (a ``Sizes``, or its fields by name).

        >>> from headcount import bounds
        >>> answer = bounds.get("qsa-bits").evaluate(tokens=1024, sparsity=8, precision_bits=16)
        >>> answer.value, answer.unit
        (5, 'embedding dimensions')
        """
        sizes = sizes or Sizes(**size_values)
        if self.formula is None:
            return BoundValue(self, None, None, "the constant is unknown")
        obstacle = self.obstacle(sizes)
        if obstacle:
            return BoundValue(self, None, None, f"does not apply: {obstacle}")
        return BoundValue(self, *self.formula(sizes), None)


@dataclass(frozen=True)
class BoundValue:
    """The value of a bound at particular sizes: ``value`` in ``unit``, or ``None`` and the reason."""

    bound: Bound
    value: int | None
    unit: str | None
    why_not: str | None

    def as_dict(self) -> JsonObject:
        """The fields of the JSON answer."""
        return {
            "id": self.bound.id,
            "status": self.bound.status,
            "constant": self.bound.constant,
            "source": self.bound.source,
            "limits": self.bound.limits,
            "value": self.value,
            "unit": self.unit,
            "shape": self.bound.shape,
            "hypotheses": list(self.bound.hypotheses),
            "why_not": self.why_not,
        }


def epsilon_below(limit: str, of: Callable[[int], float]) -> Callable[[Sizes], str | None]:
    """An obstacle: the target error is not below ``of(q)``, displayed as ``limit``."""

    def obstacle(sizes: Sizes) -> str | None:
        bar = of(sizes.need("sparsity"))
        if sizes.epsilon is None or sizes.epsilon < bar:
            return None
        return f"it needs epsilon < {limit} = {bar:g}, not {sizes.epsilon:g}"

    return obstacle


def first_obstacle(*obstacles: Callable[[Sizes], str | None]) -> Callable[[Sizes], str | None]:
    """An obstacle that reports the first of several obstacles that applies."""

    def obstacle(sizes: Sizes) -> str | None:
        return next((reason for each in obstacles if (reason := each(sizes))), None)

    return obstacle
