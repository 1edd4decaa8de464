"""Every command line and Python example in README and docs is run, and gives what the page says.

``documented.py`` finds them, ``short_forms.py`` says how each is run in seconds, ``documented_runs.py`` runs them. The
fast tests run every line, as it stands or in its short form; those that need the demo model or minutes are marked, and
so are the long lines run as they stand.
"""

from __future__ import annotations

import functools
import itertools
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import documented
import documented_runs as runs
import pytest
from conftest import same_table
from documented import ROOT, Unit
from documented_runs import PAGES, UNITS, Done, Runner, commands
from short_forms import BEFORE, EXAMPLES, MACHINE, RULES, VALUES

MARKS = {"slow": pytest.mark.slow, "real": pytest.mark.real}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_is_one_that_the_command_has(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for unit in PAGES[page].units:
        for line in unit.lines:
            for words in commands(line):
                try:
                    if words[0] == "headcount":
                        runs.parse(words, line.complete)
                    elif words[0] == "make":
                        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
                    else:
                        runs.parse_script(words, monkeypatch)
                except Exception as error:
                    raise AssertionError(f"{line.place}: {shlex.join(words)}: {error}") from error


def test_options_in_the_text_exist() -> None:
    import typer.main

    from headcount.cli.app import app

    known = {"--out"}
    waiting: list[Any] = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        command.get_params(command.context_class(command))  # some make their options only now
        known |= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    scripts = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    known |= set(re.findall(r'"(--[a-z-]+)"', scripts)) | {"--model_args", "--continuous-batching"}
    for page in PAGES:
        assert documented.options((ROOT / page).read_text(encoding="utf-8")) <= known, page


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("documented"))


# What the page says


def words_of(text: str, words: list[str]) -> list[str]:
    """The words of an output, without the numbers that are the machine's; line breaks are the terminal's."""
    for command, pattern, _ in MACHINE:
        if re.match(command, shlex.join(words)):
            text = re.sub(pattern, "#", text, flags=re.MULTILINE)
    return text.split()


def differs(shown: tuple[str, ...], words: list[str], output: str, how: str = "whole", within: float = 0.0) -> str:
    """Where an output is not what the page shows; "" where it is. ``...`` stands for anything.

    JSON with lines broken and fields left out must have the shown values in their order.
    """
    if shown[0].startswith("{"):
        values = re.findall(r'"\w+": (?:[^\s"{\[,]+|"[^"]*")(?=[,}])', " ".join(shown))
        return in_order(values, re.findall(r'"\w+": (?:[^\s"{\[,]+|"[^"]*")(?=[,}])', output), str.__eq__)
    if how == "lines":
        return in_order(
            [line for line in shown if line.strip()], output.splitlines(), functools.partial(same_line, within=within)
        )
    if how == "words":
        return in_order(*(re.findall(r"[^\s│┃,;]+", text) for text in ("\n".join(shown), output)), str.__eq__)
    parts = [words_of(part, words) for part in re.split(r"^\s*\.\.\.\s*$", "\n".join(shown), flags=re.MULTILINE)]
    got, at = words_of(output, words), 0
    for index, part in enumerate(parts):
        first, last = index == 0, index == len(parts) - 1
        starts = [0] if first else [len(got) - len(part)] if last else range(at, len(got) - len(part) + 1)
        start = next((start for start in starts if start >= at and got[start : start + len(part)] == part), None)
        if start is None:
            return f"the page has {' '.join(part)!r}"
        at = start + len(part)
    return "" if at == len(got) else f"the page has nothing of {' '.join(got[at:])!r}"


def in_order(shown: list[str], output: list[str], same: Callable[[str, str], bool]) -> str:
    """Whether everything shown stands in the output in its order, with anything between."""
    rest = iter(output)
    missing = next((one for one in shown if not any(same(one, other) for other in rest)), None)
    return "" if missing is None else f"{missing!r} is not there, or not in this place"


def same_line(shown: str, output: str, within: float) -> bool:
    """Equal words, and numbers that are the page's to a share ``within``, or to five units of its last digit."""
    for one, other in itertools.zip_longest(shown.split(), output.split(), fillvalue=""):
        if one != other:
            try:
                first, second = float(one), float(other)
            except ValueError:
                return False
            unit = 10.0 ** -len(one.partition(".")[2])
            if abs(first - second) > max(5 * unit, within * abs(first)):
                return False
    return True


def check(done: list[Done]) -> None:
    """Exit codes; of commands that were run as they stand, outputs and the tables of figures that are committed."""
    for one in done:
        place = f"{one.line.place}: {shlex.join(one.words)}"
        error = bool(one.line.shown) and one.line.shown[0].startswith("headcount: ")
        assert one.code in ((2,) if error else one.codes), f"{place}: exit code {one.code}\n{one.output[-2000:]}"
        if one.as_it_stands and one.line.shown:
            wrong = differs(one.line.shown, one.words, one.output, one.how, one.within)
            assert not wrong, f"{place}: {wrong}\n{one.output}"
        if one.as_it_stands:
            for name, rows in one.drawn.items():
                assert same_table(rows.decode(), (ROOT / "results" / name).read_text()), f"{place}: {name}"


def distinct(units: dict[str, Unit]) -> list[str]:
    """Names of units, one of those with the same lines."""
    return list({tuple((line.text, line.shown) for line in unit.lines): name for name, unit in units.items()}.values())


