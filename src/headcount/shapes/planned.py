"""Planning a new model under budgets: heads, key-value heads and dimensions of each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.core.spec import DTYPE_BYTES
from headcount.core.store import open_run_folder, read_json, write_json
from headcount.shapes.decoder import DecoderSpec
from headcount.shapes.evidence import read_evidence
from headcount.shapes.fit import MULTIPLES, Budget, Sizes, fit
from headcount.shapes.rules import Base, rules_of, shape

RECORD = "scratch.json"
FAMILIES = ("llama",)
"""Model families supported by ``plan --scratch``."""
VOCAB = 2048
"""Default vocabulary size: a small byte-pair vocabulary, cheap compared with small layers."""
HEAD_DIMS = (32, 64, 48, 40, 24, 16, 8)
"""Default head dimensions, tried in this order (64 first if hidden is at least 1024)."""


class ScratchRecord(BaseModel):
    """``scratch.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    family: Literal["llama"] = "llama"
    scheme: str
    audit: str | None
    """The folder of the evidence, as passed by the user."""
    budget_params: int | None
    budget_cache_bytes: int | None
    budget_flops: int | None
    cache_dtype: str
    model: DecoderSpec
    params: int
    cache_bytes_per_token: int
    attention_flops_per_token: int
    """At the full context."""


@dataclass(frozen=True)
class ScratchPlan:
    """A plan and its folder."""

    record: ScratchRecord
    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path | str) -> ScratchPlan:
        """Read a plan folder or its ``scratch.json``; a plan with inconsistent parameter counts is rejected."""
        path = Path(folder)
        path = path if path.is_file() else path / RECORD
        if not path.is_file():
            raise HeadcountError(
                f"{folder} holds no plan of a new model", fix="make one with headcount plan --scratch llama --out"
            )
        record = read_json(path, ScratchRecord)
        if record.params != record.model.params:
            raise HeadcountError(
                f"{path} says {record.params:,} parameters, its layers have {record.model.params:,}", fix="plan again"
            )
        return cls(record, path.parent)


def plan_scratch(
    *,
    layers: int,
    hidden: int,
    context: int,
    params: float | None = None,
    cache_bytes: float | None = None,
    flops: float | None = None,
    vocab: int = VOCAB,
    scheme: str = "planned",
    audit: Path | str | None = None,
    head_dim: int | None = None,
    group: int | None = None,
    tied: bool = True,
    cache_dtype: str = "float32",
    multiples: tuple[int, ...] = MULTIPLES,
    out: Path | str | None = None,
    overwrite: bool = False,
) -> ScratchPlan:
    """Plan a Llama-like model under budgets.

    Args:
        layers, hidden, vocab, context: the fixed sizes.
        params: parameter budget of the whole model; an upper limit, met within 3%.
        cache_bytes: upper limit per token in ``cache_dtype``.
        flops: upper limit for all attention layers in one decoding step at the full context.
        scheme: see ``headcount.shapes.rules``.
        audit: folder of an audit whose evidence replaces the rules of the planned scheme.
        head_dim: head dimension of the uniform layer (None: the first of ``HEAD_DIMS`` that divides ``hidden``).
        group: query heads per key-value head (None: 2 if that divides the heads, else 3, else 1).
        tied: share the output matrix with the embedding.
        cache_dtype: data type of the cache.
        multiples: MLP widths are multiples of the first of these that comes close to the parameter budget.
        out: folder to write ``scratch.json`` to.
        overwrite: replace a plan made from different inputs.

    Raises:
        HeadcountError: indivisible sizes, an infeasible budget (the smallest feasible one is stated), or no budget.

    Example:
        >>> made = plan_scratch(layers=4, hidden=128, context=256, params=1.2e6, vocab=512)
        >>> made.record.params <= 1.2e6 and [layer.qk_dim for layer in made.record.model.layers]
        [32, 26, 22, 16]
    """
    numbers = {"layers": layers, "hidden": hidden, "context": context, "vocab": vocab}
    for name, number in numbers.items():
        least = 2 if name in ("hidden", "vocab") else 1
        if number < least:
            raise HeadcountError(f"--{name} {number} is not possible", fix=f"use {least} or more")
    base = base_of(hidden, head_dim, group)
    budget = Budget(
        params=_whole("params", params),
        cache_bytes=_whole("cache-bytes", cache_bytes),
        flops=_whole("flops", flops),
        dtype=cache_dtype,
    )
    if cache_dtype not in DTYPE_BYTES:
        raise HeadcountError(f"unknown dtype {cache_dtype!r} for a cache", fix=f"use one of {', '.join(DTYPE_BYTES)}")
    if budget.params is None and budget.cache_bytes is None and budget.flops is None:
        raise HeadcountError("there is no budget", fix="give --params, --cache-bytes or --flops")
    evidence = None if audit is None else read_evidence(Path(audit), layers)
    sizes = Sizes(layers, hidden, vocab, context, tied)
    spec = fit(shape(scheme, layers, base, evidence), sizes, budget, multiples)
    record = ScratchRecord(
        scheme=scheme,
        audit=None if audit is None else str(audit),
        budget_params=budget.params,
        budget_cache_bytes=budget.cache_bytes,
        budget_flops=budget.flops,
        cache_dtype=cache_dtype,
        model=spec,
        params=spec.params,
        cache_bytes_per_token=spec.cache_bytes_per_token(cache_dtype),
        attention_flops_per_token=spec.attention.attention_flops_per_token(context),
    )
    if out is None:
        return ScratchPlan(record)
    open_run_folder(Path(out), "plan-scratch", record.model_dump(mode="json"), overwrite)
    write_json(Path(out) / RECORD, record)
    return ScratchPlan(record, Path(out))


def base_of(hidden: int, head_dim: int | None, group: int | None) -> Base:
    """The uniform layer with H d = hidden.

    >>> base_of(256, None, None)
    Base(n_heads=8, n_kv_heads=4, head_dim=32)
    """
    order = (64, *HEAD_DIMS) if hidden >= 1024 else HEAD_DIMS
    dim = head_dim if head_dim is not None else next((d for d in order if hidden % d == 0), None)
    if dim is None:
        raise HeadcountError(
            f"--hidden {hidden} is no multiple of a head dimension ({', '.join(map(str, sorted(HEAD_DIMS)))})",
            fix=f"use --hidden {max(8, 8 * round(hidden / 8))}, or give --head-dim",
        )
    if dim < 2 or dim % 2:
        raise HeadcountError(
            f"--head-dim {dim} is not possible", fix="use an even number: the rotary embedding turns pairs"
        )
    if hidden % dim:
        raise HeadcountError(f"--hidden {hidden} is no multiple of --head-dim {dim}", fix="choose one that divides it")
    heads = hidden // dim
    group_size = group if group is not None else next(n for n in (2, 3, 1) if heads % n == 0)
    if group_size < 1 or heads % group_size:
        raise HeadcountError(f"{heads} heads do not divide into groups of {group_size}", fix="choose another --group")
    return Base(heads, heads // group_size, dim)


def _whole(name: str, number: float | None) -> int | None:
    if number is None:
        return None
    if not (math.isfinite(number) and number >= 1):
        raise HeadcountError(f"--{name} {number:g} is not possible", fix="use a number of at least 1")
    return int(number)


def summary_json(made: ScratchPlan) -> JsonObject:
    """What ``headcount plan --scratch --json`` prints."""
    record = made.record.model_dump(mode="json")
    model = record.pop("model")
    rules = rules_of(made.record.scheme, made.record.audit is not None)
    return {**record, **model, "rules": rules, "folder": str(made.folder) if made.folder else None}
