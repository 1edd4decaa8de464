"""``headcount bound``: lower bounds with their status, matching constructions, and protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcount.cli.common import Json, Seed, emit_json, named_table, progress_bars, show
from headcount.cli.options import declared
from headcount.tasks.sizes import (
    DIM,
    DOMAIN,
    HEADS,
    MODULUS,
    PRECISION_BITS,
    SPARSITY,
    TOKENS,
    VALUE_WIDTH,
    WIDTH,
)

if TYPE_CHECKING:
    from rich.table import Table

    from headcount.bounds import BoundValue, Sizes

Tokens = Annotated[int, declared(TOKENS)]
Sparsity = Annotated[int, declared(SPARSITY)]
Dim = Annotated[int, declared(DIM)]
Modulus = Annotated[int | None, declared(MODULUS)]
Bits = Annotated[int | None, declared(PRECISION_BITS)]
Heads = Annotated[int, declared(HEADS)]
Epsilon = Annotated[
    float | None, typer.Option("--epsilon", help="Error asked for; by default as small as each bound needs.")
]

bound = typer.Typer(no_args_is_help=True, help="Lower bounds: what is impossible below, what is built above.")


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(bound, name="bound")


@bound.command("list")
def list_bounds(as_json: Json = False) -> None:
    """Every bound: id, status, and how it grows; a number only where the constant is known."""
    from rich.markup import escape

    from headcount import bounds

    known = [bounds.get(id) for id in bounds.ids()]
    if as_json:
        fields = ("id", "task", "status", "constant", "source", "statement", "limits", "shape")
        rows = [{name: getattr(b, name) for name in fields} for b in known]
        emit_json({"bounds": [{**row, "hypotheses": list(b.hypotheses)} for row, b in zip(rows, known, strict=True)]})
        return
    table = named_table("id", "status", "constant", "at least", "limits")
    for b in known:
        table.add_row(b.id, b.status, b.constant, escape(b.shape), escape(b.limits))
    show(table)


@bound.command("show")
def show_bound(id: Annotated[str, typer.Argument(help="An id of `bound list`.")], as_json: Json = False) -> None:
    """One bound: statement, hypotheses, source, and why it holds."""
    from rich.text import Text

    from headcount import bounds

    b = bounds.get(id)
    fields: dict[str, Any] = {
        name: getattr(b, name)
        for name in ("id", "task", "status", "constant", "statement", "limits", "shape", "source", "argument")
    }
    if as_json:
        emit_json({**fields, "hypotheses": list(b.hypotheses)})
        return
    fields["hypotheses"] = "; ".join(b.hypotheses)
    argument = fields.pop("argument")
    show(*(Text(f"{name:<11} {value}") for name, value in fields.items()), Text(f"\n{argument}"))


@bound.command()
def qsa(
    tokens: Tokens,
    sparsity: Sparsity,
    dim: Dim = 8,
    precision_bits: Bits = None,
    modulus: Modulus = None,
    heads: Heads = 1,
    epsilon: Epsilon = None,
    build: Annotated[
        bool, typer.Option("--build", help="Also build the constructions of `headcount construct`; seconds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Sparse averaging: which embedding dimension is impossible below, and which is built above.

    With --modulus the bounds on Match3 with as many tokens are listed too.
    """
    from headcount.bounds import Sizes

    sizes = Sizes(
        tokens=tokens,
        sparsity=sparsity,
        dim=dim,
        precision_bits=precision_bits,
        modulus=modulus,
        heads=heads,
        epsilon=epsilon,
    )
    _answer("qsa", sizes, as_json, also=() if modulus is None else ("match3",), build=build)


@bound.command()
def match3(
    tokens: Tokens,
    modulus: Modulus = None,
    precision_bits: Bits = None,
    heads: Heads = 1,
    as_json: Json = False,
) -> None:
    """Triple matching by one layer of ordinary attention."""
    from headcount.bounds import Sizes

    modulus = tokens + 1 if modulus is None else modulus
    sizes = Sizes(tokens=tokens, modulus=modulus, precision_bits=precision_bits, heads=heads)
    _answer("match3", sizes, as_json)


@bound.command()
def induction(tokens: Tokens, precision_bits: Bits = None, heads: Heads = 1, as_json: Json = False) -> None:
    """Induction heads by one layer."""
    from headcount.bounds import Sizes

    sizes = Sizes(tokens=tokens, precision_bits=precision_bits, heads=heads)
    _answer("induction", sizes, as_json)


@bound.command()
def composition(
    domain: Annotated[int, declared(DOMAIN)],
    precision_bits: Bits = None,
    heads: Heads = 1,
    as_json: Json = False,
) -> None:
    """Function composition by one layer."""
    from headcount.bounds import Sizes

    sizes = Sizes(domain=domain, precision_bits=precision_bits, heads=heads)
    _answer("composition", sizes, as_json)


