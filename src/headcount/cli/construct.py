"""``headcount construct``: explicit weights, verified in exact or simulated arithmetic, and their figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcount.cli.common import Json, Out, Seed, emit_json, named_table, progress_bars, show
from headcount.cli.options import command, declared
from headcount.core.errors import CheckFailedError, HeadcountError
from headcount.tasks.sizes import DIM, MODULUS, ORDER, SPARSITY, TOKENS, WINDOW

if TYPE_CHECKING:
    from headcount.constructions import Construction, Verification

NAMES = ("qsa-certificate", "qsa-polytope", "match2", "match-s", "match3-bigram", "match3-local")
"""The constructions; a test compares this list with ``headcount.constructions.names()``."""
SIZES = (TOKENS, SPARSITY, DIM, MODULUS, ORDER, WINDOW)
"""Their sizes; the same test compares these with the options of the constructions."""

Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fp64, fp32, tf32, bf16, fp16, e4m3, e5m2, fixed:p, float:p; qsa-polytope: wide:p.",
    ),
]
Accumulate = Annotated[
    Literal["each", "once"],
    typer.Option("--accumulate", help="Round every addition of an inner product, or its result once."),
]
Count = Annotated[int, typer.Option("--count", help="Sequences to verify on.")]
Verified = Annotated[
    Literal["uniform", "balanced", "adversarial", "mixed"],
    typer.Option("--kind", help="How they are drawn; mixed: a third of each."),
]
Epsilon = Annotated[float | None, typer.Option("--epsilon", help="Largest error; 1e-3 unless given.")]
Guarantee = Annotated[
    Literal["given", "all"] | None,
    typer.Option("--guarantee", help="qsa-certificate: check the given sets, or cover all of them."),
]
KeyDim = Annotated[
    int | None, typer.Option("--key-dim", help="qsa-certificate: dimensions of the keys; else searched.")
]
Weights = Annotated[Path | None, typer.Option("--out", help="Write safetensors and JSON to this folder.")]

construct = typer.Typer(no_args_is_help=True, help="Explicit weights that solve the tasks, verified.")


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(construct, name="construct")


def _command(name: str) -> None:
    @command(
        construct,
        name,
        {"": lambda: SIZES},
        help=f"Build {name}, verify it, and report its certificate.",
        renamed={"--save": "--out"},
    )
    def build_and_verify(
        epsilon: Epsilon = None,
        guarantee: Guarantee = None,
        key_dim: KeyDim = None,
        precision: Precision = "fp64",
        accumulate: Accumulate = "each",
        count: Count = 8,
        kind: Verified = "mixed",
        seed: Seed = 0,
        out: Weights = None,
        as_json: Json = False,
        **sizes: int,
    ) -> None:
        from headcount import constructions

        options: dict[str, Any] = {
            **sizes,
            "epsilon": epsilon,
            "key_dim": key_dim,
            "guarantee": {"given": "the subsets given", "all": "all inputs", None: None}[guarantee],
        }
        options = {key: value for key, value in options.items() if value is not None}
        if "seed" in constructions.options(name):
            options["seed"] = seed
        start = time.perf_counter()
        with progress_bars() as progress:
            if "progress" in constructions.options(name):
                options["progress"] = progress
            constructions.wide_bits(precision)  # refuse it before the work
            built = constructions.build(name, **options)
            _report(built, precision, accumulate, count, kind, seed, out, as_json, start, progress)


for _name in NAMES:
    _command(_name)


@construct.command("list")
def list_constructions(as_json: Json = False) -> None:
    """Every construction with its options and their defaults."""
    from headcount import constructions

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "options": {
                key: value for key, value in constructions.options(name).items() if key not in ("name", "progress")
            },
        }
        for name in constructions.names()
    ]
    if as_json:
        emit_json({"constructions": rows})
        return
    table = named_table("construction", "options")
    for row in rows:
        table.add_row(row["name"], ", ".join(f"{k} {v}" for k, v in row["options"].items()))
    show(table)


@construct.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="A folder that --out wrote.")],
    precision: Precision = "fp64",
    accumulate: Accumulate = "each",
    count: Count = 8,
    kind: Verified = "mixed",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Load saved weights and verify them again, in any precision."""
    from headcount import constructions

    start = time.perf_counter()
    constructions.wide_bits(precision)  # refuse it before the work
    with progress_bars() as progress:
        loaded = constructions.load(folder)
        _report(loaded, precision, accumulate, count, kind, seed, None, as_json, start, progress)


