"""The default calibration text: a mixture, since statistics from one kind double the loss on other kinds."""

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
"""Number of 512-token windows of each kind that are stored for the repair."""
KEPT_TOKENS = sum(KEPT_WINDOWS.values()) * 512
COUNTED_SHARES = {"prose": 2, "code": 2, "self": 5}
"""Relative number of windows of each kind that statistics are gathered on."""


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
        context: tokens per window.
        scale: multiple of the tokens of ``KEPT_WINDOWS``; limited by the length of the built-in text.
        texts: UTF-8 files to use instead of the built-in kinds.
        seed: random seed for window selection and sampling.
        folder: stores sampled text, so that a killed run can resume.
        progress: progress callback.
    """
    windows = written_tokens(opened, context=context, scale=scale, texts=texts, seed=seed)
    return (
        windows
        if texts
        else windows | own_tokens(opened, context=context, scale=scale, seed=seed, folder=folder, progress=progress)
    )


def _window_count(kind: str, scale: float, context: int) -> int:
    return max(1, round(scale * KEPT_WINDOWS[kind] * 512 / context))


def written_tokens(
    opened: OpenModel, *, context: int, scale: float, texts: Sequence[Path | str], seed: int
) -> dict[str, torch.Tensor]:
    """The windows that need no sampling; all errors in the text are raised here, before any work."""
    blocks = written_blocks(opened, context=context, scale=scale, texts=texts, seed=seed)
    return {kind: block.ids for kind, block in blocks.items()}


def written_blocks(
    opened: OpenModel, *, context: int, scale: float, texts: Sequence[Path | str], seed: int
) -> dict[str, Blocks]:
    """Like ``written_tokens``, with the metadata of the windows."""
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
        most = sum(_window_count(kind, scale, context) for kind in KEPT_WINDOWS)
        return {"text": cut_blocks(tokenizer, "text", docs, most, context, seed)}
    return {
        kind: cut_blocks(
            tokenizer, kind, documents(kind, "calibration"), _window_count(kind, scale, context), context, seed
        )
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
    """The windows sampled from the model; empty for a model without a language-model head."""
    if opened.tokenizer is None or opened.model.get_output_embeddings() is None:
        return {}
    count = _window_count("self", scale, context)
    return {"self": sample_blocks(opened.model, opened.tokenizer, count, context, seed, folder, progress).ids}


def counted_windows(windows: Mapping[str, torch.Tensor], total: int) -> dict[str, torch.Tensor]:
    """About ``total`` windows to gather statistics on, with kinds in proportion to ``COUNTED_SHARES``.

    A kind with too few windows contributes all of them.
    """
    shares = {kind: COUNTED_SHARES.get(kind, 1) for kind in windows}
    whole = sum(shares.values())
    return {kind: ids[: max(1, total * shares[kind] // whole)] for kind, ids in windows.items()}
