"""Code shared by all commands: standard options, JSON on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="The one number that all randomness comes from.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write; a folder that headcount owns.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run made from other inputs.")]


def offered(*values: str) -> Callable[[str], list[str]]:
    """A tab-completion function for an option with these values.

    >>> offered("fast", "small")("f")
    ['fast']
    """

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def emit_json(value: JsonObject) -> None:
    """Print one JSON object on stdout; NaN and infinities become null, which every parser accepts."""
    # dumps uses the C encoder and dump does not, which saves seconds for a million labels.
    sys.stdout.write(json.dumps(_finite(value), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def stdout_console() -> Console:
    """The console for human-readable results."""
    from rich.console import Console

    return Console()


def named_table(first: str, *others: str) -> Table:
    """A table whose first column is never truncated or wrapped, so that its names can be copied."""
    from rich.table import Table

    table = Table()
    table.add_column(first, no_wrap=True, overflow="ignore")
    for header in others:
        table.add_column(header, overflow="fold")
    return table


def show(*parts: RenderableType) -> None:
    """Print human-readable tables and lines on stdout."""
    console = stdout_console()
    for part in parts:
        console.print(part)


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress bars with the remaining time on stderr; silent if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as display:
        tasks: dict[str, bars.TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=total)
            display.update(tasks[stage], completed=done, total=total)

        yield report
