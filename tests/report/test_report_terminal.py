"""Tables for the terminal: every number is there at any width, plain without a terminal, safe with foreign names."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from report_cases import Run, tiny_run
from rich.console import Console, RenderableType

from headcount.report import words
from headcount.report.page.document import render
from headcount.report.terminal import tables as terminal
from headcount.report.terminal.grid import Grid


def shown(parts: list[RenderableType], width: int, tty: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=tty, color_system="standard" if tty else None)
    for part in parts:
        console.print(part)
    return stream.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_number_of_the_comparison_is_there_and_no_line_is_too_long(width: int, tty: bool) -> None:
    run, view = tiny_run(), tiny_run().view()
    assert view.evaluation is not None
    text = plain(shown(terminal.evaluation_tables(run.evaluation), width, tty))
    for measure in view.evaluation.measures:
        for number in measure.values:
            assert words.value(number, measure.form) in text, measure.label
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [60, 80, 120])
def test_audit_and_plan_have_a_row_a_layer(width: int) -> None:
    run = tiny_run()
    text = shown([*terminal.audit_tables(run.audit), *terminal.plan_tables(run.plans["half"])], width)
    for layer in run.plans["half"].record.layers:
        assert re.search(rf"^{layer.layer} +{layer.k_rank} of 32 +{layer.v_rank} of 32 *$", text, re.MULTILINE)
    spectrum = run.audit.record.layers[2].sides["values"].joint
    count = next(r for r in range(33) if sum(spectrum[:r]) >= 0.99 * sum(spectrum))
    assert f"{count}/32" in text
    assert max(map(len, text.splitlines())) <= width


def test_without_a_terminal_there_are_neither_colours_nor_lines() -> None:
    run = tiny_run()
    parts = [
        *terminal.audit_tables(run.audit),
        *terminal.plan_tables(run.plans["half"]),
        *terminal.evaluation_tables(run.evaluation),
        *terminal.run_summary(run.view()),
    ]
    piped = shown(parts, 80)
    assert not re.search("[\x1b\u2500-\u259f]", piped)
    assert re.search("[\u2500-\u259f]", shown(parts, 80, tty=True))


def test_the_run_summary_gives_the_headline() -> None:
    view = tiny_run().view()
    text = shown(terminal.run_summary(view), 100)
    for label in ("Cache per token", "Perplexity, calibrated text", "Perplexity, unseen text", "Decoding speed"):
        assert label in text
    assert "384 bytes against 768" in text


def test_a_wide_table_is_cut_into_several_that_each_name_their_rows() -> None:
    grid = Grid("wide", ["model", *(f"column {i}" for i in range(9))], [["half", *(str(i) * 8 for i in range(9))]])
    text = shown([grid], 40)
    assert text.count("half") == text.count("model") > 1
    for index in range(9):
        assert f"column {index}" in text and str(index) * 8 in text
    assert "…" not in text


def test_names_are_neither_markup_nor_control_sequences() -> None:
    record = tiny_run().evaluation.record
    hostile = "[red]\x1b[2J[/red]"
    models = [record.models[0], record.models[1].model_copy(update={"name": hostile, "sample": "\x1b]0;x\x07[bold]"})]
    found = dataclasses.replace(tiny_run().evaluation, record=record.model_copy(update={"models": models}), timing=None)
    text = shown(terminal.evaluation_tables(found), 80)
    assert "[red]\ufffd[2J[/red]" in text and "[bold]" in text
    assert "\x1b" not in text and "\x07" not in text


def test_deep_models_show_a_share_of_their_layers_and_say_so() -> None:
    view = tiny_run().view()
    audit = dataclasses.replace(view.audit, layers=view.audit.layers * 30)
    text = shown(terminal.audit_summary(audit), 100)
    assert "One layer in 2 is shown; --json has all 90." in " ".join(text.split())
    assert re.search(r"^88 ", text, re.MULTILINE) and not re.search(r"^89 ", text, re.MULTILINE)


def test_samples_stand_side_by_side_where_there_is_room() -> None:
    view = tiny_run().view()
    assert view.evaluation is not None
    models = tuple(dataclasses.replace(m, sample=f"{m.name} says") for m in view.evaluation.models)
    evaluation = dataclasses.replace(view.evaluation, models=models, prompt="Go on:")
    wide, narrow = (shown([terminal.Samples(evaluation)], width) for width in (140, 80))
    assert re.search("tiny says +half says +three quarters says", wide)
    assert "\n  half says" in narrow and not re.search("tiny says +half", narrow)
    assert "prompt: Go on:" in wide and "prompt: Go on:" in narrow


def noted() -> Run:
    """A run whose audit found an unused layer and control tokens in its text."""
    run = tiny_run()
    record = run.audit.record
    layers = [record.layers[0].model_copy(update={"unused": ("keys", "values")}), *record.layers[1:]]
    texts = [record.texts[0].model_copy(update={"control_tokens": 7})]
    audit = dataclasses.replace(run.audit, record=record.model_copy(update={"layers": layers, "texts": texts}))
    plans = {name: dataclasses.replace(plan, audit=audit) for name, plan in run.plans.items()}
    compared = run.evaluation.record
    kinds = [compared.texts[0].model_copy(update={"control_tokens": 5}), *compared.texts[1:]]
    evaluation = dataclasses.replace(run.evaluation, record=compared.model_copy(update={"texts": kinds}))
    return Run(audit, plans, evaluation)


def test_unused_layers_and_control_tokens_are_told() -> None:
    run = noted()
    unused = "Unused attention: layer 0 (its output is the same for every token)."
    control = "Control tokens spelled out in the documents, such as </s>, were read as plain text: "
    first = run.evaluation.record.texts[0].kind
    audit, plan, compared = (
        " ".join(shown(tables, 100).split())
        for tables in (
            terminal.audit_tables(run.audit),
            terminal.plan_tables(run.plans["half"]),
            terminal.evaluation_tables(run.evaluation),
        )
    )
    assert unused in audit and control + "7 in prose." in audit
    assert unused in plan and control not in plan
    assert unused not in compared and f"{control}5 in {first}." in compared
    page = render(run.view())
    assert unused in page and control.replace("<", "&lt;").replace(">", "&gt;") + "7 in prose." in page
    assert f"5 in {first}." in page
    assert "Unused attention" not in render(tiny_run().view())
