"""``headcount plan --scratch`` and ``headcount build``: planning a new model under budgets and creating it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headcount.cli.common import Json, Out, Overwrite, Seed, emit_json, offered, show
from headcount.core.errors import HeadcountError

Scratch = Annotated[str | None, typer.Option("--scratch", help="Shape a new model of this family: llama.")]
Layers = Annotated[int | None, typer.Option("--layers", help="Of the new model.")]
Hidden = Annotated[int | None, typer.Option("--hidden", help="Width of the new model's residual stream.")]
Context = Annotated[int | None, typer.Option("--context", help="Tokens that the new model is made for.")]
Params = Annotated[float | None, typer.Option("--params", help="Budget of the whole new model: at most, within 3%.")]
CacheBytes = Annotated[float | None, typer.Option("--cache-bytes", help="Budget of its cache, a token, in float32.")]
Flops = Annotated[
    float | None, typer.Option("--flops", help="Budget of its attention, a decoding step at the full context.")
]
Vocab = Annotated[int | None, typer.Option("--vocab", help="Tokens of its vocabulary: 2048.")]
Scheme = Annotated[
    Any,
    typer.Option(
        "--scheme",
        parser=str,
        metavar="SCHEME",
        autocompletion=offered("planned", "uniform", "openelm"),
        help="planned, or a baseline: uniform, openelm.",
    ),
]
From = Annotated[Path | None, typer.Option("--from", help="Shape it by this audit instead of by rules.")]
HeadDim = Annotated[int | None, typer.Option("--head-dim", help="Head dimension of the uniform layer it starts from.")]
Group = Annotated[int | None, typer.Option("--group", help="Query heads of a key-value head.")]

OF_AUDITS = {"cache": "--cache", "form": "--form", "allocator": "--allocator", "multiple": "--multiple"}
OF_SCRATCH = {
    "layers": "--layers", "hidden": "--hidden", "tokens": "--context", "params": "--params",
    "cache_bytes": "--cache-bytes", "flops": "--flops", "vocab": "--vocab", "scheme": "--scheme", "source": "--from",
    "head_dim": "--head-dim", "group": "--group",
}  # fmt: skip
"""Options of ``plan`` that apply to only one of its two modes, by parameter."""


def check_plan_options(passed: set[str]) -> None:
    """Reject incompatible options. ``passed``: names of the parameters set on the command line."""
    if "scratch" in passed:
        if "folder" in passed:
            raise HeadcountError("an audit folder and --scratch are two plans", fix="leave one out, or use --from")
        wrong = [option for name, option in OF_AUDITS.items() if name in passed]
        if wrong:
            raise HeadcountError(f"{wrong[0]} belongs to the plan of an audit", fix="leave it out with --scratch")
        missing = [OF_SCRATCH[name] for name in ("layers", "hidden", "tokens") if name not in passed]
        if missing:
            raise HeadcountError(f"--scratch needs {', '.join(missing)}", fix="see headcount plan --help")
        return
    if "folder" not in passed:
        raise HeadcountError("there is nothing to plan", fix="give the folder of an audit, or --scratch llama")
    wrong = [option for name, option in OF_SCRATCH.items() if name in passed]
    if wrong:
        raise HeadcountError(f"{wrong[0]} belongs to a new model", fix="add --scratch llama, or leave it out")


def run_plan(family: str, options: dict[str, Any], as_json: bool) -> None:
    """``headcount plan --scratch``."""
    from headcount.shapes.planned import FAMILIES, plan_scratch, summary_json

    if family not in FAMILIES:
        raise HeadcountError(f"no new model of family {family!r} is known", fix=f"use {', '.join(FAMILIES)}")
    made = plan_scratch(**{name: value for name, value in options.items() if value is not None})
    if as_json:
        emit_json(summary_json(made))
        return
    from rich.table import Table

    from headcount.shapes.rules import rules_of

    record = made.record
    table = Table("layer", "heads", "KV heads", "qk dim", "v dim", "MLP", "reason", title=f"{record.scheme} model")
    for index, layer in enumerate(record.model.layers):
        sizes = (layer.n_heads, layer.n_kv_heads, layer.qk_dim, layer.v_dim, layer.intermediate_size)
        table.add_row(str(index), *map(str, sizes), layer.reason)
    show(table)
    show(*(f"{name}: {rule}" for name, rule in rules_of(record.scheme, record.audit is not None).items()))
    show(
        f"{record.params:,} parameters, {record.cache_bytes_per_token:,} cache bytes a token ({record.cache_dtype}), "
        f"{record.attention_flops_per_token:,} attention FLOPs a token at {record.model.context:,} tokens"
    )
    if made.folder is not None:
        show(f"written to {made.folder}; headcount build {made.folder} makes the model")


def build(
    folder: Annotated[Path, typer.Argument(metavar="PLAN", help="The folder of plan --scratch.")],
    out: Out = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a planned new model with random weights: a checkpoint that transformers loads and any trainer trains."""
    from headcount.core.store import open_run_folder
    from headcount.pretrained.families import read_spec
    from headcount.shapes.decoder import build_decoder, save_decoder
    from headcount.shapes.planned import ScratchPlan

    plan = ScratchPlan.open(folder)
    spec = plan.record.model
    place = out or folder.parent / f"{folder.name}-model"
    open_run_folder(place, "build", {"model": spec.model_dump(mode="json"), "seed": seed}, overwrite)
    model = build_decoder(spec, seed)
    assert read_spec(model) == spec.attention and model.num_parameters() == spec.params
    save_decoder(model, place)
    if as_json:
        emit_json(
            {
                "folder": str(place),
                "params": spec.params,
                "cache_bytes_per_token": spec.cache_bytes_per_token(plan.record.cache_dtype),
                "seed": seed,
            }
        )
        return
    show(f"{place}: {spec.params:,} parameters, random weights of seed {seed}")


def register(app: typer.Typer) -> None:
    """Add the command; ``plan`` itself is in ``model``."""
    app.command()(build)
