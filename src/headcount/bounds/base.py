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

PROVED_HERE = "proved here"
CONJECTURED = "conjectured"

SIZE_LIMIT = 10**18
"""Sizes above this are refused: ``counting`` proves its roundings up to here."""

SIZE_LETTERS = {
    "tokens": "N",
    "sparsity": "q",
    "dim": "d'",
    "modulus": "M",
    "precision_bits": "p",
    "heads": "H",
    "domain": "n",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a bound is asked for; checked when made.

    >>> Sizes(tokens=16, sparsity=4).sparsity
    4
    >>> Sizes(tokens=4, sparsity=16)
    Traceback (most recent call last):
    headcount.core.errors.HeadcountError: sparsity 16 is larger than tokens 4; choose q in [1, 4]
    """

    tokens: int | None = None
    sparsity: int | None = None
    dim: int | None = None
    modulus: int | None = None
    precision_bits: int | None = None
    heads: int = 1
    domain: int | None = None
    epsilon: float | None = None
    """The error asked for; ``None``: any that is small enough for the bound."""

    def __post_init__(self) -> None:
        for name in SIZE_LETTERS:
            value = getattr(self, name)
            least = 2 if name == "modulus" else 1
            if value is not None and value < least:
                raise HeadcountError(f"{name} is {value}", fix=f"choose {name} of at least {least}")
            if value is not None and value > SIZE_LIMIT:
                raise HeadcountError(f"{name} is {value}", fix=f"choose {name} of at most {SIZE_LIMIT}")
        if self.tokens is not None and self.sparsity is not None and self.sparsity > self.tokens:
            raise HeadcountError(
                f"sparsity {self.sparsity} is larger than tokens {self.tokens}",
                fix=f"choose q in [1, {self.tokens}]",
            )
        if self.epsilon is not None and not 0 < self.epsilon < float("inf"):
            raise HeadcountError(f"epsilon is {self.epsilon}", fix="choose a positive epsilon")

    def need(self, name: str) -> int:
        """A size that a formula cannot do without."""
        value = getattr(self, name)
        if value is None:
            letter = SIZE_LETTERS[name]
            raise HeadcountError(f"{name} ({letter}) is not given", fix=f"give {name}")
        return int(value)


class Quantity(NamedTuple):
    """A least value and what it counts."""

    value: int
    unit: str


Constant = Literal["explicit", "unknown"]


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

    def as_dict(self) -> dict[str, Any]:
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