def exact_marker(unit: Unit) -> str | None:
    """The marker of the test that runs a unit's long lines as they stand, or None where it has none."""
    known = [own for line in unit.lines for words in commands(line) if (own := runs.fitting(words)) is not None]
    markers = {own.exact or own.needs for own in known} - {None}
    return "real" if "real" in markers else "slow" if markers else None


@pytest.mark.parametrize("name", distinct(UNITS))
def test_commands(name: str, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    _, done = runner.run(UNITS[name])
    check(done)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=MARKS[marker])
        for name in distinct(UNITS)
        if (marker := exact_marker(UNITS[name])) is not None
    ],
)
def test_long_commands_as_they_stand(name: str, runner: Runner) -> None:
    _, done = runner.run(UNITS[name], exact=True)
    check(done)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no option makes small: figures of the learning lab, the text of a quick demo, a benchmark's product."""
    from lab.test_lab_figures import CASES

    from headcount import pipeline
    from headcount.attention.bench import measure
    from headcount.core.names import Registry
    from headcount.lab.figures import registry

    figures = Registry("figure", [(name, CASES.get(name, registry.get(name))) for name in registry.names()])
    monkeypatch.setattr(registry, "_figures", lambda: figures)
    monkeypatch.setattr(pipeline, "QUICK", pipeline.DemoSize(tokens=1024, kept_tokens=1024, windows=1))
    monkeypatch.setattr(measure, "GEMM_SIZE", 64)


# Python


def example(source: str) -> str:
    for long, short in EXAMPLES:
        source = source.replace(long, short)
    return source


SOURCES = {own.name: own for page in PAGES.values() for own in page.examples if ">>>" not in own.source}
"""Those with prompts are run by ``test_doctests.py``."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS["real"]) if own.whole else name for name, own in SOURCES.items()]
)
def test_python_examples(name: str, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.dynamic_module_utils

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    here = tmp_path / "here"
    shutil.copytree(runner.place / "start", here)
    own = SOURCES[name]
    for path in re.findall(r'from_pretrained\("([^"]+)"', own.source):
        if not (here / path).exists():
            makers = [unit for unit in UNITS.values() if any(" trim " in line.text for line in unit.lines)]
            maker = next(unit for unit in makers if any(path in line.text for line in unit.lines))
            runner.copy(maker, path, here)
    monkeypatch.chdir(here)
    source = own.source if own.whole else example(BEFORE.get(own.page, "") + own.source)
    exec(compile(source, name, "exec"), {})


# The harness itself


def invented(text: str) -> Unit:
    return documented.read("invented.md", text).units[0]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAGES, "invented.md", documented.read("invented.md", ""))


@pytest.mark.usefixtures("page")
def test_what_no_rule_knows_fails(runner: Runner) -> None:
    """A new command line needs a short form, a word in capitals a value; wrong outputs and options are found."""
    with pytest.raises(AssertionError, match="give 'headcount construct qsa-polytope' a short form"):
        runner.run(invented("    headcount construct qsa-polytope\n"))
    with pytest.raises(AssertionError, match=r"say in short_forms\.VALUES what --seed S stands for"):
        runner.run(invented("Try `headcount task sample match3 --seed S`.\n"))
    with pytest.raises(Exception, match="No such option: --sed"):
        runs.parse(shlex.split("headcount task sample match3 --sed 0"), complete=False)
    with pytest.raises(Exception, match="Missing parameter: tokens"):
        runs.parse(shlex.split("headcount bound head"), complete=True)
    shown = invented("    $ headcount bound match3 --tokens 9\n    built at nothing\n")
    with pytest.raises(AssertionError, match="the page has 'built at nothing'"):
        check(runner.run(shown)[1])
    with pytest.raises(AssertionError, match="exit code 2"):
        check(runner.run(invented("`headcount bound qsa --tokens 9 --sparsity 10`"))[1])


def test_outputs_are_compared() -> None:
    words = ["headcount", "bound", "list"]
    assert not differs(("a", "b c"), words, "a b\nc\n") and differs(("a", "b d"), words, "a b\nc\n")
    assert not differs(("...", "b c"), words, "a b\nc\n") and differs(("...", "b"), words, "a b c")
    assert not differs(("a", "...", "c"), words, "a b b c") and differs(("a", "..."), words, "b a")
    given = '{"a": 1, "b": {"c": 2.5, "d": "x"}}'
    assert not differs(('{"a": 1, "d": "x"}',), words, given) and differs(('{"a": 1, "c": 2}',), words, given)
    assert not differs(("a 1.00",), words, "z\na  1.04\n", "lines")
    assert differs(("a 1.00",), words, "a 1.06", "lines") and not differs(("a 9.0",), words, "a 9.8", "lines", 0.1)
    assert not differs(("0 8 keys",), words, "│ 0 │ 8 │ the keys │", "words")
    assert differs(("8 0",), words, "│ 0 │ 8 │", "words")


def test_every_line_is_found() -> None:
    """Nothing that looks like a command line stands outside what was found, and no rule is for nothing."""
    lines = [line for unit in UNITS.values() for line in unit.lines]
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").splitlines()
        places = {line.number for line in lines if line.page == page}
        for number, line in enumerate(text, 1):
            if re.match(r"\s*(\$ )?headcount [a-z]+ .*--[a-z]", line) or re.match(r"\s*\$ ", line):
                assert number in places, f"{page}:{number}"
    every = [words for line in lines for words in commands(line)]
    assert len(every) > 150
    assert not [rule.pattern for rule in RULES if not any(runs.fitting(words) is rule for words in every)]
    values = {VALUES[key] for key in VALUES}
    assert not values - {word for words in every for word in words}
