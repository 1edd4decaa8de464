"""The default calibration text: a mixture, since narrow statistics double the loss elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.pretrained.opening.loading import OpenModel
from headcount.pretrained.text.sampling import sample_blocks
from headcount.pretrained.text.texts import CALIBRATED, Blocks, cut_blocks, documents, read_file

KEPT_WINDOWS = {"prose": 50, "code": 50, "self": 40}
"""Windows of 512 tokens of each kind that are kept: what the repair is fitted on."""
KEPT_TOKENS = sum(KEPT_WINDOWS.values()) * 512
COUNTED_SHARES = {"prose": 2, "code": 2, "self": 5}
"""Of the windows that statistics are gathered on, how many parts each kind has."""


def calibration_tokens(
    opened: OpenModel,
    *,
    context: int = 512,
    scale: float = 1.0,
    texts: Sequence[Path | str] = (),
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress = silent,
) -> dict[str, torch.Tensor]:
    """Windows of calibration tokens by kind: prose, code and the model's own text, or the user's files.

    Args:
        opened: the model and its tokenizer.
        context: tokens of a window.
        scale: how many times the tokens of ``KEPT_WINDOWS``; less is had where the built-in text ends.
        texts: UTF-8 files to use instead of the built-in kinds.
        seed: which windows, and the sampled text.
        folder: where sampled text is kept, so that a killed run goes on.
        progress: told how far it is.
    """
    found = written_tokens(opened, context=context, scale=scale, texts=texts, seed=seed)
    return (
        found
        if texts
        else found | own_tokens(opened, context=context, scale=scale, seed=seed, folder=folder, progress=progress)
    )


def _wanted(kind: str, scale: float, context: int) -> int:
    return max(1, round(scale * KEPT_WINDOWS[kind] * 512 / context))


def written_tokens(
    opened: OpenModel, *, context: int, scale: float, texts: Sequence[Path | str], seed: int
) -> dict[str, torch.Tensor]:
    """The windows that need no sampling: all that can be wrong with text is found here, before any work."""
    blocks = written_blocks(opened, context=context, scale=scale, texts=texts, seed=seed)
    return {kind: own.ids for kind, own in blocks.items()}


def written_blocks(
    opened: OpenModel, *, context: int, scale: float, texts: Sequence[Path | str], seed: int
) -> dict[str, Blocks]:
    """``written_tokens`` with what else is known of the windows."""
    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise HeadcountError(f"{opened.name} has no tokenizer to read text with", fix="pass tokens instead")
    longest = getattr(opened.model.config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise HeadcountError(
            f"a context of {context} tokens is beyond the model's {longest} positions", fix="choose a smaller --context"
        )
    if context < 2:
        raise HeadcountError(f"a context of {context} tokens is too short", fix="choose a larger --context")
    if texts:
        docs = [read_file(Path(text)) for text in texts]
        most = sum(_wanted(kind, scale, context) for kind in KEPT_WINDOWS)
        return {"text": cut_blocks(tokenizer, "text", docs, most, context, seed)}
    return {
        kind: cut_blocks(tokenizer, kind, documents(kind, "calibration"), _wanted(kind, scale, context), context, seed)
        for kind in CALIBRATED
    }


def own_tokens(
    opened: OpenModel,
    *,
    context: int,
    scale: float,
    seed: int,
    folder: Path | None = None,
    progress: Progress = silent,
) -> dict[str, torch.Tensor]:
    """The windows that the model writes itself; none of a model without a language-model head."""
    if opened.tokenizer is None or opened.model.get_output_embeddings() is None:
        return {}
    count = _wanted("self", scale, context)
    return {"self": sample_blocks(opened.model, opened.tokenizer, count, context, seed, folder, progress).ids}


def counted_windows(windows: Mapping[str, torch.Tensor], total: int) -> dict[str, torch.Tensor]:
    """About ``total`` windows to gather statistics on, the kinds in the proportion of ``COUNTED_SHARES``.

    Kinds that have too few windows give what they have.
    """
    shares = {kind: COUNTED_SHARES.get(kind, 1) for kind in windows}
    whole = sum(shares.values())
    return {kind: ids[: max(1, total * shares[kind] // whole)] for kind, ids in windows.items()}
