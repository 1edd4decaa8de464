"""The windows of tokens that an audit measures: token ids passed by the caller, or text read by the tokenizer.

Both state what a run folder depends on (``inputs``) before any work, and are completed to an ``AuditText`` in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from headcount.core.errors import HeadcountError
from headcount.core.store import digest, open_run_folder
from headcount.pretrained.opening.loading import OpenModel
from headcount.pretrained.text.calibration import KEPT_TOKENS, counted_windows, own_tokens, written_blocks
from headcount.pretrained.text.texts import read_file
from headcount.trimming.audit.options import AuditOptions


@dataclass(frozen=True)
class AuditText:
    """Windows (windows, context) by kind of text; statistics use ``counted``, the first windows of each kind.

    ``control_tokens``: the value of ``TextRecord.control_tokens`` for each kind.
    """

    windows: Mapping[str, torch.Tensor]
    counted: Mapping[str, torch.Tensor]
    control_tokens: Mapping[str, int] = field(default_factory=dict)


class TokenIds:
    """Token ids passed by the caller. ``count``: windows of each kind to gather statistics on (``None``: all)."""

    def __init__(
        self, tokens: torch.Tensor | Mapping[str, torch.Tensor], count: int | Mapping[str, int] | None
    ) -> None:
        self.windows = dict(tokens) if isinstance(tokens, Mapping) else {"text": tokens}
        self.count = count

    def inputs(self, fingerprint: str, options: AuditOptions) -> dict[str, Any]:
        """What the run folder depends on."""
        return {
            "fingerprint": fingerprint,
            "metric": options.metric,
            "seed": options.seed,
            "matmul_dtype": str(options.dtype),
            "tokens": {kind: digest(ids.numpy().tobytes()) for kind, ids in self.windows.items()},
            "windows": {kind: len(ids) for kind, ids in self._counted().items()},
        }

    def complete(self, folder: Path, options: AuditOptions) -> AuditText:
        """The windows as they are; nothing else to prepare."""
        return AuditText(self.windows, self._counted())

    def _counted(self) -> dict[str, torch.Tensor]:
        if self.count is None:
            return self.windows
        counts = self.count if isinstance(self.count, Mapping) else dict.fromkeys(self.windows, self.count)
        if any(counts.get(kind, 0) < 1 for kind in self.windows):
            raise HeadcountError("every kind of text needs at least one window to count", fix="ask for more tokens")
        return {kind: ids[: counts[kind]] for kind, ids in self.windows.items()}


class ReadText:
    """The default mixture of text, or the user's files, read by the model's tokenizer.

    Statistics use ``tokens`` tokens; ``kept_tokens`` are stored for the repair. The mixture includes text sampled from
    the model, which is stored in the audit's folder or in ``self_text``, where audits with other metrics can share it.
    """

    def __init__(
        self,
        opened: OpenModel,
        *,
        tokens: int,
        context: int,
        texts: Sequence[Path | str] = (),
        kept_tokens: int = KEPT_TOKENS,
        self_text: Path | str | None = None,
        seed: int = 0,
        overwrite: bool = False,
    ) -> None:
        if tokens < context:
            raise HeadcountError(f"{tokens} tokens are less than one window of {context}", fix="ask for more --tokens")
        self.opened, self.tokens, self.context = opened, tokens, context
        self.texts = [Path(path) for path in texts]
        self.kept_tokens = max(tokens, kept_tokens)
        self.self_text = None if self_text is None else Path(self_text)
        self.seed, self.overwrite = seed, overwrite
        self.scale = self.kept_tokens / KEPT_TOKENS
        self.blocks = written_blocks(opened, context=context, scale=self.scale, texts=self.texts, seed=seed)
        self.windows = {kind: blocks.ids for kind, blocks in self.blocks.items()}

    def inputs(self, fingerprint: str, options: AuditOptions) -> dict[str, Any]:
        """What the run folder depends on."""
        return {
            "fingerprint": fingerprint,
            "metric": options.metric,
            "tokens": self.tokens,
            "context": self.context,
            "seed": self.seed,
            "kept_tokens": self.kept_tokens,
            "matmul_dtype": str(options.dtype),
            "texts": [digest(read_file(path).text) for path in self.texts],
        }

    def complete(self, folder: Path, options: AuditOptions) -> AuditText:
        """The windows plus those sampled from the model, which a resumed run reads from its folder."""
        windows = dict(self.windows)
        if not self.texts:
            place = folder / "self-text"
            if self.self_text is not None:
                sampled = {
                    "fingerprint": self.opened.fingerprint,
                    "context": self.context,
                    "scale": self.scale,
                    "seed": self.seed,
                }
                place = open_run_folder(self.self_text, "self-text", sampled, self.overwrite)
            windows |= own_tokens(
                self.opened,
                context=self.context,
                scale=self.scale,
                seed=self.seed,
                folder=place,
                progress=options.progress,
            )
        counted = counted_windows(windows, self.tokens // self.context)
        return AuditText(windows, counted, {kind: blocks.control_tokens for kind, blocks in self.blocks.items()})
