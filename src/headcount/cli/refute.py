"""``headcount refute``: find, save and replay witnesses against models that are too small."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headcount.cli.common import Json, Out, Overwrite, Seed, emit_json, show
from headcount.cli.options import declared
from headcount.tasks.sizes import DIM, HEADS, MODULUS, PRECISION_BITS, SPARSITY, TOKENS, VALUE_WIDTH

if TYPE_CHECKING:
    from headcount.refutation.witness import Witness

WITNESS_FILE = "witness.safetensors"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("refute")(refute)


def refute(
    model: Annotated[str | None, typer.Argument(help="mlp, rnn, or attention (a p-bit layer).")] = None,
    replay: Annotated[Path | None, typer.Option("--replay", help="Run a saved witness again.")] = None,
    task: Annotated[str, typer.Option("--task", help="qsa, or match3 for attention.")] = "qsa",
    tokens: Annotated[int, declared(TOKENS)] = 64,
    sparsity: Annotated[int, declared(SPARSITY)] = 1,
    dim: Annotated[int, declared(DIM)] = 8,
    modulus: Annotated[int | None, declared(MODULUS, "By default N + 1.")] = None,
    width: Annotated[
        int | None,
        typer.Option("--width", help="Units of the mlp's layers, or of the rnn; m of attention (embedding width)."),
    ] = None,
    value_width: Annotated[
        int | None, declared(VALUE_WIDTH, "Of attention on match3, the size bounded there; by default --width.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="Rank of the mlp's first layer, the size bounded there; by default full."),
    ] = None,
    depth: Annotated[int, typer.Option("--depth", help="Hidden layers of the mlp.")] = 1,
    activation: Annotated[str, typer.Option("--activation", help="Of the mlp: ReLU, Tanh, GELU, ...")] = "ReLU",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="An mlp of your own: safetensors of an nn.Sequential.")
    ] = None,
    cell: Annotated[str, typer.Option("--cell", help="Of the rnn: rnn or gru.")] = "rnn",
    precision_bits: Annotated[int, declared(PRECISION_BITS, "Of attention, or of a state entry of the rnn.")] = 8,
    heads: Annotated[int, declared(HEADS)] = 1,
    limit: Annotated[int | None, typer.Option("--limit", help="Candidates that the search keeps or tries.")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Look for two inputs on which a model that is too small cannot be right both times.

    A bound holds for models that meet its hypotheses. Where the model does not meet one (a residual path,
    say), the answer is that the bound does not apply, with the hypothesis.

    Without --weights the model has random weights from --seed. The witness is verified by running the model;
    with --out it is saved together with the model, and --replay runs it again (exit 1 if it no longer holds).
    """
    from headcount.core.errors import HeadcountError

    if replay is not None:
        if model is not None:
            raise HeadcountError("--replay takes the model from its file", fix=f"leave out {model}")
        _replay(replay, as_json)
        return
    if model not in ("mlp", "rnn", "attention"):
        named = "no model is named" if model is None else f"there is no model {model!r}"
        raise HeadcountError(named, fix="choose mlp, rnn or attention, or give --replay FILE")

    from headcount.core.store import digest, open_run_folder
    from headcount.refutation.dispatch import refute as look
    from headcount.refutation.samples import SampleSizes, sample_model

    sizes = SampleSizes(
        task=task,
        tokens=tokens,
        sparsity=sparsity,
        dim=dim,
        modulus=modulus,
        width=width,
        value_width=value_width,
        rank=rank,
        depth=depth,
        activation=activation,
        cell=cell,
        precision_bits=precision_bits,
        heads=heads,
    )
    chosen_task, chosen = sample_model(model, sizes, weights, seed)
    options: dict[str, Any] = {} if limit is None or model == "mlp" else {"limit": limit}
    answer = look(chosen, chosen_task, seed=seed, **options)
    saved = None
    if out is not None and answer.witness_found:
        from headcount.refutation.saved import save

        weights_digest = None if weights is None else digest(weights.read_bytes())
        inputs = {"model": model, **vars(sizes), "weights": weights_digest, "seed": seed, **options}
        saved = open_run_folder(out, "refute", inputs, overwrite) / WITNESS_FILE
        save(saved, answer, chosen)
    if as_json:
        emit_json({**answer.as_dict(), "saved": None if saved is None else str(saved)})
        return
    show(answer.reason)
    if answer.witness is not None:
        show(_distances(answer.witness))
    if saved is not None:
        show(f"replay it: headcount refute --replay {saved}")


def _replay(path: Path, as_json: bool) -> None:
    from headcount import bounds
    from headcount.refutation.saved import replay

    result = replay(path)
    record, witness = result.record, result.witness
    if as_json:
        emit_json(
            {
                "witness_found": True,
                "output_distance": witness.output_distance,
                "target_distance": witness.target_distance,
                "bound": record.bound,
                "status": bounds.get(record.bound).status,
                "needed": record.needed,
                "has": record.has,
                "unit": record.unit,
                "error_at_least": witness.error,
                "token": witness.token,
                "reason": record.reason,
                "recorded_output_distance": record.output_distance,
            }
        )
        return
    show(f"the witness holds: {record.reason}", _distances(witness))


def _distances(witness: Witness) -> str:
    return (
        f"outputs {witness.output_distance:.3g} apart, targets {witness.target_distance:.3g}: off by "
        f"{witness.error:.3g} or more on one of the two"
    )