@bound.command("head")
def head(tokens: Tokens, as_json: Json = False) -> None:
    """Attention matrices that one head of small dimension cannot form."""
    from headcount.bounds import Sizes

    _answer("any", Sizes(tokens=tokens), as_json)


def _answer(task: str, sizes: Sizes, as_json: bool, also: tuple[str, ...] = (), build: bool = False) -> None:
    """Lower bounds and constructions of a task; ``also``: tasks whose bounds are listed too."""
    from headcount import bounds
    from headcount.bounds.gap import gap

    task_gap = gap(task, sizes, build)
    answers = [*task_gap.answers, *(b.evaluate(sizes) for name in also for b in bounds.of_task(name))]
    embedded, strictest, widest = task_gap.embedded, task_gap.hypotheses, task_gap.value_width
    if as_json:
        emit_json(
            {
                "task": task,
                **sizes.given(),
                "bounds": [a.as_dict() for a in answers],
                "impossible_below_embedding_dim": embedded and embedded.value,
                "impossible_below_under_hypotheses": strictest and strictest.value,
                "impossible_below_value_width": widest and widest.value,
                "built_embedding_dim": task_gap.built_embedding_dim,
                "built_value_width": task_gap.built_value_width,
                "built": [b.as_dict() for b in task_gap.built],
            }
        )
        return
    show(_table(answers))
    if embedded:
        network = f"anything that reads p-bit embeddings ({embedded.bound.id})"
        show(f"impossible below embedding dimension {embedded.value}: {network}")
    if strictest and strictest.bound.model != "embedded":
        show(f"impossible below embedding dimension {strictest.value} under the hypotheses of {strictest.bound.id}")
    if widest and widest.value:
        size = f"value width {widest.value} of a head, for any embedding dimension"
        show(f"impossible below {size}, under the hypotheses of {widest.bound.id}")
    p = sizes.precision_bits
    for b in task_gap.built:
        short = "" if p is None or b.needs_bits <= p else f", more than the {p} given"
        limits = f"{b.needs_bits} bits{short}; {b.arithmetic}; {b.guarantee}"
        width = "" if b.value_width is None else f", value width {b.value_width}"
        show(f"built at embedding dimension {b.embedding_dim}{width}: {b.id}, {limits}")


def _table(answers: list[BoundValue]) -> Table:
    from rich.markup import escape

    table = named_table("id", "status", "at least", "unit, or why there is no number")
    for answer in answers:
        value = "" if answer.value is None else f"{answer.value:,}"
        shape = f"{answer.why_not}; shape: {answer.bound.shape}" if answer.value is None else str(answer.unit)
        table.add_row(answer.bound.id, answer.bound.status, value, escape(shape))
    return table


@bound.command()
def protocol(
    task: Annotated[str, typer.Argument(help="match3 or qsa.")],
    tokens: Tokens = 65,
    width: Annotated[int, declared(WIDTH, "Of a random layer.")] = 4,
    value_width: Annotated[
        int | None, declared(VALUE_WIDTH, "Of a random layer for match3; by default --width.")
    ] = None,
    precision_bits: Annotated[int, declared(PRECISION_BITS)] = 8,
    heads: Heads = 1,
    sparsity: Annotated[int | None, declared(SPARSITY, "By default (N-1)/2.")] = None,
    modulus: Annotated[int | None, declared(MODULUS, "By default N + 1 or N + 2.")] = None,
    dim: Dim = 1,
    layer: Annotated[str, typer.Option("--layer", help="random, or solving: one that solves the task.")] = "random",
    count: Annotated[int, typer.Option("--count", help="Set-disjointness instances.")] = 20,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Simulate a p-bit attention layer by two parties, every bit counted, on set-disjointness instances.

    The output must equal the layer's own bit for bit (exit 1 if it ever does not); the count is shown
    beside the bits that disjointness needs.
    """
    from headcount.core.errors import HeadcountError
    from headcount.protocols.experiment import run_protocol

    if task not in ("match3", "qsa"):
        raise HeadcountError(f"there is no protocol for {task!r}", fix="choose match3 or qsa")
    if layer not in ("random", "solving"):
        raise HeadcountError(f"there is no layer {layer!r}", fix="choose random or solving")
    kind: Literal["random", "solving"] = "random" if layer == "random" else "solving"
    with progress_bars() as progress:
        result = run_protocol(
            task,
            tokens=tokens,
            width=width,
            value_width=value_width,
            precision_bits=precision_bits,
            heads=heads,
            sparsity=sparsity,
            modulus=modulus,
            dim=dim,
            layer=kind,
            count=count,
            seed=seed,
            progress=progress,
        )
    if as_json:
        emit_json(result.as_dict())
    else:
        show(*result.lines())
    if not result.holds:
        raise typer.Exit(1)
