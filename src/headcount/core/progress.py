"""Progress reporting: a callable that the library calls and the command line displays."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of a named stage. It is called often, so it must be cheap."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``stage`` are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing: the default."""
