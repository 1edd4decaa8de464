"""``headcount operator``: the attention operators and their speed."""

from __future__ import annotations

from typing import Annotated

import typer

from headcount.cli.common import Json, Seed, emit_json, progress_bars, show


def register(app: typer.Typer) -> None:
    """Add ``headcount operator``."""
    group = typer.Typer(no_args_is_help=True, help="Attention operators beyond pairs: what there is, and its speed.")
    group.command("list")(list_operators)
    group.command("bench")(bench)
    app.add_typer(group, name="operator")


def list_operators(as_json: Json = False) -> None:
    """The operators, and whether their compiled kernels work on this machine."""
    from rich.table import Table

    from headcount.attention.bench.problem import OPERATORS
    from headcount.attention.kernels import build

    path = "compiled" if build.library() is not None else "torch"
    paths = {"third_order": path, "strassen": path}
    if path == "compiled":
        paths["pairwise"] = "torch; compiled for few queries"
    rows = [
        {"name": name, "summary": entry.summary, "path": paths.get(name, "torch")} for name, entry in OPERATORS.items()
    ]
    kernels = {
        "path": path,
        "description": build.build().description if path == "compiled" else "",
        "reason": "" if path == "compiled" else _why_not(),
    }
    if as_json:
        emit_json({"operators": rows, "kernels": kernels})
        return
    table = Table("operator", "what it computes", "path")
    for row in rows:
        table.add_row(row["name"], row["summary"], row["path"])
    show(table, f"kernels: {path} ({kernels['description'] or kernels['reason']})")


def _why_not() -> str:
    from headcount.attention.kernels import build

    return "asked for by HEADCOUNT_KERNELS" if build.path() == "torch" else build.build().reason


def bench(
    name: Annotated[str, typer.Argument(help="An operator of `headcount operator list`.")],
    tokens: Annotated[int, typer.Option(help="Sequence length N.")] = 512,
    dim: Annotated[int, typer.Option(help="Dimension of queries, keys and values.")] = 64,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 1,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 1,
    dtype: Annotated[str, typer.Option(help="float64, float32 or bfloat16.")] = "float32",
    backward: Annotated[bool, typer.Option("--backward", help="Forward and backward together.")] = False,
    causal: Annotated[bool, typer.Option("--causal", help="Positions up to the query's own.")] = False,
    window: Annotated[str | None, typer.Option(help="Window lengths, as 512x32; implies --causal.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; PyTorch's choice by default.")] = None,
    path: Annotated[str, typer.Option(help="auto, torch or compiled.")] = "auto",
    seconds: Annotated[float, typer.Option(help="How long to go on repeating each timing.")] = 5.0,
    memory: Annotated[bool, typer.Option(help="Measure memory, in a process of its own.")] = True,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Time, speed, memory and error of one operator, beside a large matrix product and the naive einsum."""
    from rich.table import Table

    from headcount.attention.bench.measure import measure
    from headcount.attention.bench.problem import Problem
    from headcount.attention.kernels import build

    problem = Problem(
        name.replace("-", "_"), tokens, dim, heads, batch, dtype, backward, causal, _lengths(window), seed
    )
    with build.use(build.path() if path == "auto" else path), progress_bars() as progress:
        results = measure(problem, threads=threads, seconds=seconds, memory=memory, progress=progress)
    if as_json:
        emit_json(results)
        return
    table = Table("", "", show_header=False)
    for key, value in results.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    show(table)


def _lengths(window: str | None) -> tuple[int, ...] | None:
    from headcount.core.errors import HeadcountError

    if window is None:
        return None
    try:
        return tuple(int(part) for part in window.split("x"))
    except ValueError as error:
        raise HeadcountError(
            f"window {window} is no list of lengths", fix="write lengths with x between them, as 512x32"
        ) from error
