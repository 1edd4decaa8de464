"""What a lower bound is: statement, hypotheses, status, and a number only where the constant is known.

Letters, as in THEORY: N = ``tokens``, q = ``sparsity``, d' = ``dim``, M = ``modulus``, p =
``precision_bits``, H = ``heads``, m = the embedding dimension (the width of the vectors that attention
reads), d_v = the value width of a head (how many numbers it sums), n = ``domain``.
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
"""Sizes above this are refused: ``counting`` proves its roundings up to here."""


def size_named(name: str) -> Option | None:
    """The declared size of this name: one that bounds are stated in, or one that a task declares by itself."""
    usual = next((size for size in OF_BOUNDS if size.name == name), None)
    if usual is not None:
        return usual
    from headcount.tasks.registry import declared_sizes  # here, because the usual sizes need no NumPy

    return next((size for size in declared_sizes() if size.name == name), None)


@dataclass(frozen=True, init=False)
class Sizes:
    """The sizes that a bound is asked for, by the names that ``headcount.tasks.sizes`` and the tasks declare.

    Checked when made. ``epsilon``: the error asked for; ``None``: any that is small enough for the bound. A size that
    is not given is ``None``, except ``heads``, which is 1.

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
        """H, 1 unless given."""
        return self._values["heads"]

    def given(self) -> dict[str, float]:
        """What is given, by name: the usual sizes in their order, those of one task, epsilon."""
        names = dict.fromkeys((*(size.name for size in OF_BOUNDS), *self._values))
        values: dict[str, float] = {name: self._values[name] for name in names if name in self._values}
        return values if self.epsilon is None else values | {"epsilon": self.epsilon}

    def need(self, name: str) -> int:
        """A size that a formula cannot do without."""
        value = self._values.get(name)
        if value is None:
            size = size_named(name)
            letter = f" ({size.letter})" if size is not None and size.letter else ""
            raise HeadcountError(f"{name}{letter} is not given", fix=f"give {name}")
        return int(value)


class Quantity(NamedTuple):
    """A least value and what it counts."""

    value: int
    unit: str


Constant = Literal["explicit", "unknown"]
Model = Literal["embedded", "positional keys", "as stated"]
"""What a bound is about. embedded: any network that reads tokens through their embeddings only. positional keys: one
head whose keys depend on the position only, its values linear. as stated: what its hypotheses say, no other's."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One lower bound.

    ``formula`` returns the least size that the bound allows: everything below it is impossible. A bound
    whose constant is unknown has none, so it cannot become a number; ``shape`` says how it grows.
    ``obstacle`` names the hypothesis that given sizes break, or returns ``None``.
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
    """Which models it is about: ``gap`` compares bounds that are about the same ones."""
    argument: str = ""
    """Why it holds; by default the docstring of ``formula``, so that it stays beside the code."""

    def __post_init__(self) -> None:
        if not self.argument:
            assert self.formula is not None and self.formula.__doc__, f"{self.id} has no argument"
            object.__setattr__(self, "argument", inspect.cleandoc(self.formula.__doc__))

    @property
    def constant(self) -> Constant:
        """Whether the constant is known; only then is there a number."""
        return "unknown" if self.formula is None else "explicit"

    def evaluate(self, sizes: Sizes | None = None, **given: Any) -> BoundValue:
        """The bound at these sizes (a ``Sizes``, or its fields by name).

        >>> from headcount import bounds
        >>> answer = bounds.get("qsa-bits").evaluate(tokens=1024, sparsity=8, precision_bits=16)
        >>> answer.value, answer.unit
        (5, 'embedding dimensions')
        """
        sizes = sizes or Sizes(**given)
        if self.formula is None:
            return BoundValue(self, None, None, "the constant is unknown")
        obstacle = self.obstacle(sizes)
        if obstacle:
            return BoundValue(self, None, None, f"does not apply: {obstacle}")
        return BoundValue(self, *self.formula(sizes), None)


@dataclass(frozen=True)
class BoundValue:
    """What a bound says at given sizes: ``value`` in ``unit``, or ``None`` and why."""

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
    """An obstacle: the error asked for is not below ``of(q)``, written ``limit``."""

    def obstacle(sizes: Sizes) -> str | None:
        bar = of(sizes.need("sparsity"))
        if sizes.epsilon is None or sizes.epsilon < bar:
            return None
        return f"it needs epsilon < {limit} = {bar:g}, not {sizes.epsilon:g}"

    return obstacle


def first_obstacle(*obstacles: Callable[[Sizes], str | None]) -> Callable[[Sizes], str | None]:
    """The first of several obstacles that stands in the way."""

    def obstacle(sizes: Sizes) -> str | None:
        return next((found for each in obstacles if (found := each(sizes))), None)

    return obstacle
