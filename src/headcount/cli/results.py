"""``evaluate``, ``report`` and ``demo``: comparing models, writing the page, and the whole pipeline."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from headcount.cli.common import Json, Out, Overwrite, Seed, emit_json, progress_bars, show
from headcount.cli.model import RUNS, Allocator, Device, Dtype, Form, Metric, Pickle, Trust, default_out, opened
from headcount.core.errors import HeadcountError
from headcount.core.forms import DEFAULT_FORM


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models; the first is what the others are compared with.")],
    text: Annotated[list[str] | None, typer.Option("--text", help="NAME=FILE: evaluate on this text too.")] = None,
    windows: Annotated[int, typer.Option("--windows", help="Windows of each kind of text.")] = 12,
    context: Annotated[int, typer.Option("--context", help="Tokens of a window.")] = 512,
    decode: Annotated[str, typer.Option("--decode", help="BATCHxCONTEXT to time decoding at, or none.")] = "8x4096",
    out: Out = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    allow_pickle: Pickle = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure quality, cache, speed and memory of models against the first of them.

    What it costs is also written into the model cards (README.md) of models that headcount trim made.
    """
    from headcount.pipeline import record_costs
    from headcount.trimming.evaluate.kinds import default_texts, user_texts
    from headcount.trimming.evaluate.result import summary_json
    from headcount.trimming.evaluate.run import evaluate as run

    files = {}
    for pair in text or ():
        name, separator, file = pair.partition("=")
        if not (name and separator and file):
            raise HeadcountError(f"--text {pair!r} is not NAME=FILE", fix="write --text letters=letters.txt")
        files[name] = Path(file)
    texts = {**default_texts(), **user_texts(files)}
    loaded = [opened(source, dtype, device, allow_pickle, trust_remote_code) for source in models]
    with progress_bars() as progress:
        result = run(
            loaded,
            texts=texts,
            windows=windows,
            context=context,
            decode=None if decode == "none" else decode,
            seed=seed,
            out=out or default_out(models[-1], "evaluation"),
            overwrite=overwrite,
            progress=progress,
        )
    cards = [str(card) for card in record_costs(models, result)]
    if as_json:
        emit_json(summary_json(result) | {"cards": cards})
        return
    from rich.text import Text

    from headcount.report.terminal.tables import evaluation_tables

    show(*evaluation_tables(result), *(Text(f"Written into {card}") for card in cards))


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of audits, plans and an evaluation, in any order, or one that holds them."),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The page; report.html beside the last folder.")] = None,
    as_json: Json = False,
) -> None:
    """Show runs as one self-contained page: ranks, spectra, Pareto curve, comparison, samples."""
    from headcount.core.store import run_kind
    from headcount.report.collect import made_by
    from headcount.report.folders import from_folders
    from headcount.report.page.document import write_report

    made = made_by([["headcount", *sys.argv[1:]]])
    view = from_folders(folders, made=made)
    parent = folders[-1] if run_kind(folders[-1]) is None else folders[-1].parent
    page = write_report(out or parent / "report.html", view)
    if as_json:
        models = [model.name for model in view.evaluation.models] if view.evaluation else []
        emit_json({"report": str(page), "plans": [plan.name for plan in view.plans], "models": models})
        return
    from headcount.report.terminal.tables import run_summary

    show(*run_summary(view))
    show(f"Report: {page}")


def demo(
    model: Annotated[str, typer.Option("--model", help="A folder, a hub name, a .gguf file, or 'demo'.")] = "demo",
    cache: Annotated[float, typer.Option("--cache", help="Share of the dense cache to keep, in (0, 1].")] = 0.5,
    form: Form = DEFAULT_FORM,
    allocator: Allocator = "greedy",
    metric: Metric = "fisher",
    repair: Annotated[bool, typer.Option("--repair/--no-repair", help="Refit the output matrices.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Less text: a first look in under five minutes.")] = False,
    decode: Annotated[str | None, typer.Option("--decode", help="BATCHxCONTEXT to time decoding at.")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Audit, plan, trim and evaluate a model in one go, and write report.html."""
    from dataclasses import replace

    from headcount.pipeline import QUICK, DemoSize
    from headcount.pipeline import demo as run

    size = QUICK if quick else DemoSize()
    if decode is not None:
        size = replace(size, decode=decode)
    loaded = opened(model, "auto", device, allow_pickle=False, trust_remote_code=False)
    with progress_bars() as progress:
        result = run(
            loaded,
            out or RUNS / (default_out(model, "").name + ("-quick" if quick else "")),
            cache=cache,
            form=form,
            allocator=allocator,
            metric=metric,
            repair=repair,
            size=size,
            seed=seed,
            overwrite=overwrite,
            command=shlex.split(shlex.join(["headcount", *sys.argv[1:]])),
            progress=progress,
        )
    if as_json:
        emit_json(result.to_json())
        return
    from headcount.report.terminal.tables import run_summary

    show(*run_summary(result.view))
    show(f"Model:  {result.model}", f"Report: {result.report}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (evaluate, report, demo):
        app.command()(command)
