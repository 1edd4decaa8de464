"""The model card (README.md) of a trimmed folder, and the licence files copied from the source model."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import headcount
from headcount.core.store import run_kind, write_atomic, write_text
from headcount.pretrained.families import family_of_type
from headcount.pretrained.opening.source import Source
from headcount.trimming.audit.record import unused_notes
from headcount.trimming.plan.make import Plan

CARD = "README.md"
TRANSFORMERS = ">=5.0,<6"
"""Versions of transformers that the modeling files support."""
_BEGIN, _END = "<!-- headcount: measured cost -->", "<!-- headcount: end of measured cost -->"
_UNMEASURED = "Not measured yet. `headcount evaluate SOURCE FOLDER` measures it and writes it here."


def write_card(
    folder: Path, plan: Plan, source: Source | None, *, repaired: bool, ridge: float, own_tokens: bool = False
) -> None:
    """Write ``README.md`` into a trimmed folder and copy the source's licence files to it; see ``card``."""
    source = source or Source(Path(plan.record.model).name or "model")
    for file in source.licence_files:
        write_atomic(folder / file.name, lambda place, file=file: _copy(file, place))  # type: ignore[misc]
    write_text(folder / CARD, card(plan, source, repaired=repaired, ridge=ridge, own_tokens=own_tokens))


def _copy(file: Path, place: Path) -> None:
    shutil.copyfile(file, place)


def card(plan: Plan, source: Source, *, repaired: bool, ridge: float, own_tokens: bool = False) -> str:
    """The text of the card: description, usage, how it was made, measured cost, limits, licence.

    ``own_tokens``: the repair used token ids passed by the caller, which is only possible from Python.
    """
    from huggingface_hub import ModelCardData

    record, audit = plan.record, plan.audit.record
    name = _inline(source.name)
    front = ModelCardData(
        base_model=source.name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["headcount", "kv-cache-compression", "low-rank-attention"],
        **source.licence,
    ).to_yaml()
    spec, dense = plan.spec, audit.spec
    share = f"{100 * record.cache_ratio:.1f}%"
    kinds = ", ".join(_inline(text.kind) for text in audit.texts)
    predicted = record.predicted_loss_increase
    limits = [
        "The statistics come from the text named above. Quality on text unlike it can be lower: evaluate on your own.",
        "The model was not trained after trimming. It has the source's knowledge and biases, and no new ability.",
        "Programs with model code of their own (vLLM, llama.cpp, GGUF converters) do not load it. In transformers, "
        "continuous batching, FlashAttention and flex attention are not supported.",
        *(_inline(note) for note in unused_notes(audit)),
    ]
    prediction = []
    if predicted is not None:
        prediction = [
            f"The plan's own estimate, to second order and before any repair, is {predicted:.4g} nats per token more "
            "loss."
        ]
    quantised = f", weights de-quantised from {_inline(source.gguf)}" if source.gguf else ""
    repair = (
        f"refitted by ridge regression (ridge {ridge:g}) to follow the source's residual stream"
        if repaired
        else "not refitted (no repair)"
    )
    if repaired and own_tokens:
        repair += ", on token ids passed in Python (the commands above use the audit's own)"
    parts = [
        f"---\n{front.strip()}\n---",
        f"# {name}, trimmed to {share} of its KV cache",
        f"{name} ({family_of_type(dense.family).name}{quantised}) with latent attention: each layer caches one latent "
        f"for keys and one for values. Made by headcount {headcount.__version__} in closed form, without training.",
        _table(
            ("per model", "source", "this model"),
            [
                ("cached numbers per token", dense.cache_numbers_per_token, spec.cache_numbers_per_token),
                ("attention parameters", dense.attention_params, spec.attention_params),
            ],
        ),
        "## Use",
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "path/to/this/folder"\n'
        "model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)\n"
        "```",
        f"Needs transformers {TRANSFORMERS}. `trust_remote_code=True` runs the `.py` files of this folder; it is not "
        "needed after `import headcount`, which brings the same code.",
        "## How it was made",
        "```\n" + "\n".join(commands(plan, source, repaired=repaired, ridge=ridge)) + "\n```",
        f"Statistics: {audit.tokens:,} tokens of {kinds} in windows of {audit.context:,}, seed {audit.seed}, metric "
        f"{record.metric}. Form {record.form}, ranks by {record.allocator} allocation (`trim.json` lists them). Output "
        f"matrices: {repair}.",
        "## Measured cost",
        f"{_BEGIN}\n{_UNMEASURED}\n{_END}",
        *prediction,
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits),
        "## Licence",
        _licence(source),
    ]
    return "\n\n".join(parts) + "\n"


