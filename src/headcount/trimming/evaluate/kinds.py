"""The text that models are compared on: built-in kinds, the user's own, and windows of tokens cut from them."""

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
"""By kind: windows of token ids (windows, context), or documents to cut them from."""


@dataclass(frozen=True)
class Windows:
    """Windows of one kind of text: ids (windows, context); see ``record.TextRecord`` for the other fields."""

    kind: str
    group: Group
    ids: torch.Tensor
    stride: int
    control_tokens: int = 0


def group_of(kind: str) -> Group:
    """Whether statistics are gathered on a kind of text by default, never, or it is the user's own.

    >>> [group_of(kind) for kind in ("prose", "self", "licences", "mail")]
    ['calibrated', 'calibrated', 'unseen', 'other']
    """
    if kind in (*CALIBRATED, SELF):
        return "calibrated"
    return "unseen" if kind in UNSEEN else "other"


def regrouped(kinds: Sequence[Windows], origins: Sequence[Origin]) -> list[Windows]:
    """Kinds grouped by what the trimmed models say they were calibrated on, rather than by the default mixture.

    A default kind that no model saw is unseen; a user's own kind stays "other", since a name says nothing about it.
    """
    if not origins:
        return list(kinds)
    seen = {kind for origin in origins for kind in origin.calibrated_on}
    found = []
    for text in kinds:
        group: Group = "calibrated" if text.kind in seen else "unseen"
        found.append(text if text.group == "other" else replace(text, group=group))
    return found


def default_texts() -> dict[str, Sequence[Document]]:
    """The documents of the built-in kinds that are held out for evaluation."""
    return {kind: documents(kind, "evaluation") for kind in (*CALIBRATED, *UNSEEN)}


def user_texts(files: Mapping[str, Path]) -> dict[str, Sequence[Document]]:
    """The user's own kinds; a built-in one's name is refused, since it says what a model was calibrated on."""
    for name in files:
        if not name.strip():
            raise HeadcountError("a text has no name", fix="write --text NAME=FILE")
        if group_of(name) != "other":
            raise HeadcountError(f"{name!r} is the name of a built-in kind of text", fix="choose another name")
    return {name: [read_file(Path(path))] for name, path in files.items()}


def cut(
    texts: Texts, tokenizer: PreTrainedTokenizerBase | None, windows: int, context: int, seed: int
) -> list[Windows]:
    """Up to ``windows`` windows of each kind; tensors are taken as they are, all of their windows.

    Raises ``HeadcountError`` for documents without a tokenizer, text shorter than one window, an odd shape.
    """
    if not texts:
        raise HeadcountError("there is no text to evaluate on", fix="give at least one kind")
    if windows < 1:
        raise HeadcountError(f"{windows} windows of each kind leave nothing to evaluate", fix="use at least 1")
    found = []
    for kind, given in texts.items():
        if isinstance(given, torch.Tensor):
            if given.ndim != 2 or given.shape[0] < 1 or given.shape[1] < 2 or given.is_floating_point():
                raise HeadcountError(
                    f"{kind}: tokens of shape {tuple(given.shape)} ({given.dtype}) are no windows",
                    fix="give ids (windows, context), at least 2 tokens long",
                )
            found.append(Windows(kind, group_of(kind), given.long().cpu(), given.shape[1]))
            continue
        if tokenizer is None:
            raise HeadcountError(
                f"the first model has no tokenizer to cut the {kind} text with", fix="give one, or give token ids"
            )
        blocks = cut_blocks(tokenizer, kind, given, windows, context, seed)
        stride = context - len(block_prefix(tokenizer))
        found.append(Windows(kind, group_of(kind), blocks.ids, stride, blocks.control_tokens))
    return found
