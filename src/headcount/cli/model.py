"""``audit``, ``plan``, ``trim``: the steps from a pretrained model to a smaller one with latents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headcount.cli import scratch as scratch_options
from headcount.cli.common import Json, Out, Overwrite, Seed, emit_json, offered, progress_bars, show
from headcount.core.forms import DEFAULT_FORM, forms_help, trimmed_names

Source = Annotated[str, typer.Argument(help="A folder, a hub name (owner/name), a .gguf file, or 'demo'.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ... or auto.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="How weights are held: auto (as stored), float32, bfloat16, float16.")
]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickle checkpoints, which can run code.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
MatmulDtype = Annotated[
    str, typer.Option("--matmul-dtype", help="Matrix products: auto (bfloat16 where native), model, bfloat16.")
]
Metric = Annotated[
    Any,
    typer.Option(
        "--metric",
        parser=str,
        metavar="METRIC",
        autocompletion=offered("fisher", "output", "whitened"),
        help="fisher, output (no backward pass) or whitened.",
    ),
]
Form = Annotated[
    Any,
    typer.Option(
        "--form",
        parser=str,
        metavar="FORM",
        autocompletion=offered(*trimmed_names()),
        help=forms_help(),
    ),
]
Allocator = Annotated[
    Any,
    typer.Option(
        "--allocator",
        parser=str,
        metavar="NAME",
        autocompletion=offered("greedy", "uniform", "per-head"),
        help="greedy, uniform or per-head.",
    ),
]
RUNS = Path("headcount-runs")
"""Default parent of run folders without --out."""


def opened(source: str, dtype: str, device: str, allow_pickle: bool, trust_remote_code: bool) -> Any:
    """Open a model with the options of a command."""
    from headcount.pretrained.opening.loading import open_model, resolve_device

    return open_model(
        source,
        dtype=dtype,
        device=resolve_device(device),
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )


def default_out(source: str, verb: str) -> Path:
    """``headcount-runs/NAME/VERB``."""
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in Path(source).name.removesuffix(".gguf")) or "model"
    return RUNS / name / verb


def audit(
    source: Source,
    metric: Metric = "fisher",
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            help="Tokens that statistics are gathered on: 36,864; with --saturation 8,192 at each context; "
            "with --selection two windows.",
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", help="Tokens of a window: 512; with --selection 256.")
    ] = None,
    saturation: Annotated[
        bool, typer.Option("--saturation", help="Measure instead at which rank of queries and keys heads saturate.")
    ] = False,
    contexts: Annotated[
        str | None, typer.Option("--contexts", help="Of --saturation, ascending: 128,256,512,1024,2048.")
    ] = None,
    selection: Annotated[
        bool, typer.Option("--selection", help="Measure instead how many keys one query can single out.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="With --saturation, a folder for its figure (SVG, PNG) and CSV too.")
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="UTF-8 files instead of the built-in kinds.")
    ] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    matmul_dtype: MatmulDtype = "auto",
    device: Device = "auto",
    allow_pickle: Pickle = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure what a model's attention uses, per layer, side and head."""
    from headcount.cli.saturation import check_options, run_saturation, run_selection
    from headcount.trimming.audit.record import summary_json
    from headcount.trimming.audit.run import audit as measure

    lengths = check_options(saturation, contexts, selection, context, figure)
    model = opened(source, dtype, device, allow_pickle, trust_remote_code)
    if saturation or selection:
        place = out or default_out(source, "saturation" if saturation else "selection")
        shared = (place, text or (), tokens, seed, matmul_dtype, overwrite, as_json)
        if saturation:
            run_saturation(model, lengths, *shared, figure)
        else:
            run_selection(model, context or 256, *shared)
        return
    with progress_bars() as progress:
        result = measure(
            model,
            36_864 if tokens is None else tokens,
            metric=metric,
            context=512 if context is None else context,
            texts=text or (),
            out=out or default_out(source, f"audit-{metric}"),
            overwrite=overwrite,
            seed=seed,
            matmul_dtype=matmul_dtype,
            progress=progress,
        )
    if as_json:
        emit_json(summary_json(result))
        return
    from headcount.report.terminal.tables import audit_tables

    show(*audit_tables(result))


