"""Runs documented command lines in this process, each block of them in a folder that has what it reads."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import documented
import pytest
from conftest import run, tiny_model, tiny_tokenizer
from documented import ROOT, Line, Unit
from short_forms import AS_IT_STANDS, RULES, VALUES, Rule

PAGES = {page.name: page for page in documented.pages()}
UNITS: dict[str, Unit] = {}
for _unit in itertools.chain.from_iterable(page.units for page in PAGES.values()):
    _others = sum(name.split(" ")[0] == _unit.lines[0].place for name in UNITS)  # more than one span on a line
    UNITS[_unit.lines[0].place + (f" {_others + 1}" if _others else "")] = _unit
FILES = {
    "text.txt": "The quick brown fox jumps over the lazy dog; it was not amused.\n" * 40,
    "residues.json": "[5, 96, 0, 40, 61]",
    "grid.toml": 'seeds = 1\n[fixed]\ntask = "qsa"\ntokens = 6\nsteps = 3\nbatch = 4\n[grid]\nsparsity = [1, 2]\n',
}
"""What lies in every folder, beside the tiny model ``MODEL``."""


def columns(line: Line) -> dict[str, tuple[str, ...]]:
    return {name: values for name, values in PAGES[line.page].columns.items() if name not in VALUES}


def filled(words: list[str], where: str) -> list[str]:
    """The words with a value for each that stands for others."""
    out: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if re.fullmatch(r"([a-z]+=)?[A-Z]+(\.toml)?|p", word):
            keys = [key for key in (f"{before} {word}", f"{words[1]} {word}", word) if key in VALUES]
            assert keys, f"{where}: say in short_forms.VALUES what {before} {word} stands for"
            word = VALUES[keys[0]]
        out.append(word)
    return out


def commands(line: Line) -> list[list[str]]:
    """The command lines that a documented line stands for, with values for what stands for others."""
    return [filled(words, line.place) for words in documented.readings(line, columns(line))]


def fitting(words: list[str]) -> Rule | None:
    """The rule for a command, if there is one."""
    return next((known for known in RULES if known.fits(shlex.join(words))), None)


def rule(words: list[str], where: str) -> Rule | None:
    """The rule that shortens a command, or None where it is run as it stands; one that neither names is refused."""
    command = shlex.join(words)
    known = fitting(words)
    if known is not None or any(re.match(pattern, command) for pattern in AS_IT_STANDS):
        return known
    raise AssertionError(f"{where}: give {command!r} a short form, or name it in short_forms.AS_IT_STANDS")


# What the parsers take


def parse(words: list[str], complete: bool) -> bool:
    """Parse a command of headcount and run nothing; False if it is incomplete, which is an error if it must not be."""
    import typer
    from typer.main import get_command

    from headcount.cli.app import app

    command: Any = get_command(app)
    if words[1] == "--install-completion":  # parsing it would do it
        return any(words[1] in option.opts for option in command.params)
    name, rest, context = "headcount", words[1:], None
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            while hasattr(command, "resolve_command"):
                context = command.make_context(name, list(rest), parent=context)
                name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            command.make_context(name, list(rest), parent=context)
        except typer.Exit:  # --help
            return True
        except typer.TyperException as error:
            if not complete and type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"):
                return False
            raise
    return True


class WouldStart(Exception):  # noqa: N818
    """A script would start now."""


def parse_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the options of ``python FILE ...`` and run nothing."""
    assert (ROOT / words[1]).is_file(), words[1]
    if "parse_args" not in (ROOT / words[1]).read_text(encoding="utf-8"):
        assert len(words) == 2, "the script takes no options"
        return

    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser) -> None:
        parse_args(parser, words[2:])
        raise WouldStart

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(WouldStart):
            run_script(words)


def run_script(words: list[str]) -> int:
    """``python benchmarks/NAME.py ...`` in this process; returns its exit code."""
    path = ROOT / words[1]
    arguments, where = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = words[1:], [str(path.parent)]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        sys.argv, sys.path[:] = arguments, where
    return 0


# Running


@dataclasses.dataclass
class Done:
    """One command that was run."""

    line: Line
    words: list[str]
    code: int
    output: str
    codes: tuple[int, ...]
    as_it_stands: bool
    how: str
    within: float
    drawn: dict[str, bytes]


