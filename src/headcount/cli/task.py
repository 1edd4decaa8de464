"""``headcount task``: list the tasks, sample them, solve given inputs exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcount.cli.common import Json, Seed, emit_json, named_table, show
from headcount.cli.options import command
from headcount.core.errors import HeadcountError

if TYPE_CHECKING:
    from headcount.core.options import Option
    from headcount.tasks import Batch

Name = Annotated[str, typer.Argument(help="A name of `task list`.")]
Kind = Annotated[Literal["uniform", "balanced", "adversarial"], typer.Option("--kind", help="How sequences are drawn.")]

task = typer.Typer(no_args_is_help=True, help="Synthetic tasks with exact answers.")


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(task, name="task")


@task.command("list")
def list_tasks(as_json: Json = False) -> None:
    """Every task, its sizes with their defaults, and what it asks."""
    from headcount import tasks

    known = [tasks.get(name) for name in tasks.names()]
    if as_json:
        rows = [{"name": t.name, "answer": t.answer, "summary": t.summary, "sizes": t.parameters()} for t in known]
        emit_json({"tasks": rows})
        return
    table = named_table("task", "answer", "asked at token i", "sizes")
    for t in known:
        sizes = ", ".join(f"{name} {value}" for name, value in t.parameters().items())
        table.add_row(t.name, t.answer, t.summary, sizes)
    show(table)


def all_sizes() -> tuple[Option, ...]:
    """All sizes declared by any task."""
    from headcount import tasks

    return tasks.declared_sizes()


def _hidden_sizes() -> list[Option]:
    """Sizes that cannot be inferred from the inputs."""
    return [size for size in all_sizes() if not size.axes]


@command(task, "sample", {"name": all_sizes}, renamed={"--save": "--out"})
def sample(
    name: Name,
    count: Annotated[int, typer.Option("--count", help="How many sequences.")] = 1,
    kind: Kind = "uniform",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Write the sequences to this file.")] = None,
    as_json: Json = False,
    **sizes: Any,
) -> None:
    """Draw sequences with their exact answers; the saved file is what `task solve --input` reads."""
    from headcount import tasks
    from headcount.core import store

    chosen = tasks.get(name, **sizes)
    batch = chosen.sample(seed, count, kind)
    answer = {
        "task": name,
        "sizes": chosen.parameters(),
        "kind": kind,
        "seed": seed,
        "positive_share": float(chosen.positive(batch.targets).mean()),
        "inputs": {key: array.tolist() for key, array in batch.inputs.items()},
        "targets": batch.targets.tolist(),
    }
    if out is not None:
        store.write_text(out, json.dumps(answer) + "\n")
    if as_json:
        emit_json(answer)
        return
    shown = ", ".join(f"{key} {value}" for key, value in chosen.parameters().items())
    share = f"{answer['positive_share']:.1%}"
    show(f"{name} ({shown}), {kind}, {count} sequences; {share} of the tokens positive")
    _show_first(batch)
    if out is not None:
        show(f"written to {out}")


@command(task, "solve", {"source": _hidden_sizes})
def solve(
    name: Name,
    source: Annotated[
        str, typer.Option("--input", help="JSON, JSON Lines, .npy or a text of integers; - reads standard input.")
    ],
    as_json: Json = False,
    **size_options: Any,
) -> None:
    """The exact answers for given inputs. Their length, sparsity and dimension are read off them.

    Symbols: a list of integers (one sequence) or of such lists. JSON Lines and text: each line is a sequence.
    qSA: a JSON object with z and y, or one on each line. The file of `task sample --out` brings its sizes along.
    """
    from headcount import tasks
    from headcount.cli.inputs import read_inputs, sizes_of
    from headcount.core.options import options_of

    inputs, sizes = read_inputs(source)
    tasks.task_class(name).check_names(inputs)
    sizes |= size_options
    sizes |= sizes_of(inputs, options_of(tasks.task_class(name)))
    chosen = tasks.get(name, **{key: value for key, value in sizes.items() if value is not None})
    if chosen.parameters().get("modulus", 1) != sizes.get("modulus", 1):
        raise HeadcountError(f"{name} needs the modulus of the residues", fix="give --modulus")
    batch = chosen.batch(**inputs)
    single = len(batch) == 1 and all(array.ndim < batch.inputs[key].ndim for key, array in inputs.items())
    targets = batch.targets[0] if single else batch.targets
    if as_json:
        key = "targets" if chosen.answer == "vector" else "labels"
        emit_json({"task": name, "sizes": chosen.parameters(), key: targets.tolist()})
        return
    positive = chosen.positive(batch.targets)
    show(f"{name}: {len(batch)} sequences of {chosen.tokens} tokens; {positive.mean():.1%} positive")
    _show_first(batch)


def _show_first(batch: Batch) -> None:
    """Show the first sequence, abbreviated."""
    for key, array in batch.inputs.items():
        show(f"{key}[0] = {_short(array[0])}")
    show(f"answers[0] = {_short(batch.targets[0])}")


def _short(array: Any) -> str:
    import numpy as np

    return np.array2string(array, threshold=64, edgeitems=4, precision=4, max_line_width=100)
