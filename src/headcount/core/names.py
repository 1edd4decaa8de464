"""A registry of named entries, whose error for an unknown name suggests the closest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from headcount.core.errors import HeadcountError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one ``kind``, in the order of registration.

    ``kind`` is the word used in error messages: ``"task"``, ``"bound"``. Iterating yields the entries.

    >>> colours = Registry("colour", [("red", 1), ("green", 2)])
    >>> colours.get("green"), colours.names(), list(colours)
    (2, ('red', 'green'), [1, 2])
    >>> colours.get("gren")
    Traceback (most recent call last):
    headcount.core.errors.HeadcountError: there is no colour 'gren'; did you mean green?
    """

    def __init__(self, kind: str, entries: Iterable[tuple[str, T]] = ()) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        for name, entry in entries:
            self.register(name, entry)

    def register(self, name: str, entry: T) -> T:
        """Add ``entry`` under ``name`` and return it. Raises ``ValueError`` if the name is taken."""
        if name in self._entries:
            raise ValueError(f"the {self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """The entry of this name.

        Raises ``HeadcountError`` for an unknown name; its fix suggests the closest name if one is similar, else all.
        """
        if name not in self._entries:
            close = difflib.get_close_matches(name, self._entries, n=1)
            fix = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(self._entries)}"
            raise HeadcountError(f"there is no {self.kind} {name!r}", fix=fix)
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