def commands(plan: Plan, source: Source, *, repaired: bool, ridge: float) -> list[str]:
    """The command lines that reproduce the model, with folders named after their contents."""
    record, audit = plan.record, plan.audit.record
    model = shlex.quote(_inline(source.argument or source.name))
    text = " --text FILE ..." if [entry.kind for entry in audit.texts] == ["text"] else ""
    options = (f" --ridge {ridge:g}" if ridge != 1e-2 else "") if repaired else " --no-repair"
    return [
        f"headcount audit {model} --metric {record.metric} --tokens {audit.tokens} --context {audit.context} "
        f"--seed {audit.seed}{text} --out audit",
        f"headcount plan audit --cache {record.cache_asked:g} --form {record.form} --allocator {record.allocator} "
        f"--multiple {record.multiple} --out plan",
        f"headcount trim {model} plan{options} --out model",
    ]


def write_cost(folder: Path, text: str) -> bool:
    """Write a measured cost into the card of a trimmed folder; returns whether the card was changed.

    Only the text between the card's two markers changes. Folders not made by ``trim``, cards without the markers, and
    read-only folders are left unchanged.
    """
    path = folder / CARD
    if run_kind(folder) != "trim" or not path.is_file() or path.is_symlink() or not os.access(folder, os.W_OK):
        return False
    before = path.read_text(encoding="utf-8", errors="replace")
    pattern = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
    after, count = pattern.subn(lambda _: f"{_BEGIN}\n{text.strip()}\n{_END}", before, count=1)
    if count:
        write_text(path, after)
    return bool(count)


def cost_text(
    first: str, rows: Sequence[tuple[str, float, float]], *, ratio: float, kl: float, agreement: float
) -> str:
    """A measured cost as text and a table; rows: (kind of text, perplexity of the first model, of this model)."""
    table = _table(
        ("perplexity", _inline(first), "this model", "ratio"),
        [(_inline(kind), f"{dense:.2f}", f"{trimmed:.2f}", f"{trimmed / dense:.3f}") for kind, dense, trimmed in rows],
    )
    return (
        f"Against {_inline(first)}, by `headcount evaluate`: {100 * ratio:.1f}% of the cache bytes per token, "
        f"KL divergence {kl:.4g} nats per token, same likeliest next token for {100 * agreement:.1f}% of tokens."
        f"\n\n{table}"
    )


def _licence(source: Source) -> str:
    known = source.licence.get("license_name") or source.licence.get("license")
    said = (
        f"The source names its licence: {_inline(known if isinstance(known, str) else ', '.join(known))}."
        if known
        else ""
    )
    files = ", ".join(f"`{_inline(file.name)}`" for file in source.licence_files)
    brought = f"The source's licence files are beside this card: {files}." if files else ""
    unknown = "" if said or brought else "The source names no licence."
    return " ".join(
        part for part in (unknown, said, brought, "This model is derived from it: the same terms apply.") if part
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([f"{cell:,}" if isinstance(cell, int) else cell for cell in r] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _inline(text: str) -> str:
    """Untrusted text on one line, without Markdown or HTML syntax."""
    return re.sub(r"[^\w .,:;/()+=-]", "?", text)[:200]
