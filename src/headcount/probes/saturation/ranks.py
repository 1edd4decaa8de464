"""Number of query/key dimensions that a head uses: its output error when its logits are reduced to rank r.

A head's logits are a bilinear form of queries and keys (after the rotary embedding), s_ij = c <q_i, k_j>. A vector m
common to all keys shifts each row by a constant, to which softmax is invariant, so keys are centred. With
C_q = E[q q'], C_k = Cov(k), m = E[k], over queries and keys drawn independently from the same windows, the best form of
rank r is

    min over M of rank r of E (q' (I - M) (k - m))^2 = ||C_q^(1/2) (I - M) C_k^(1/2)||_F^2
    M = P_r = C_k^(1/2) V_r V_r' C_k^(-1/2),    V_r: the r leading eigenvectors of C_k^(1/2) C_q C_k^(1/2)

(Eckart-Young; the value is the sum of the other eigenvalues). It is ``spectra.directions`` with the metric C_q. Queries
then keep the r numbers V_r' C_k^(1/2) q and keys the r numbers V_r' C_k^(-1/2) (k - m). The choice of
directions ignores the dependence of a query on preceding keys and the larger weight of attended keys. The error does
not: it is measured on the head's actual output, on windows not used for the moments:

    e_r = sqrt( sum_i |o_i^r - o_i|^2 / sum_i |o_i|^2 ),   o_i^r = sum_j softmax_j(c q_i' P_r (k_j - m)) v_j

for r = 0 (uniform over visible keys) to d (exact); the absolute error is e_r times sqrt(mean_i |o_i|^2). The saturation
rank at a tolerance is the smallest r such that no error at rank r or above exceeds it. With grouped queries every query
head has its own P_r on the shared keys.

Letters: W windows, H query heads, K key-value heads, T tokens, R sampled queries, d and e dimensions of keys and
values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headcount.pretrained.running.capture import AttentionCall
from headcount.trimming.audit.spectra import directions

TOLERANCES = (0.01, 0.05, 0.1)
"""Relative output errors at which saturation ranks are computed."""


def saturation_rank(errors: Sequence[float] | np.ndarray, tolerance: float) -> int:
    """The smallest rank at and above which the error is within ``tolerance``; ``errors``: at ranks 0..d.

    >>> saturation_rank([1.0, 0.04, 0.2, 0.03, 0.0], 0.05)
    3
    """
    return int(saturation_ranks(np.asarray(errors), tolerance))


def saturation_ranks(errors: np.ndarray, tolerance: float) -> np.ndarray:
    """``saturation_rank`` for many curves: (..., d + 1) -> (...)."""
    above = errors > tolerance
    above[..., -1] = False  # the full rank is exact up to rounding
    last = errors.shape[-1] - 1 - np.argmax(above[..., ::-1], axis=-1)
    return np.where(above.any(-1), last + 1, 0)


def looked_at(context: int, count: int) -> torch.Tensor:
    """Positions of up to ``count`` queries, evenly spaced over the second half of the window.

    >>> looked_at(16, 4)
    tensor([ 9, 11, 13, 15])
    """
    half = context - context // 2
    count = min(count, half)
    return context - 1 - (torch.arange(count - 1, -1, -1) * half) // count


@dataclass(frozen=True)
class HeadForms:
    """The nested forms of each query head: s_ij^r = sum over a < r of c (q' A)_a (B (k - m))_a.

    mean (H, d): m; a (H, d, d): C_k^(1/2) V; b (H, d, d): V' C_k^(-1/2); energies (H, d): eigenvalues of
    C_k^(1/2) C_q C_k^(1/2) in descending order, the logit energy per component; float64, on the CPU.
    """

    mean: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    energies: torch.Tensor

    def query_maps(self, ranks: Sequence[int]) -> torch.Tensor:
        """(H, d, d): matrices that multiply queries (as rows) so that the logits of head h have rank ``ranks[h]``.

        q' P_r k = q' P_r (k - m) + q' P_r m, and the last term is equal for all keys, so keys stay unchanged.
        """
        width = self.a.shape[-1]
        mask = (torch.arange(width) < torch.tensor(list(ranks))[:, None]).double()
        return self.a * mask[:, None, :] @ self.b


def head_forms(calls: Sequence[AttentionCall], windows: Sequence[Sequence[int]]) -> HeadForms:
    """The forms of the heads of one layer, computed from the chosen windows of each call."""
    n_heads, d = calls[0].q.shape[1], calls[0].q.shape[3]
    n_kv_heads = calls[0].k.shape[1]
    c_q = torch.zeros(n_heads, d, d, dtype=torch.float64)
    c_k, mean = torch.zeros(n_kv_heads, d, d, dtype=torch.float64), torch.zeros(n_kv_heads, d, dtype=torch.float64)
    count = 0
    for call, chosen in zip(calls, windows, strict=True):
        q = call.q[list(chosen)].detach().cpu().double().transpose(0, 1).flatten(1, 2)
        k = call.k[list(chosen)].detach().cpu().double().transpose(0, 1).flatten(1, 2)
        c_q += q.transpose(1, 2) @ q
        c_k += k.transpose(1, 2) @ k
        mean += k.sum(1)
        count += q.shape[1]
    groups = n_heads // n_kv_heads
    head_directions = [
        directions(mean[h // groups] / count, c_k[h // groups] / count, c_q[h] / count) for h in range(n_heads)
    ]
    return HeadForms(
        torch.stack([head.mean for head in head_directions]),
        torch.stack([head.root @ head.vectors for head in head_directions]),
        torch.stack([head.vectors.T @ head.inverse_root for head in head_directions]),
        torch.stack([head.energies for head in head_directions]),
    )


def hidden_keys(call: AttentionCall, window: int, positions: torch.Tensor) -> torch.Tensor:
    """The attention bias for some queries of one window: (R, T) or (H, R, T); -inf masks a key."""
    tokens = call.k.shape[2]
    bias = torch.zeros(len(positions), tokens, device=call.q.device)
    if call.mask is not None:
        rows = call.mask[min(window, len(call.mask) - 1)][:, positions, :tokens]
        rows = bias.masked_fill(~rows, -torch.inf) if rows.dtype == torch.bool else rows.float()
        return rows.masked_fill(rows <= torch.finfo(rows.dtype).min / 2, -torch.inf)
    if getattr(call.module, "is_causal", True):
        hidden = torch.arange(tokens, device=bias.device) > positions[:, None].to(bias.device)
        bias = bias.masked_fill(hidden, -torch.inf)
    return bias


def window_errors(
    call: AttentionCall, window: int, positions: torch.Tensor, forms: HeadForms
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared errors by head and rank, squared norms of the outputs, and mean logit range for one window.

    Returns (H, d + 1), (H,), (H,), float64. The range is the largest minus the smallest visible logit of a query.
    """
    groups = call.q.shape[1] // call.k.shape[1]
    q = call.q[window, :, positions].detach().double()
    k = call.k[window].detach().double().repeat_interleave(groups, dim=0)
    v = call.v[window].detach().float().repeat_interleave(groups, dim=0)
    device = q.device
    centred = k - forms.mean.to(device)[:, None]
    a = (q @ forms.a.to(device) * call.scaling).float()
    b = (centred @ forms.b.to(device).transpose(1, 2)).float()
    bias = hidden_keys(call, window, positions)
    exact = (q @ centred.transpose(1, 2) * call.scaling).float() + bias
    outputs = exact.softmax(-1) @ v
    low = exact.masked_fill(exact == -torch.inf, torch.inf).amin(-1)
    spread = (exact.amax(-1) - low).double().mean(-1)
    logits = torch.zeros_like(exact) + bias
    errors = []
    for rank in range(a.shape[-1] + 1):
        if rank:
            logits.addcmul_(a[:, :, rank - 1 : rank], b[:, None, :, rank - 1])
        errors.append((logits.softmax(-1) @ v - outputs).double().square().sum((1, 2)))
    return torch.stack(errors, -1).cpu(), outputs.double().square().sum((1, 2)).cpu(), spread.cpu()


def relative(squares: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """e_r from sums: (..., d + 1) and (...) -> (..., d + 1); a head with zero output has zero error."""
    safe = np.where(lengths > 0, lengths, 1.0)
    return np.sqrt(squares / safe[..., None])
