"""The text that saturation and selection are measured on: prose and source code, or the user's files.

No text is sampled from the model, which would take longer than the measurement.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from headcount.core.errors import HeadcountError
from headcount.pretrained.opening.loading import OpenModel
from headcount.pretrained.text.calibration import KEPT_TOKENS, KEPT_WINDOWS, written_tokens
from headcount.pretrained.text.texts import CALIBRATED


def parse_contexts(text: str) -> list[int]:
    """The numbers of ``128,256,512``.

    >>> parse_contexts("128,256")
    [128, 256]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise HeadcountError(f"{text!r} is no list of contexts", fix="write it as --contexts 128,256,512") from None


def check_contexts(contexts: Sequence[int]) -> None:
    """Reject contexts that are empty, too short, or not ascending."""
    if not contexts:
        raise HeadcountError("there is no context to measure at", fix="give --contexts 128,256,512")
    for before, after in itertools.pairwise(contexts):
        if after <= before:
            raise HeadcountError(f"contexts must increase, but {after} follows {before}", fix="sort --contexts")
    if contexts[0] < 8:
        raise HeadcountError(f"a context of {contexts[0]} tokens is too short", fix="use 8 or more")


def measured_windows(
    opened: OpenModel, context: int, tokens: int, texts: Sequence[Path] = (), seed: int = 0
) -> dict[str, torch.Tensor]:
    """About ``tokens`` tokens in windows of ``context``, by kind of text, with equal counts per kind."""
    if tokens < 2 * context:
        raise HeadcountError(
            f"{tokens} tokens are less than two windows of {context}", fix="ask for more --tokens or shorter contexts"
        )
    if texts:
        windows = written_tokens(opened, context=context, scale=tokens / KEPT_TOKENS, texts=texts, seed=seed)
    else:
        scale = tokens / len(CALIBRATED) / (512 * KEPT_WINDOWS["prose"])
        windows = written_tokens(opened, context=context, scale=scale, texts=(), seed=seed)
    return {kind: ids[: max(1, tokens // context // len(windows))] for kind, ids in windows.items()}
