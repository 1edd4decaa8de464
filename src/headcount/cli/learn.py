"""``headcount learn``: train one model on one task; ``headcount figure``: the figures of the learning lab."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcount.cli.common import Json, Out, Overwrite, Seed, emit_json, progress_bars, show
from headcount.cli.options import command
from headcount.cli.task import all_sizes
from headcount.core.payload import JsonObject

if TYPE_CHECKING:
    from headcount.core.options import Option
    from headcount.lab.train.loop import Trained

HIGHER = ("third-order", "strassen")
"""Models compared with pairwise attention of equal parameter count."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(
        app,
        "learn",
        {"model": all_sizes, "parameters": _model_options},
        renamed={"--parameters": "--params"},
    )(learn)


def _model_options() -> tuple[Option, ...]:
    """All options declared by any model."""
    from headcount.lab import models

    return models.declared_options()


def learn(
    task: Annotated[str, typer.Argument(help="A name of `task list`.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="attention, third-order, strassen, lstm, gru, rnn, ssm, mlp (flattened), mlp-tokenwise (control).",
        ),
    ] = "attention",
    parameters: Annotated[int, typer.Option("--params", help="Scale the model to this many, within 5%.")] = 12_000,
    kind: Annotated[
        Literal["uniform", "balanced", "adversarial"] | None, typer.Option("--kind", help="Training sequences.")
    ] = None,
    answered: Annotated[
        Literal["all", "last"] | None, typer.Option("--answered", help="Tokens whose answers count.")
    ] = None,
    start_tokens: Annotated[
        int | None, typer.Option("--start-tokens", help="Curriculum: lengths double from here to --tokens.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Training steps.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Sequences of a step.")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Distinct training sequences; by default all are fresh.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="The highest.")] = None,
    target: Annotated[float | None, typer.Option("--target", help="Stop at this error or accuracy.")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Train one model on one task and say how well it does on fresh, balanced, adversarial and longer sequences.

    With --out the state is kept there while it runs, and the same command goes on after a kill; the curve is
    drawn there too. On matching tasks pairwise attention with as many parameters is trained beside other
    attention.
    """
    fields = {name: value for name, value in locals().items() if name not in ("out", "overwrite", "as_json", "options")}
    from headcount.core.extras import require
    from headcount.lab.figures import curve
    from headcount.lab.specs.run import RunSpec
    from headcount.lab.train.loop import train

    fields = {name: value for name, value in (fields | options).items() if value is not None}
    spec = RunSpec.checked(fields).check()
    if out is not None:
        require("matplotlib")
    with progress_bars() as progress:
        trained = train(spec, out, progress=progress, overwrite=overwrite)
        beside = None
        if model in HIGHER:
            other = spec.model_copy(update={"model": "attention"})
            beside = train(
                RunSpec.checked(other.inputs()), out and out / curve.BESIDE, progress=progress, overwrite=overwrite
            )
    if out is not None:
        curve.FIGURE.write(curve.learned([trained, *([beside] if beside else [])]), out)
    if as_json:
        emit_json(_answer(trained) | ({"beside": _answer(beside)} if beside else {}))
        return
    _tables([trained, *([beside] if beside else [])], out)


def _answer(trained: Trained) -> JsonObject:
    total = sum(trained.seconds.values())
    shares = {name: value / total for name, value in trained.seconds.items()}
    return trained.summary() | {"seconds": total, "shares_of_time": shares}


def _tables(runs: list[Trained], out: Path | None) -> None:
    from rich.table import Table

    first = runs[0]
    table = Table(
        "model",
        "parameters",
        "steps",
        "seconds",
        *first.scores,
        title=f"{first.spec.task_name}: {first.spec.score_name}",
    )
    for run in runs:
        cells = [_cell(entry, run.spec.score_name) for entry in run.scores.values()]
        answer = _answer(run)
        table.add_row(
            run.spec.model_name, f"{answer['parameters']:,}", f"{answer['steps']:,}", f"{answer['seconds']:.1f}", *cells
        )
    show(table)
    for run in runs:
        scores = [value for _, value in run.curve.scores]
        ends = f"{scores[0]:.4g} to {scores[-1]:.4g} over {len(run.curve.losses):,} steps"
        show(f"{run.spec.model_name:>14} {sparkline(scores)} {ends}")
    majority = first.scores["uniform"].get("majority_accuracy")
    if majority is not None:
        show(f"Always the most frequent answer: plain accuracy {majority:.3f}, balanced accuracy 1/classes.")
    for kind, entry in first.scores.items():
        if "reason" in entry:
            show(f"{kind}: {entry['reason']}")
    if out is not None:
        show(f"written to {out}")


def _cell(entry: dict[str, float | str], name: str) -> str:
    return f"{entry[name]:.4f}" if name in entry else "-"


def sparkline(values: list[float]) -> str:
    """A curve in one line of block characters, from the least to the largest value."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (value - low) / span))] for value in values)
