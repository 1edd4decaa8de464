"""Trimming a model: build, repair, and write it as a checkpoint that stands on its own."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.core.errors import CheckFailedError, HeadcountError
from headcount.core.progress import Progress, silent
from headcount.core.store import digest, open_run_folder, require_space, write_json
from headcount.pretrained.families import read_spec
from headcount.pretrained.opening.fingerprint import weights_fingerprint
from headcount.pretrained.opening.loading import quiet_transformers
from headcount.pretrained.opening.source import Source
from headcount.pretrained.runtimes.origin import Origin, write_origin
from headcount.trimming.audit.record import unused_notes
from headcount.trimming.audit.run import resolve_matmul_dtype
from headcount.trimming.plan.make import Plan
from headcount.trimming.trim.build import build, check_model
from headcount.trimming.trim.card import write_card
from headcount.trimming.trim.repair import RIDGE, repair

RECORD = "trim.json"
SHARD_BYTES = 2**31
"""Largest weights file of a checkpoint."""


def trim(
    model: PreTrainedModel,
    plan: Plan,
    *,
    tokens: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
    repair_output: bool = True,
    ridge: float = RIDGE,
    matmul_dtype: str = "auto",
    work: Path | str | None = None,
    progress: Progress = silent,
) -> PreTrainedModel:
    """A new model whose attention keeps latents of the plan's ranks.

    What is not attention shares its memory with ``model``, which is not changed; copy it before training both.

    Args:
        model: the dense model that the plan was made for.
        plan: ranks, and the audit that they and the directions come from.
        tokens: windows to repair on; ``None``: the audit's own calibration windows.
        repair_output: refit the output matrices in closed form (see ``repair``).
        ridge: pull toward the unrepaired matrices.
        matmul_dtype: as in ``audit``.
        work: folder for the repair's streams, so that a killed run goes on; ``None``: a temporary one.
        progress: told how far it is.

    Raises:
        HeadcountError: the plan is for another model, or asks for ranks the model has no room for.
        CheckFailedError: the result does not keep the ranks that were planned.

    Example:
        >>> smaller = trim(model, plan)            # doctest: +SKIP
    """
    check_age(model, plan)
    trimmed = build(model, plan)
    repaired_on = list(tokens) if isinstance(tokens, Mapping) else []
    if repair_output:
        windows = plan.audit.windows if tokens is None else tokens
        ids = torch.cat(list(windows.values())) if isinstance(windows, Mapping) else windows
        with contextlib.ExitStack() as stack:
            place = Path(work or stack.enter_context(tempfile.TemporaryDirectory(prefix="headcount-")))
            dtype = resolve_matmul_dtype(model, matmul_dtype)
            repair(model, trimmed, ids.long(), place, ridge=ridge, dtype=dtype, progress=progress)
    origin = Origin(
        calibrated_on=tuple(dict.fromkeys([text.kind for text in plan.audit.record.texts] + repaired_on)),
        metric=plan.record.metric,
        allocator=plan.record.allocator,
        repaired=repair_output,
    )
    write_origin(trimmed.config, origin)
    if read_spec(trimmed) != plan.spec:
        raise CheckFailedError("the trimmed model does not have the planned attention")
    for name, tensor in trimmed.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckFailedError(f"{name} is not finite after trimming", fix="audit more tokens, or use --no-repair")
    return trimmed


def trim_to_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    plan: Plan,
    out: Path | str,
    *,
    repair_output: bool = True,
    ridge: float = RIDGE,
    matmul_dtype: str = "auto",
    overwrite: bool = False,
    source: Source | None = None,
    progress: Progress = silent,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """``trim``, written to ``out`` as a checkpoint; returns the model and what ``trim.json`` says.

    The folder has safetensors, config, generation config, tokenizer, the modeling files, a model card and the licence
    files of ``source`` (``OpenModel.source``): transformers loads it anywhere with ``trust_remote_code=True``, and
    without it where headcount is installed and imported.
    """
    check_age(model, plan)
    check_model(model, plan)
    out = Path(out)
    inputs = {
        "plan": digest(plan.record.model_dump_json(exclude={"audit"})),
        "repair": repair_output,
        "ridge": ridge,
        "matmul_dtype": str(resolve_matmul_dtype(model, matmul_dtype)),
        "tokens": {kind: digest(ids.numpy().tobytes()) for kind, ids in plan.audit.windows.items()},
    }
    open_run_folder(out, "trim", inputs, overwrite)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    require_space(out, 2 * size)
    if (out / RECORD).is_file():
        from headcount.pretrained.opening.loading import open_model

        return open_model(out, tokenizer=False).model, json.loads((out / RECORD).read_text(encoding="utf-8"))
    trimmed = trim(
        model,
        plan,
        repair_output=repair_output,
        ridge=ridge,
        matmul_dtype=matmul_dtype,
        work=out / "work",
        progress=progress,
    )
    save(trimmed, tokenizer, out)
    write_card(out, plan, source, repaired=repair_output, ridge=ridge)
    record = {
        "model": plan.record.model,
        "form": plan.record.form,
        "allocator": plan.record.allocator,
        "metric": plan.record.metric,
        "cache_ratio": plan.record.cache_ratio,
        "repaired": repair_output,
        "attention_parameters": plan.spec.attention_params,
        "attention_parameters_dense": plan.audit.record.spec.attention_params,
        "cache_numbers_per_token": plan.spec.cache_numbers_per_token,
        "layers": [layer.model_dump() for layer in plan.record.layers],
        "notes": unused_notes(plan.audit.record),
    }
    write_json(out / RECORD, record)
    shutil.rmtree(out / "work", ignore_errors=True)
    return trimmed, record


def check_age(model: PreTrainedModel, plan: Plan) -> None:
    """Refuse a plan made before fingerprints covered the model's settings, whose match would say too little."""
    if plan.record.fingerprint == weights_fingerprint(model):
        raise HeadcountError(
            f"the plan for {plan.record.model} was made by an earlier version of headcount, which did not record the "
            "model's settings (rotary embedding, windows, scaling)",
            fix="audit and plan again",
        )


def save(trimmed: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, out: Path) -> None:
    """Write a trimmed model's files into ``out``; each appears complete or not at all."""
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
