"""The text that models are compared on: built-in and user-supplied kinds, and token windows cut from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from headcount.core.errors import HeadcountError
from headcount.pretrained.runtimes.origin import Origin
from headcount.pretrained.text.texts import CALIBRATED, UNSEEN, Document, block_prefix, cut_blocks, documents, read_file
from headcount.trimming.evaluate.record import Group

SELF = "self"
"""Text sampled from the model itself; statistics are gathered on it too, so it counts as calibrated."""

Texts = Mapping[str, torch.Tensor | Sequence[Document]]
"""By kind: windows of token ids (windows, context), or documents to cut windows from."""


@dataclass(frozen=True)
class Windows:
    """Windows of one kind of text: ids (windows, context); see ``record.TextRecord`` for the other fields."""

    kind: str
    group: Group
    ids: torch.Tensor
    stride: int
    control_tokens: int = 0


def group_of(kind: str) -> Group:
    """The group of a kind of text: calibrated by default, never calibrated on, or supplied by the user.

    >>> [group_of(kind) for kind in ("prose", "self", "licences", "mail")]
    ['calibrated', 'calibrated', 'unseen', 'other']
    """
    if kind in (*CALIBRATED, SELF):
        return "calibrated"
    return "unseen" if kind in UNSEEN else "other"


def regrouped(kinds: Sequence[Windows], origins: Sequence[Origin]) -> list[Windows]:
    """Kinds grouped by the recorded calibration text of the trimmed models, instead of the default mixture.

    A built-in kind that no model was calibrated on is unseen; a user-supplied kind stays "other", since its name does
    not identify its content.
    """
    if not origins:
        return list(kinds)
    seen = {kind for origin in origins for kind in origin.calibrated_on}
    grouped = []
    for text in kinds:
        group: Group = "calibrated" if text.kind in seen else "unseen"
        grouped.append(text if text.group == "other" else replace(text, group=group))
    return grouped


def default_texts() -> dict[str, Sequence[Document]]:
    """The evaluation documents of the built-in kinds."""
    return {kind: documents(kind, "evaluation") for kind in (*CALIBRATED, *UNSEEN)}


def user_texts(files: Mapping[str, Path]) -> dict[str, Sequence[Document]]:
    """User-supplied kinds; built-in names are rejected, since they identify what a model was calibrated on."""
    for name in files:
        if not name.strip():
            raise HeadcountError("a text has no name", fix="write --text NAME=FILE")
        if group_of(name) != "other":
            raise HeadcountError(f"{name!r} is the name of a built-in kind of text", fix="choose another name")
    return {name: [read_file(Path(path))] for name, path in files.items()}


def cut(
    texts: Texts, tokenizer: PreTrainedTokenizerBase | None, windows: int, context: int, seed: int
) -> list[Windows]:
    """Up to ``windows`` windows of each kind; tensors are used unchanged, with all their windows.

    Raises ``HeadcountError`` for documents without a tokenizer, text shorter than one window, or an invalid shape.
    """
    if not texts:
        raise HeadcountError("there is no text to evaluate on", fix="give at least one kind")
    if windows < 1:
        raise HeadcountError(f"{windows} windows of each kind leave nothing to evaluate", fix="use at least 1")
    cut_windows = []
    for kind, content in texts.items():
        if isinstance(content, torch.Tensor):
            if content.ndim != 2 or content.shape[0] < 1 or content.shape[1] < 2 or content.is_floating_point():
                raise HeadcountError(
                    f"{kind}: tokens of shape {tuple(content.shape)} ({content.dtype}) are no windows",
                    fix="give ids (windows, context), at least 2 tokens long",
                )
            cut_windows.append(Windows(kind, group_of(kind), content.long().cpu(), content.shape[1]))
            continue
        if tokenizer is None:
            raise HeadcountError(
                f"the first model has no tokenizer to cut the {kind} text with", fix="give one, or give token ids"
            )
        blocks = cut_blocks(tokenizer, kind, content, windows, context, seed)
        stride = context - len(block_prefix(tokenizer))
        cut_windows.append(Windows(kind, group_of(kind), blocks.ids, stride, blocks.control_tokens))
    return cut_windows
