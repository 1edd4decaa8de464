"""``headcount task``: list the tasks, sample them, solve given inputs exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcount.cli.common import Json, Seed, emit_json, named_table, show
from headcount.core.errors import HeadcountError

if TYPE_CHECKING:
    from headcount.tasks import Batch, Task

Name = Annotated[str, typer.Argument(help="A name of `task list`.")]
Tokens = Annotated[int | None, typer.Option("--tokens", help="N: tokens of a sequence.")]
Sparsity = Annotated[int | None, typer.Option("--sparsity", help="q: tokens that are averaged.")]
Dim = Annotated[int | None, typer.Option("--dim", help="d': dimension of the averaged vectors.")]
Modulus = Annotated[int | None, typer.Option("--modulus", help="M: residues are taken mod M.")]
Order = Annotated[int | None, typer.Option("--order", help="s: how many residues are summed.")]
Window = Annotated[int | None, typer.Option("--window", help="K: how far the other tokens may be.")]
Symbols = Annotated[int | None, typer.Option("--symbols", help="Number of input symbols.")]
Hops = Annotated[int | None, typer.Option("--hops", help="k: how often an induction head is followed.")]
Distinct = Annotated[bool | None, typer.Option("--distinct/--repeats", help="Whether indices of a tuple must differ.")]
Nonlinear = Annotated[bool | None, typer.Option("--nonlinear/--linear", help="ngram: tanh of the sum, or the sum.")]
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


@task.command("sample")
def sample(
    name: Name,
    tokens: Tokens = None,
    sparsity: Sparsity = None,
    dim: Dim = None,
    modulus: Modulus = None,
    order: Order = None,
    window: Window = None,
    symbols: Symbols = None,
    hops: Hops = None,
    distinct: Distinct = None,
    nonlinear: Nonlinear = None,
    count: Annotated[int, typer.Option("--count", help="How many sequences.")] = 1,
    kind: Kind = "uniform",
    seed: Seed = 0,
    save: Annotated[Path | None, typer.Option("--save", help="Write the sequences to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Draw sequences with their exact answers; the saved file is what `task solve --input` reads."""
    from headcount.core import store

    chosen = _task(
        name,
        tokens=tokens,
        sparsity=sparsity,
        dim=dim,
        modulus=modulus,
        order=order,
        window=window,
        symbols=symbols,
        hops=hops,
        distinct=distinct,
        nonlinear=nonlinear,
    )
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
    if save is not None:
        store.write_text(save, json.dumps(answer) + "\n")
    if as_json:
        emit_json(answer)
        return
    sizes = ", ".join(f"{key} {value}" for key, value in chosen.parameters().items())
    share = f"{answer['positive_share']:.1%}"
    show(f"{name} ({sizes}), {kind}, {count} sequences; {share} of the tokens positive")
    _show_first(batch)
    if save is not None:
        show(f"written to {save}")


@task.command("solve")
def solve(
    name: Name,
    source: Annotated[
        str, typer.Option("--input", help="JSON, JSON Lines, .npy or a text of integers; - reads standard input.")
    ],
    modulus: Modulus = None,
    order: Order = None,
    window: Window = None,
    symbols: Symbols = None,
    hops: Hops = None,
    distinct: Distinct = None,
    nonlinear: Nonlinear = None,
    as_json: Json = False,
) -> None:
    """The exact answers for given inputs. Their length, sparsity and dimension are read off them.

    Symbols: a list of integers (one sequence) or of such lists. JSON Lines and text: each line is a sequence.
    qSA: a JSON object with z and y, or one on each line. The file of `task sample --save` brings its sizes along.
    """
    from headcount import tasks
    from headcount.cli.inputs import read_inputs, sizes_of

    inputs, sizes = read_inputs(source)
    tasks.task_class(name).check_names(inputs)
    given = {
        "modulus": modulus,
        "order": order,
        "window": window,
        "symbols": symbols,
        "hops": hops,
        "distinct": distinct,
        "nonlinear": nonlinear,
    }
    sizes |= {key: value for key, value in given.items() if value is not None}
    sizes |= sizes_of(inputs)
    chosen = _task(name, **sizes)
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


def _task(name: str, **sizes: Any) -> Task:
    from headcount import tasks

    return tasks.get(name, **{key: value for key, value in sizes.items() if value is not None})


def _show_first(batch: Batch) -> None:
    """The first sequence, shortened."""
    for key, array in batch.inputs.items():
        show(f"{key}[0] = {_short(array[0])}")
    show(f"answers[0] = {_short(batch.targets[0])}")


def _short(array: Any) -> str:
    import numpy as np

    return np.array2string(array, threshold=64, edgeitems=4, precision=4, max_line_width=100)
