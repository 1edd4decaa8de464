"""Prediction quality of models, and their distance from the first one: perplexity, divergence, agreement.

Windows have a fixed length and do not overlap; every token except the first of its window is predicted. With
p the next-token distribution of the first model and q that of another model, at n predicted tokens t:

    perplexity  exp( -1/n sum log q(t) )
    KL          1/n sum_tokens sum_v p(v) (log p(v) - log q(v)), in nats
    agreement   fraction of tokens at which p and q have the same most likely next token

All models process a batch before the next batch begins, so only the logits of one batch are in memory: those of the
first model and of the current one. Logits are processed in slices of the vocabulary, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from headcount.core.progress import Progress, silent
from headcount.pretrained.running.layerwise import batches_of

BATCH_TOKENS = 1024
"""Tokens per batch: enough for full speed on a CPU."""
LOGIT_NUMBERS = 2**27
"""Maximum number of logits per batch (512 MiB in float32), unless a single window has more."""
SLICE_NUMBERS = 2**18
"""Logits held in float64 at once (2 MiB): data that fits in the processor cache is read 3 times faster."""


@dataclass(frozen=True)
class Quality:
    """The quality of one model on one kind of text, relative to the first model."""

    tokens: int
    """Number of predicted tokens."""
    perplexity: float
    kl: float
    top1_agreement: float


@dataclass
class _Sums:
    tokens: int = 0
    nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0

    def quality(self) -> Quality:
        nll = self.nll / self.tokens
        perplexity = math.exp(nll) if nll < 700 else math.inf
        return Quality(self.tokens, perplexity, self.kl / self.tokens, self.agreed / self.tokens)


@dataclass(frozen=True)
class _Read:
    """Statistics of logits (windows, tokens, vocabulary): log-sum-exp, argmax, log-likelihood of the labels."""

    log_total: torch.Tensor
    top: torch.Tensor
    log_likelihood: torch.Tensor


def batch_size(context: int, vocabulary: int) -> int:
    """The number of windows per batch.

    >>> batch_size(512, 49_152), batch_size(512, 262_144), batch_size(8192, 262_144)
    (2, 1, 1)
    """
    return max(1, min(BATCH_TOKENS // context, LOGIT_NUMBERS // (context * vocabulary)))


def _slices(logits: torch.Tensor) -> list[slice]:
    width = max(1, SLICE_NUMBERS // logits[..., 0].numel())
    return batches_of(logits.shape[-1], width)


def _read(logits: torch.Tensor, labels: torch.Tensor) -> _Read:
    """One pass over the vocabulary. Shapes: logits (windows, tokens, V), labels (windows, tokens)."""
    log_total = torch.full(labels.shape, -math.inf, dtype=torch.float64, device=logits.device)
    best, top = log_total.clone(), torch.zeros_like(labels)
    for columns in _slices(logits):
        part = logits[..., columns].double()
        log_total = torch.logaddexp(log_total, part.logsumexp(-1))
        highest, where = part.max(-1)
        # Strictly greater: on ties the first entry wins, independent of the slices.
        top = torch.where(highest > best, where + columns.start, top)
        best = torch.maximum(best, highest)
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).double()
    return _Read(log_total, top, chosen - log_total)


def _divergence(p_logits: torch.Tensor, p: _Read, q_logits: torch.Tensor, q: _Read) -> float:
    """Sum over tokens of KL(p || q) in nats."""
    total = 0.0
    for columns in _slices(p_logits):
        log_p = p_logits[..., columns].double() - p.log_total.unsqueeze(-1)
        log_q = q_logits[..., columns].double() - q.log_total.unsqueeze(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total


@torch.no_grad()
def compare(models: Sequence[PreTrainedModel], ids: torch.Tensor, *, progress: Progress = silent) -> list[Quality]:
    """The quality of each model on the same windows, relative to the first model.

    Args:
        models: causal language models of one vocabulary; each runs on its own device.
        ids: windows of token ids (windows, context), context at least 2.
        progress: progress callback, receives the number of completed windows under the stage ``quality``.

    Returns:
        One ``Quality`` per model. The first has KL 0 and agreement 1. Values are ``nan`` or infinite if a model's
        logits are; the caller must handle this.

    Example:
        >>> dense, trimmed = compare([model, smaller], ids)      # doctest: +SKIP
        >>> trimmed.perplexity / dense.perplexity                # doctest: +SKIP
        1.08
    """
    sums = [_Sums() for _ in models]
    vocabulary = int(models[0].get_input_embeddings().weight.shape[0])  # type: ignore[index]
    for rows in batches_of(len(ids), batch_size(ids.shape[1], vocabulary)):
        first: tuple[torch.Tensor, _Read] | None = None
        for model, model_sums in zip(models, sums, strict=True):
            batch = ids[rows].to(model.device).long()
            out: Any = model(batch, use_cache=False)
            device = out.logits.device if first is None else first[0].device
            logits = out.logits[:, :-1].to(device)
            del out
            read = _read(logits, batch[:, 1:].to(device))
            model_sums.tokens += read.top.numel()
            model_sums.nll -= float(read.log_likelihood.sum())
            if first is None:
                first = (logits, read)
                model_sums.agreed += read.top.numel()
            else:
                model_sums.kl += _divergence(*first, logits, read)
                model_sums.agreed += int((first[1].top == read.top).sum())
        progress("quality", rows.stop, len(ids))
    return [model_sums.quality() for model_sums in sums]
