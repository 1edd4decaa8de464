"""A size or option, declared once: commands, run specs, bounds and range checks are made from the declaration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from headcount.core.errors import HeadcountError

SIZE_LIMIT = 2**58
"""Integers above this are refused: sums of a few of them must fit 64 bits."""


@dataclass(frozen=True)
class Option:
    """One number or switch that tasks, models, bounds or commands take under ``name``.

    A dataclass declares that it takes the option by the default of a field, ``tokens: int = TOKENS.field(64)``;
    ``options_of`` reads the declarations back.

    >>> SIDES = Option("sides", "Sides of the polygon.", letter="k", least=3)
    >>> @dataclass
    ... class Polygon:
    ...     sides: int = SIDES.field(4)
    >>> Polygon().sides, options_of(Polygon) == (SIDES,), SIDES.described
    (4, True, 'k: Sides of the polygon.')
    >>> SIDES.check(2)
    Traceback (most recent call last):
    headcount.core.errors.HeadcountError: sides must be an integer of at least 3, not 2; give --sides 3 or more
    """

    name: str
    help: str
    letter: str = ""
    """The letter of the papers, where there is one."""
    kind: Any = int
    """``int``, ``float``, ``bool`` or a ``Literal``."""
    least: int = 1
    """The least value of an integer."""
    most: int = SIZE_LIMIT
    off: str = ""
    """The name of the flag that switches it off; ``no-NAME`` unless given."""
    axes: tuple[tuple[str, int], ...] = ()
    """The arrays of a batch that show the size, and along which axis, as ``(("x", -1),)``."""
    rank: int = 0
    """Its place in help and in tables: lower ranks first, equal ones in the order of their declaration."""

    @property
    def flag(self) -> str:
        """How the command line writes it, e.g. ``--precision-bits``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def described(self) -> str:
        """Its letter and its help."""
        return f"{self.letter}: {self.help}" if self.letter else self.help

    def field(self, default: Any, *, least: int | None = None, most: int | None = None) -> Any:
        """A field of a dataclass that takes this option; ``least``, ``most``: a range of its own."""
        narrowed = dataclasses.replace(
            self, least=self.least if least is None else least, most=self.most if most is None else most
        )
        return dataclasses.field(default=default, metadata={"option": narrowed})

    def same(self, other: Option) -> bool:
        """Whether two declarations are of one option; its range may differ."""
        return dataclasses.replace(other, least=self.least, most=self.most) == self

    def check(self, value: Any) -> None:
        """Refuse what is no integer of the range. Raises ``HeadcountError``."""
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < self.least:
            raise HeadcountError(
                f"{self.name} must be an integer of at least {self.least}, not {value}",
                fix=f"give {self.flag} {self.least} or more",
            )
        if value > self.most:
            raise HeadcountError(f"{self.name} {value} is above {self.most}", fix=f"choose a smaller {self.name}")


def options_of(cls: type[Any]) -> tuple[Option, ...]:
    """The options that a dataclass declares, in the order of its fields."""
    return tuple(field.metadata["option"] for field in dataclasses.fields(cls) if "option" in field.metadata)


def merged(*declared: Option) -> tuple[Option, ...]:
    """Each option once, in the order of its first declaration, by rank.

    Raises ``ValueError`` where one name stands for two different options.
    """
    first: dict[str, Option] = {}
    for option in declared:
        if not first.setdefault(option.name, option).same(option):
            raise ValueError(f"{option.name!r} is declared twice, as {first[option.name]} and as {option}")
    return tuple(sorted(first.values(), key=lambda option: option.rank))
