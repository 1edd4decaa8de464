"""Declarations of sizes and options, from which commands, run specs, bounds and range checks are generated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from headcount.core.errors import HeadcountError

SIZE_LIMIT = 2**58
"""Larger integers are rejected, since sums of a few of them must fit in 64 bits."""


@dataclass(frozen=True)
class Option:
    """A number or switch that tasks, models, bounds or commands accept under ``name``.

    A dataclass declares that it accepts the option through a field default, ``tokens: int = TOKENS.field(64)``;
    ``options_of`` returns the declarations.

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
    """The symbol used in the papers, if any."""
    kind: Any = int
    """``int``, ``float``, ``bool`` or a ``Literal``."""
    least: int = 1
    """The least value of an integer."""
    most: int = SIZE_LIMIT
    off: str = ""
    """The name of the flag that disables it; the default is ``no-NAME``."""
    axes: tuple[tuple[str, int], ...] = ()
    """The batch arrays and axes from which the size can be read, as ``(("x", -1),)``."""
    rank: int = 0
    """Its position in help and tables: lower ranks first, equal ranks in order of declaration."""

    @property
    def flag(self) -> str:
        """Its command-line flag, e.g. ``--precision-bits``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def described(self) -> str:
        """Its letter and its help."""
        return f"{self.letter}: {self.help}" if self.letter else self.help

    def field(self, default: Any, *, least: int | None = None, most: int | None = None) -> Any:
        """A dataclass field for this option; ``least`` and ``most`` override its range."""
        narrowed = dataclasses.replace(
            self, least=self.least if least is None else least, most=self.most if most is None else most
        )
        return dataclasses.field(default=default, metadata={"option": narrowed})

    def same(self, other: Option) -> bool:
        """Whether both declare the same option; their ranges may differ."""
        return dataclasses.replace(other, least=self.least, most=self.most) == self

    def check(self, value: Any) -> None:
        """Raise ``HeadcountError`` if ``value`` is not an integer in the range."""
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < self.least:
            raise HeadcountError(
                f"{self.name} must be an integer of at least {self.least}, not {value}",
                fix=f"give {self.flag} {self.least} or more",
            )
        if value > self.most:
            raise HeadcountError(f"{self.name} {value} is above {self.most}", fix=f"choose a smaller {self.name}")


def options_of(cls: type[Any]) -> tuple[Option, ...]:
    """The options that a dataclass declares, in field order."""
    return tuple(field.metadata["option"] for field in dataclasses.fields(cls) if "option" in field.metadata)


def merged(*declared: Option) -> tuple[Option, ...]:
    """The distinct options, sorted by rank and then by first declaration.

    Raises ``ValueError`` if two different options have the same name.
    """
    first: dict[str, Option] = {}
    for option in declared:
        if not first.setdefault(option.name, option).same(option):
            raise ValueError(f"{option.name!r} is declared twice, as {first[option.name]} and as {option}")
    return tuple(sorted(first.values(), key=lambda option: option.rank))