def plan(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(help="The folder of an audit; none with --scratch.")] = None,
    cache: Annotated[float, typer.Option("--cache", help="Share of the dense cache to keep, in (0, 1].")] = 0.5,
    form: Form = DEFAULT_FORM,
    allocator: Allocator = "greedy",
    multiple: Annotated[int, typer.Option("--multiple", help="Ranks are multiples of this.")] = 4,
    scratch: scratch_options.Scratch = None,
    layers: scratch_options.Layers = None,
    hidden: scratch_options.Hidden = None,
    tokens: scratch_options.Context = None,
    params: scratch_options.Params = None,
    cache_bytes: scratch_options.CacheBytes = None,
    flops: scratch_options.Flops = None,
    vocab: scratch_options.Vocab = None,
    scheme: scratch_options.Scheme = None,
    source: scratch_options.From = None,
    head_dim: scratch_options.HeadDim = None,
    group: scratch_options.Group = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Split a cache budget over layers and sides, from the evidence of an audit; or shape a new model (--scratch)."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    passed = {name for name, origin in sources.items() if origin is not None and origin.name == "COMMANDLINE"}
    scratch_options.check_plan_options(passed)
    if scratch is not None:
        scratch_options.run_plan(
            scratch,
            {
                "layers": layers, "hidden": hidden, "context": tokens, "params": params, "cache_bytes": cache_bytes,
                "flops": flops, "vocab": vocab, "scheme": scheme, "audit": source, "head_dim": head_dim,
                "group": group, "out": out, "overwrite": overwrite,
            },
            as_json,
        )  # fmt: skip
        return
    from headcount.trimming.audit.record import Audit
    from headcount.trimming.plan.make import plan as make
    from headcount.trimming.plan.make import summary_json

    assert folder is not None, "check_plan_options asks for it"
    evidence = Audit.open(folder)
    place = out or folder.parent / f"plan-{form}-{allocator}-{cache:g}"
    made = make(
        evidence,
        cache=cache,
        form=form,
        allocator=allocator,
        multiple=multiple,
        out=place,
        overwrite=overwrite,
    )
    if as_json:
        emit_json(summary_json(made))
        return
    from headcount.report.terminal.tables import plan_tables

    show(*plan_tables(made))


def trim(
    source: Source,
    folder: Annotated[Path, typer.Argument(metavar="PLAN", help="The folder of a plan.")],
    out: Out = None,
    repair: Annotated[bool, typer.Option("--repair/--no-repair", help="Refit the output matrices.")] = True,
    ridge: Annotated[float, typer.Option("--ridge", help="Pull of the repair toward the unrepaired matrices.")] = 1e-2,
    audit: Annotated[Path | None, typer.Option("--audit", help="Where the plan's audit is, if it was moved.")] = None,
    overwrite: Overwrite = False,
    dtype: Dtype = "auto",
    matmul_dtype: MatmulDtype = "auto",
    device: Device = "auto",
    allow_pickle: Pickle = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Make the smaller model: a checkpoint folder with its model card and the source's licence files.

    It loads with transformers 5 (AutoModelForCausalLM.from_pretrained) in two ways: after "import headcount", or
    without headcount by trust_remote_code=True, which runs the .py files of the folder; pass it to AutoTokenizer, too.
    Other programs with model code of their own (vLLM, llama.cpp) do not load it.
    """
    from headcount.trimming.plan.make import Plan
    from headcount.trimming.trim.record import TrimRecord
    from headcount.trimming.trim.run import trim as run

    made = Plan.open(folder, audit)
    model = opened(source, dtype, device, allow_pickle, trust_remote_code)
    place = out or folder.parent / f"{folder.name.replace('plan', 'model', 1)}"
    with progress_bars() as progress:
        run(
            model,
            made,
            repair_output=repair,
            ridge=ridge,
            matmul_dtype=matmul_dtype,
            out=place,
            overwrite=overwrite,
            progress=progress,
        )
    record = TrimRecord.open(place)
    if as_json:
        emit_json(record.model_dump() | {"folder": str(place)})
        return
    ratio, params = record.cache_ratio, record.attention_parameters / record.attention_parameters_dense
    show(f"{place}: cache {ratio:.3f} of the dense model's, attention parameters {params:.3f} of them.")
    show(*record.notes)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (audit, plan, trim):
        app.command()(command)
