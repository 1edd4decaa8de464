"""How well models predict text, and how far each is from the first: perplexity, divergence, agreement.

Over windows of fixed length that do not overlap, every token but the first of its window is predicted. With
p the first model's next-token distribution and q another's, at n predicted tokens t:

    perplexity  exp( -1/n sum log q(t) )
    KL          1/n sum_tokens sum_v p(v) (log p(v) - log q(v)), in nats
    agreement   share of tokens at which p and q have the same likeliest next token

All models see one batch before the next one begins, so that logits of one batch are held only: the first
model's and those of the model at hand. Logits are read in slices of the vocabulary, in float64.
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
"""Tokens that go through a model at once: enough for full speed on a CPU."""
LOGIT_NUMBERS = 2**27
"""Logits of one batch, at most (512 MiB in float32), unless one window has more."""
SLICE_NUMBERS = 2**18
"""Logits that are held in float64 at once (2 MiB): what stays in a processor's cache is read 3 times faster."""


@dataclass(frozen=True)
class Quality:
    """What one model did on one kind of text, against the first model."""

    tokens: int
    """Predicted tokens."""
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
    """What logits (windows, tokens, vocabulary) say: log sum exp, likeliest entry, log-likelihood of the labels."""

    log_total: torch.Tensor
    top: torch.Tensor
    log_likelihood: torch.Tensor


def batch_size(context: int, vocabulary: int) -> int:
    """Windows that go through the models at once.

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
        # Strictly greater: of equal ones the first counts, whatever the slices are.
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
    """The quality of each model on the same windows, against the first one.

    Args:
        models: causal language models of one vocabulary; each runs on its own device.
        ids: windows of token ids (windows, context), context at least 2.
        progress: told how many windows are done, under the stage ``quality``.

    Returns:
        A ``Quality`` a model. The first has KL 0 and agreement 1. Numbers are ``nan`` or infinite where a
        model's logits are: the caller decides what that means.

    Example:
        >>> dense, trimmed = compare([model, smaller], ids)      # doctest: +SKIP
        >>> trimmed.perplexity / dense.perplexity                # doctest: +SKIP
        1.08
    """
    sums = [_Sums() for _ in models]
    vocabulary = int(models[0].get_input_embeddings().weight.shape[0])  # type: ignore[index]
    for rows in batches_of(len(ids), batch_size(ids.shape[1], vocabulary)):
        first: tuple[torch.Tensor, _Read] | None = None
        for model, own in zip(models, sums, strict=True):
            batch = ids[rows].to(model.device).long()
            out: Any = model(batch, use_cache=False)
            device = out.logits.device if first is None else first[0].device
            logits = out.logits[:, :-1].to(device)
            del out
            read = _read(logits, batch[:, 1:].to(device))
            own.tokens += read.top.numel()
            own.nll -= float(read.log_likelihood.sum())
            if first is None:
                first = (logits, read)
                own.agreed += read.top.numel()
            else:
                own.kl += _divergence(*first, logits, read)
                own.agreed += int((first[1].top == read.top).sum())
        progress("quality", rows.stop, len(ids))
    return [own.quality() for own in sums]
