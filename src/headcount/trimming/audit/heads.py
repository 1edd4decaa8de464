"""Statistics of each head's attention: entropy, peak weight, and logit range.

The attention matrix is quadratic in the context, so it is sampled at every ``STRIDE``-th query of a window;
averages are over those queries. Each sampled query covers all keys of its head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headcount.pretrained.running.capture import AttentionCall

STRIDE = 16
"""One in this many queries is sampled."""

_FIELDS = ("entropy", "strongest", "first", "logit_range", "logit_peak")


@dataclass(frozen=True)
class Rows:
    """Attention of the sampled queries: positions (R,), logits and weights (batch, n_heads, R, tokens), float32.

    Invisible keys have logit -inf and weight 0.
    """

    positions: torch.Tensor
    logits: torch.Tensor
    weights: torch.Tensor


def attention_rows(call: AttentionCall, stride: int) -> Rows:
    """The attention of every ``stride``-th query, counted from the last one."""
    tokens = call.q.shape[2]
    positions = torch.arange(tokens - 1, -1, -stride, device=call.q.device).flip(0)
    groups = call.q.shape[1] // call.k.shape[1]
    q = call.q.detach()[:, :, positions].float()
    k = call.k.detach().float().repeat_interleave(groups, dim=1)
    logits = q @ k.transpose(-1, -2) * call.scaling
    if call.mask is not None:
        rows = call.mask[..., positions, : logits.shape[-1]]
        logits = logits.masked_fill(~rows, -torch.inf) if rows.dtype == torch.bool else logits + rows
    elif getattr(call.module, "is_causal", True):
        hidden = torch.arange(tokens, device=q.device) > positions[:, None]
        logits = logits.masked_fill(hidden, -torch.inf)
    return Rows(positions, logits, logits.softmax(-1))


class HeadStatistics:
    """Averages over queries for each head, in float64.

    entropy: of a query's weights, in nats; strongest: its largest weight; first: its weight on the window's
    first token; logit_range: largest minus smallest visible logit; logit_peak: the largest |logit| ever seen.
    """

    def __init__(self, n_heads: int) -> None:
        self.queries = torch.zeros((), dtype=torch.float64)
        self.sums = {name: torch.zeros(n_heads, dtype=torch.float64) for name in _FIELDS}

    def add(self, rows: Rows) -> None:
        """Add the rows of one batch."""
        weights, logits = rows.weights, rows.logits
        visible = logits > torch.finfo(logits.dtype).min / 2
        entropy = torch.special.entr(weights).sum(-1)
        top = logits.amax(-1)
        bottom = logits.masked_fill(~visible, torch.inf).amin(-1)
        batches, _, queries, _ = weights.shape
        self.queries += batches * queries
        for name, value in (
            ("entropy", entropy),
            ("strongest", weights.amax(-1)),
            ("first", weights[..., 0]),
            ("logit_range", top - bottom),
        ):
            self.sums[name] += value.double().sum((0, 2)).cpu()
        peak = torch.maximum(top.abs(), bottom.abs()).double().amax((0, 2)).cpu()
        self.sums["logit_peak"] = torch.maximum(self.sums["logit_peak"], peak)

    def averages(self) -> list[dict[str, float]]:
        """The averages, one mapping per head."""
        count = float(self.queries)
        scaled = {name: s if name == "logit_peak" else s / max(count, 1.0) for name, s in self.sums.items()}
        return [{name: float(scaled[name][h]) for name in _FIELDS} for h in range(len(self.sums["first"]))]

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """All sums by name, to be saved."""
        return {f"{prefix}.heads.queries": self.queries} | {
            f"{prefix}.heads.{name}": tensor for name, tensor in self.sums.items()
        }

    def restore(self, prefix: str, saved: dict[str, torch.Tensor]) -> None:
        """Restore the sums from the output of ``tensors``."""
        self.queries = saved[f"{prefix}.heads.queries"]
        self.sums = {name: saved[f"{prefix}.heads.{name}"] for name in _FIELDS}