def _report(
    built: Construction,
    precision: str,
    accumulate: Literal["each", "once"],
    count: int,
    kind: str,
    seed: int,
    out: Path | None,
    as_json: bool,
    start: float,
    progress: Any,
) -> None:
    """Verify, save and print; exit 1 if an answer is wrong."""
    from headcount.bounds.gap import lower_bound

    verification = _verify(built, precision, accumulate, count, kind, seed, progress)
    if out is not None:
        built.save(out)
    certificate = built.certificate
    answer = {
        **certificate.model_dump(),
        "sizes": built.task.parameters(),
        "kind": kind,
        "count": count,
        "seed": seed,
        **verification.model_dump(),
        "lower_bound_embedding_dim": lower_bound(built, precision),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if as_json:
        emit_json(answer)
    else:
        _show(answer)
    if not verification.verified:
        where = verification.first_failure
        assert where is not None
        raise CheckFailedError(
            f"{certificate.name} does not verify in {precision}: {verification.wrong} of {verification.checked} "
            f"answers wrong, the first in sequence {where.sequence} (error {where.error:.3g} at token {where.token})",
            fix="use a higher --precision or a smaller size",
        )


def _verify(
    built: Construction,
    precision: str,
    accumulate: Literal["each", "once"],
    count: int,
    kind: str,
    seed: int,
    progress: Any,
) -> Verification:
    from headcount.constructions.verify import verify_kinds

    if count < 1:
        raise HeadcountError(f"count must be at least 1, not {count}", fix="verify on one sequence or more")
    return verify_kinds(built, kind, count, seed, precision, accumulate, progress)


def _show(answer: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for key, value in answer.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        table.add_row(key, f"{value:.6g}" if isinstance(value, float) else str(value))
    show(table)


@construct.command("cliff")
def cliff(
    out: Out = Path("results"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Figure: the fewest bits at which each construction verifies, against its size (about 2 minutes)."""
    from headcount.lab.figures import cliff as experiment

    with progress_bars() as progress:
        data = experiment.rows(seed=seed, progress=progress)
    _figure(experiment.FIGURE.write(data, out or Path("results")), data, as_json)


@construct.command("dimensions")
def dimensions(
    tokens: Annotated[int, declared(TOKENS)] = 1024,
    dim: Annotated[int, declared(DIM)] = 8,
    precision_bits: Annotated[int, typer.Option("--precision-bits", help="p of the bound qsa-bits.")] = 64,
    most: Annotated[int, typer.Option("--most", help="Largest sparsity q.")] = 16,
    out: Out = Path("results"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Figure: embedding dimensions of both qSA constructions and the lower bounds, for q = 1..16."""
    from headcount.lab.figures import dimensions as experiment

    if not 1 <= most <= tokens:
        raise HeadcountError(f"most {most} is outside [1, {tokens}]", fix="choose a sparsity of the tokens")
    with progress_bars() as progress:
        data = experiment.rows(tokens, dim, precision_bits, range(1, most + 1), seed=seed, progress=progress)
    _figure(experiment.FIGURE.write(data, out or Path("results")), data, as_json)


@command(construct, "scan", {"values": lambda: SIZES})
def scan(
    name: Annotated[str, typer.Argument(help="A name of `construct list`.")],
    over: Annotated[
        Literal["modulus", "tokens", "sparsity", "window", "bits"],
        typer.Option("--over", help="Which size varies; bits: the fewest at the size given."),
    ] = "modulus",
    precision: Precision | None = None,
    values: Annotated[str | None, typer.Option("--values", help="Sizes to try, as 31,101,401.")] = None,
    epsilon: Epsilon = None,
    count: Count = 8,
    seed: Seed = 0,
    as_json: Json = False,
    **size_options: int,
) -> None:
    """The cliff: the largest size that still verifies in one precision, or the fewest bits at one size."""
    options: dict[str, Any] = {**size_options, **({} if epsilon is None else {"epsilon": epsilon})}
    if over == "bits":
        if precision is not None or values is not None:
            raise HeadcountError("a scan over bits takes no --precision and no --values", fix="leave them out")
        _scan_bits(name, options, count, seed, as_json)
        return
    if precision is None or values is None:
        raise HeadcountError(f"a scan over {over} needs a precision and sizes", fix="give --precision and --values")
    try:
        sizes = [int(word) for word in values.split(",")]
    except ValueError:
        raise HeadcountError(f"values {values!r} are no integers", fix="write them as 31,101,401") from None
    _scan_sizes(name, precision, over, sizes, options, count, seed, as_json)


def _scan_bits(name: str, options: dict[str, Any], count: int, seed: int, as_json: bool) -> None:
    from headcount import constructions
    from headcount.lab.figures.cliff import STYLES, fewest_bits

    if "seed" in constructions.options(name):
        options["seed"] = seed
    built = constructions.build(name, **options)
    fewest = {style: fewest_bits(built, style, count, seed) for style in STYLES}
    sizes = built.task.parameters()
    sufficient = built.certificate.bits
    if as_json:
        emit_json({"name": name, "over": "bits", "sizes": sizes, "fewest": fewest, "sufficient": sufficient})
        return
    thresholds = ", ".join(f"{style}:{bits}" if bits else f"{style}: none up to 53" for style, bits in fewest.items())
    show(f"{name} verifies from {thresholds} on; {sufficient} significand bits suffice by analysis")


def _scan_sizes(
    name: str,
    precision: str,
    over: str,
    sizes: list[int],
    options: dict[str, Any],
    count: int,
    seed: int,
    as_json: bool,
) -> None:
    from rich.table import Table

    from headcount.lab.figures.cliff import largest

    rows = largest(name, precision, over, sizes, options, count, seed)
    good = [row["size"] for row in rows if row["verified"]]
    bad = [row["size"] for row in rows if not row["verified"]]
    below = [size for size in good if not bad or size < min(bad)]
    answer = {
        "name": name,
        "precision": precision,
        "over": over,
        "scan": rows,
        "largest_verified": max(below, default=None),
    }
    if as_json:
        emit_json(answer)
        return
    table = Table(over, "checked", "wrong", "verified")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("size", "checked", "wrong", "verified")))
    show(table, f"verified up to {over} = {answer['largest_verified']}")


def _figure(paths: dict[str, Path], data: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        emit_json({"rows": data, **{suffix: str(path) for suffix, path in paths.items()}})
        return
    show(*(f"wrote {path}" for path in paths.values()))
