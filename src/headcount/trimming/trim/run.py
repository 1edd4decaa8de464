"""Trimming a model: build, repair, and write a self-contained checkpoint."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.core.errors import CheckFailedError, HeadcountError
from headcount.core.progress import Progress, silent
from headcount.core.store import digest, open_run_folder, require_space, write_json
from headcount.pretrained.families import read_spec
from headcount.pretrained.opening.fingerprint import weights_fingerprint
from headcount.pretrained.opening.loading import OpenModel, open_model, quiet_transformers
from headcount.pretrained.opening.source import Source
from headcount.pretrained.runtimes.origin import Origin, write_origin
from headcount.trimming.audit.run import resolve_matmul_dtype
from headcount.trimming.plan.make import Plan
from headcount.trimming.trim.build import build, check_model
from headcount.trimming.trim.card import write_card
from headcount.trimming.trim.record import RECORD, TrimRecord
from headcount.trimming.trim.repair import RIDGE, repair

SHARD_BYTES = 2**31
"""Maximum size of a weights file of a checkpoint."""


def trim(
    model: OpenModel | PreTrainedModel,
    plan: Plan,
    *,
    tokens: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
    repair_output: bool = True,
    ridge: float = RIDGE,
    matmul_dtype: str = "auto",
    out: Path | str | None = None,
    overwrite: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    source: Source | None = None,
    progress: Progress = silent,
) -> PreTrainedModel:
    """Make a model whose attention caches latents of the planned ranks; ``headcount trim`` calls this.

    Parameters outside attention share memory with ``model``, which is not changed; copy it before training both.

    With ``out`` the model is also written there as a checkpoint: safetensors, config, generation config, tokenizer, the
    modeling files, ``trim.json``, a model card and the licence files of ``source``. transformers loads it with
    ``trust_remote_code=True``, or without it if headcount is installed and imported.

    Args:
        model: the dense model that the plan was made for, alone or as ``open_model`` returns it.
        plan: the ranks, and the audit with the directions.
        tokens: windows for the repair; ``None``: the calibration windows of the audit.
        repair_output: refit the output matrices in closed form (see ``repair``).
        ridge: strength of the regularisation toward the unrepaired matrices.
        matmul_dtype: as in ``audit``.
        out: run folder; ``None`` keeps everything in memory. An interrupted run resumes in it.
        overwrite: replace a run folder that was made from other inputs.
        tokenizer: saved with the checkpoint; ``None``: the tokenizer of an ``OpenModel``.
        source: named by the model card; ``None``: the source of an ``OpenModel``.
        progress: progress callback.

    Returns:
        The trimmed model. ``TrimRecord.open(out)`` reads its ``trim.json``.

    Raises:
        HeadcountError: the plan is for another model, or its ranks do not fit the model.
        CheckFailedError: the result does not have the planned ranks, or has non-finite weights.

    Example:
        >>> smaller = trim(opened, plan, out="runs/model")            # doctest: +SKIP
    """
    if isinstance(model, OpenModel):
        tokenizer, source, model = tokenizer or model.tokenizer, source or model.source, model.model
    check_age(model, plan)
    check_model(model, plan)
    windows = plan.audit.windows if tokens is None else tokens if isinstance(tokens, Mapping) else {"text": tokens}
    dtype = resolve_matmul_dtype(model, matmul_dtype)
    folder = None if out is None else Path(out)
    if folder is not None:
        inputs = {
            "plan": plan.record.digest,
            "repair": repair_output,
            "ridge": ridge,
            "matmul_dtype": str(dtype),
            "tokens": {kind: digest(ids.numpy().tobytes()) for kind, ids in windows.items()},
        }
        open_run_folder(folder, "trim", inputs, overwrite)
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        require_space(folder, 2 * size)
        if (folder / RECORD).is_file():
            TrimRecord.open(folder)  # A damaged record is rejected before the weights are read.
            return open_model(folder, tokenizer=False).model
    trimmed = build(model, plan)
    if repair_output:
        ids = torch.cat(list(windows.values())).long()
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="headcount-")) if folder is None else folder
            repair(model, trimmed, ids, Path(place) / "work", ridge=ridge, dtype=dtype, progress=progress)
    kinds = [text.kind for text in plan.audit.record.texts] + (list(tokens) if isinstance(tokens, Mapping) else [])
    origin = Origin(
        calibrated_on=tuple(dict.fromkeys(kinds)),
        metric=plan.record.metric,
        allocator=plan.record.allocator,
        repaired=repair_output,
        plan=plan.record.digest,
    )
    write_origin(trimmed.config, origin)
    check_trimmed(trimmed, plan)
    if folder is not None:
        save(trimmed, tokenizer, folder)
        write_card(folder, plan, source, repaired=repair_output, ridge=ridge, own_tokens=tokens is not None)
        write_json(folder / RECORD, TrimRecord.of(plan, repaired=repair_output))
        shutil.rmtree(folder / "work", ignore_errors=True)
    return trimmed


def check_trimmed(trimmed: PreTrainedModel, plan: Plan) -> None:
    """Reject a result that does not have the planned ranks or is not finite."""
    if read_spec(trimmed) != plan.spec:
        raise CheckFailedError("the trimmed model does not have the planned attention")
    for name, tensor in trimmed.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckFailedError(f"{name} is not finite after trimming", fix="audit more tokens, or use --no-repair")


def check_age(model: PreTrainedModel, plan: Plan) -> None:
    """Reject a plan made before fingerprints covered the model's settings: a match would not be sufficient."""
    if plan.record.fingerprint == weights_fingerprint(model):
        raise HeadcountError(
            f"the plan for {plan.record.model} was made by an earlier version of headcount, which did not record the "
            "model's settings (rotary embedding, windows, scaling)",
            fix="audit and plan again",
        )


def save(trimmed: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, out: Path) -> None:
    """Write the files of a trimmed model into ``out``, each atomically."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as place:
        try:
            with quiet_transformers():
                trimmed.save_pretrained(place, max_shard_size=SHARD_BYTES)
                if tokenizer is not None:
                    tokenizer.save_pretrained(place)
        except OSError as error:
            raise HeadcountError(
                f"cannot write the model to {out} ({error})", fix="free space, or use another --out"
            ) from error
        for file in sorted(Path(place).iterdir()):
            file.replace(out / file.name)
