"""What README and docs show: command lines with the output below them, and Python examples.

A *block* is a fenced or an indented code block, a *span* a piece of inline code, in a table too. In a block whose
commands start with ``$``, the lines between two of them are output. Elsewhere every line is a command, or the indented
rest of one. ``# ...`` behind a command is a comment; "exit code 1" in it says how the command ends.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("headcount", "python", "make")
"""What a command line starts with."""


@dataclass(frozen=True)
class Line:
    """One documented command line.

    text: as it stands, on one line and without its comment. shown: the output below it. code: the exit code that the
    page names, if it does. complete: whether it stands in a block, so that nothing that it needs may be left out.
    """

    page: str
    number: int
    text: str
    shown: tuple[str, ...] = ()
    code: int | None = None
    complete: bool = True

    @property
    def place(self) -> str:
        return f"{self.page}:{self.number}"


@dataclass(frozen=True)
class Unit:
    """Command lines that run one after another in one folder: a block, or one span."""

    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Example:
    """A Python example, or (``whole``) a script on the standard input of ``python -``, to be run as it stands."""

    page: str
    number: int
    source: str
    whole: bool = False

    @property
    def name(self) -> str:
        return f"{self.page}:{self.number}"


@dataclass(frozen=True)
class Page:
    """All that one page shows, and the columns of its tables whose name stands for what is in them."""

    name: str
    units: tuple[Unit, ...]
    examples: tuple[Example, ...]
    columns: dict[str, tuple[str, ...]]


def pages() -> list[Page]:
    """README, CONTRIBUTING, the pages of docs, and the table of commands in results."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "results/README.md"]
    return [read(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files]


def read(name: str, text: str) -> Page:
    """Find the command lines and examples of a page."""
    units: list[Unit] = []
    examples: list[Example] = []
    prose: list[tuple[int, str]] = []
    for number, language, lines in _parts(text.splitlines()):
        if language is None:
            prose.append((number, "\n".join(lines)))
        elif language == "python":
            examples.append(Example(name, number, "\n".join(lines)))
        elif "<<'PY'" in lines[0]:
            examples.append(Example(name, number, "\n".join(lines[1 : lines.index("PY")]), whole=True))
        elif commands := tuple(_commands(name, number, lines)):
            units.append(Unit(commands))
    columns = {column: values for _, paragraph in prose for column, values in _columns(paragraph)}
    units += [unit for number, paragraph in prose for unit in _spans(name, number, paragraph)]
    return Page(name, tuple(units), tuple(examples), columns)


def _parts(lines: list[str]) -> Iterator[tuple[int, str | None, list[str]]]:
    """First line number, language (None: prose; "" for indented blocks), and the lines without their indentation."""
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        if lines[at].startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            if end > at + 1:
                yield at + 2, lines[at][3:].strip(), lines[at + 1 : end]
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
                end += 1
            yield at + 1, "", [line[4:] for line in lines[at:end]]
            at = end
        else:
            end = at
            while end < len(lines) and lines[end].strip() and not lines[end].startswith("```"):
                end += 1
            yield at + 1, None, lines[at:end]
            at = end


def _commands(page: str, first: int, lines: list[str]) -> Iterator[Line]:
    prompt = any(line.startswith("$ ") for line in lines)
    starts = [
        index
        for index, line in enumerate(lines)
        if (line.startswith("$ ") if prompt else line.split(" ")[0].rstrip(":") in PROGRAMS)
    ]
    assert not starts or starts[0] == 0, f"{page}:{first}: a block of commands starts with something else"
    for start, end in itertools.pairwise([*starts, len(lines)]):
        text, below = lines[start].removeprefix("$ "), lines[start + 1 : end]
        while below and (not prompt or text.endswith("\\")):
            rest = below.pop(0)
            assert prompt or rest.startswith(" ") or not rest, f"{page}:{first + start + 1}: what is {rest!r}?"
            text = f"{text.removesuffix(chr(92)).rstrip()} {rest.strip()}".rstrip()
        command, _, comment = re.sub(r"\s#\s", "\0", text, count=1).partition("\0")
        named = re.search(r"exit code (\d)", comment)
        shown = tuple(below)
        while shown and not shown[-1].strip():
            shown = shown[:-1]
        yield Line(page, first + start, " ".join(command.split()), shown, int(named[1]) if named else None)
        for offset, line in enumerate(shown):  # a command that the output names is a documented command, too
            if printed := re.search(r": (headcount .+)$", line):
                yield Line(page, first + start + 1 + offset, printed[1])


def _spans(page: str, first: int, paragraph: str) -> Iterator[Unit]:
    for span in re.finditer(r"`([^`]+)`", paragraph):
        text = " ".join(span[1].split())
        if re.match(rf"({'|'.join(PROGRAMS)}) ", text):
            number = first + paragraph.count("\n", 0, span.start())
            yield Unit((Line(page, number, text, complete=False),))


def options(page_text: str) -> set[str]:
    """The options that stand alone in inline code: ``--form``, ``--text NAME=FILE``."""
    parts = _parts(page_text.splitlines())
    prose = "\n".join(line for _, language, lines in parts if language is None for line in lines)
    spans = re.findall(r"`(--[^`]+)`", prose)
    return {word for span in spans for word in re.findall(r"--[a-z][a-z-]*", span)}


def _columns(paragraph: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Of a table whose first column has a name in capitals: that name, and the inline code at the head of each row."""
    rows = [row.strip("| ").split(" | ") for row in paragraph.splitlines() if row.startswith("|")]
    if len(rows) > 2 and re.fullmatch("[A-Z]{2,}", rows[0][0]):
        yield rows[0][0], tuple(dict.fromkeys(re.findall(r"`([^`]+)`", row[0])[0] for row in rows[2:]))


def readings(line: Line, columns: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """The words of the command lines that one documented line stands for.

    ``a|b`` is one line for each; ``[--option VALUE]`` is a line with all such options and one without; a word in
    capitals that heads a column of a table on the page is one line for each row; ``...`` and the dots behind a
    word say that more may follow and are left out.
    """
    texts = [line.text]
    if "[" in line.text:
        texts = [re.sub(r"\s*\[[^]]*\]", "", line.text), re.sub(r"[\[\]]", "", line.text)]
    for column, values in columns.items():
        texts = [re.sub(rf"\b{column}\b", value, text) for text in texts for value in values]
    read_as = []
    for text in texts:
        words = [word.removesuffix("...") for word in shlex.split(text) if word != "..."]
        read_as += [list(choice) for choice in itertools.product(*(word.split("|") for word in words))]
    unique = {tuple(words): words for words in read_as}
    return list(unique.values())