class Runner:
    """Runs units, each once and in a folder of its own that has what its lines read."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.done: dict[tuple[str, bool], tuple[Path, list[Done]]] = {}
        tiny = tiny_model("llama")
        tiny.config.max_position_embeddings = 2048
        tiny.save_pretrained(place / "start" / "MODEL")
        tiny_tokenizer().save_pretrained(place / "start" / "MODEL")
        for name, text in FILES.items():
            (place / "start" / name).write_text(text)

    def run(self, unit: Unit, exact: bool = False) -> tuple[Path, list[Done]]:
        """The folder and the commands of a unit that was run, now or before."""
        key = self.key(unit, exact)
        if key not in self.done:
            folder = self.place / f"{len(self.done)}"
            shutil.copytree(self.place / "start", folder)
            self.done[key] = folder, []
            for line in unit.lines:
                for words in commands(line):
                    if words[0] == "make" or is_name(words, line):
                        continue
                    known = rule(words, line.place)
                    if known is not None and known.needs is not None and not exact:
                        continue
                    short = known is not None and not (exact and known.exact is not None)
                    if known is not None and short:
                        words = known.short(words)
                    self.provide(unit, words, folder, exact)
                    before = tables(folder)
                    code, output = in_folder(folder, words)
                    drawn = {name: rows for name, rows in tables(folder).items() if name not in before}
                    codes = known.codes if known is not None and line.code is None else (line.code or 0,)
                    how, within = (known.shown, known.within) if known is not None else ("whole", 0.0)
                    self.done[key][1].append(Done(line, words, code, output, codes, not short, how, within, drawn))
        return self.done[key]

    def key(self, unit: Unit, exact: bool) -> tuple[str, bool]:
        """The same for units whose commands are the same in their short forms."""
        texts = []
        for line in unit.lines:
            for words in commands(line):
                known = None if exact else fitting(words)
                texts.append(shlex.join(known.short(words) if known is not None else words))
        return "; ".join([*texts, *("".join(line.shown) for line in unit.lines)]), exact

    def provide(self, unit: Unit, words: list[str], folder: Path, exact: bool) -> None:
        """Copy what a command reads from the run that made it: of this page, or of another; ``--out`` names it."""
        written = {value for option, value in itertools.pairwise(words) if option in ("--out", "--save", "--figure")}
        for word in words[2:]:
            if word.startswith("-") or word in written or (folder / word).exists():
                continue
            makes = re.compile(rf"(--out|--save) {re.escape(word.rstrip('/'))}(/|\s|$)")
            for other in [*PAGES[unit.lines[0].page].units, *UNITS.values()]:
                if other is not unit and any(makes.search(line.text) for line in other.lines):
                    self.copy(other, word, folder, exact)
                    break

    def copy(self, unit: Unit, path: str, folder: Path, exact: bool = False) -> None:
        """Run a unit and copy what it wrote to ``path`` and beside it."""
        root = Path(path).parts[0]
        made = self.run(unit, exact)[0] / root
        if made.is_dir():
            shutil.copytree(made, folder / root, dirs_exist_ok=True)
        else:
            shutil.copy(made, folder / root)


def tables(folder: Path) -> dict[str, bytes]:
    """The tables of figures that a run has drawn into ``results``, as the page tells it."""
    return {path.name: path.read_bytes() for path in (folder / "results").glob("*.csv")}


def is_name(words: list[str], line: Line) -> bool:
    """Whether the text only names a command, as in "the constructions of `headcount construct`"."""
    named = words[0] == "headcount" and all(re.fullmatch("[a-z][a-z0-9-]*", word) for word in words[1:])
    return named and not line.complete and not parse(words, complete=False)


def in_folder(folder: Path, words: list[str]) -> tuple[int, str]:
    """Run a command line in a folder; its exit code and all that it printed on 80 columns."""
    out, error, before = io.StringIO(), io.StringIO(), Path.cwd()
    environment = {"COLUMNS": "80", "HF_HUB_OFFLINE": "1", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    kept = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    os.chdir(folder)
    arguments, sys.argv = sys.argv, words
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = run(*words[1:]) if words[0] == "headcount" else run_script(words)
    finally:
        sys.argv = arguments
        os.chdir(before)
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return code, out.getvalue() + error.getvalue()
