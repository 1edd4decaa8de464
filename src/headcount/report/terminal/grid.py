"""A table for the terminal that fits any width and is plain if stdout is not a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

BAR = 16
GAP = 2
"""Spaces between columns."""


@dataclass(frozen=True)
class Grid:
    """A titled table: names in the first column, right-aligned numbers in the others.

    ``bars``: by column, shares from 0 to 1 that are also drawn on a terminal.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    bars: Sequence[Sequence[float] | None] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="bold")
        names = [shortened(row[0], max(12, options.max_width // 3)) for row in self.rows]
        first = max(map(len, [self.columns[0], *names]))
        drawn = console.is_terminal
        widths = [
            max(len(part) for cell in (title, *(row[i] for row in self.rows)) for part in cell.split("\n"))
            + (BAR + 1 if drawn and self._bar(i) else 0)
            for i, title in enumerate(self.columns)
        ]
        for part in _parts(widths, options.max_width - first - 2 - (2 if drawn else 0)):
            table = Table(box=box.SIMPLE_HEAD if drawn else None, pad_edge=False, padding=(0, GAP - drawn, 0, 0))
            table.add_column(Text(self.columns[0]), no_wrap=True)
            for i in part:
                table.add_column(Text(self.columns[i]), justify="right", no_wrap=True)
            for number, row in enumerate(self.rows):
                cells = [self._cell(i, number, row[i], drawn) for i in part]
                table.add_row(Text(names[number]), *cells)
            yield table
            if not drawn:
                yield Text("")
        if self.note:
            yield Text(self.note, style="dim")
            yield Text("")

    def _bar(self, column: int) -> Sequence[float] | None:
        return self.bars[column] if column < len(self.bars) else None

    def _cell(self, column: int, row: int, text: str, drawn: bool) -> Text:
        bar = self._bar(column)
        if not drawn or bar is None:
            return Text(text)
        full = round(BAR * min(max(bar[row], 0.0), 1.0))
        return Text.assemble(text, " ", ("━" * full, "cyan"), ("─" * (BAR - full), "dim"))


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns 1, 2, ... in groups that fit into ``room``, with at least one column per group.

    >>> _parts([9, 10, 10, 10], 26)
    [[1, 2], [3]]
    """
    parts: list[list[int]] = [[]]
    used = 0
    for column in range(1, len(widths)):
        if parts[-1] and used + widths[column] + GAP > room:
            parts.append([])
            used = 0
        parts[-1].append(column)
        used += widths[column] + GAP
    return parts


def shortened(name: str, most: int) -> str:
    """A name shortened to at most ``most`` characters by removing the middle, since names differ at their ends.

    >>> shortened("organisation/model-half-fast", 17)
    'organisa…alf-fast'
    """
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return name[: most - 1 - tail] + "…" + name[len(name) - tail :]
