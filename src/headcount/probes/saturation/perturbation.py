"""Effect on attention rows of reducing a head's logits to rank r, compared with the softmax perturbation bounds.

A row is one query of one head: s its logits over the L visible keys, s' those of rank r (``saturation``), p and p'
their softmax, o and o' the outputs. For each row, in float64:

    delta = half the range of s' - s over the visible keys          b = half of the larger range of s and s'
    TV = (1/2) sum_j |p_j - p'_j|                                   ||p - p'||_2^2, ||o - o'||^2
    tr S = mean_j |v_j|^2 - |mean_j v_j|^2                          radius = max_j |v_j - mean_j v_j|

``saturation.inequalities`` proves TV <= tanh(delta/2), ||p - p'||_2^2 <= 2 tanh(delta/2) e^(2b) / L, and
||o - o'|| <= 2 tanh(delta/2) radius. E||o - o'||^2 = tr(S) ||p - p'||_2^2 requires values independent of the logits
and of each other, which does not hold in a model: it is reported but not counted as a bound.

Letters: H query heads, K ranks, R sampled queries, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from headcount.pretrained.running.capture import AttentionCall
from headcount.probes.saturation.inequalities import bounds_of_rows
from headcount.probes.saturation.ranks import HeadForms, hidden_keys
from headcount.probes.saturation.record import BoundRecord

ROUNDING = 1e-9
"""Tolerance for violations: the softmax of float64 logits up to 1e4 has an error of about 1e-12."""
CHUNK = 2**22
"""Maximum elements of one float64 array of logits: 32 MiB."""
BY_RANK = ("half_range", "logit_bound", "total_variation", "squared_distance", "output_error")
BY_ROW = ("tokens", "value_trace", "value_radius")
MEASURES = (*BY_RANK, *BY_ROW)


def bound_ranks(width: int) -> list[int]:
    """The ranks at which rows are measured: an eighth, a quarter, a half and three quarters of the dimensions.

    >>> bound_ranks(64), bound_ranks(2)
    ([8, 16, 32, 48], [1])
    """
    return sorted({max(1, width * eighths // 8) for eighths in (1, 2, 4, 6)})


def window_rows(
    call: AttentionCall, window: int, positions: torch.Tensor, forms: HeadForms, ranks: Sequence[int]
) -> dict[str, torch.Tensor]:
    """One window's rows: ``BY_RANK`` (H, K, R) and ``BY_ROW`` (H, R), float64, on the CPU."""
    groups = call.q.shape[1] // call.k.shape[1]
    q = call.q[window, :, positions].detach().double()
    bias = hidden_keys(call, window, positions).double()
    bias = bias.expand(q.shape[0], *bias.shape[-2:])
    size = max(1, CHUNK // bias[0].numel())
    parts = []
    for heads in torch.arange(q.shape[0]).split(size):
        k, v = (side[window, heads // groups].detach().double() for side in (call.k, call.v))
        centred = k - forms.mean[heads].to(k.device)[:, None]
        a, b = (side[heads].to(k.device) for side in (forms.a, forms.b))
        parts.append(_rows_of_heads(q[heads], centred, v, a * call.scaling, b, bias[heads], ranks))
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in MEASURES}


def _rows_of_heads(
    q: torch.Tensor,
    centred: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor,
    ranks: Sequence[int],
) -> dict[str, torch.Tensor]:
    hidden = bias == -torch.inf
    visible = (~hidden).double()
    tokens = visible.sum(-1)
    means = visible @ v / tokens[..., None]
    distances = v.square().sum(-1)[:, None] - 2 * means @ v.transpose(1, 2) + means.square().sum(-1)[..., None]
    distances = distances.clamp_min(0.0)
    by_rank: dict[str, list[torch.Tensor]] = {name: [] for name in BY_RANK}
    queries, keys = q @ a, centred @ b.transpose(1, 2)
    exact = queries @ keys.transpose(1, 2) + bias
    weights = exact.softmax(-1)
    spread = _range(exact, hidden)
    for rank in ranks:
        moved = queries[..., :rank] @ keys[..., :rank].transpose(1, 2) + bias
        change = (moved - exact).masked_fill(hidden, 0.0)
        apart = moved.softmax(-1) - weights
        by_rank["half_range"].append(_range(change, hidden) / 2)
        by_rank["logit_bound"].append(torch.maximum(spread, _range(moved, hidden)) / 2)
        by_rank["total_variation"].append(apart.abs().sum(-1) / 2)
        by_rank["squared_distance"].append(apart.square().sum(-1))
        by_rank["output_error"].append((apart @ v).square().sum(-1).sqrt())
    return {name: torch.stack(rows, 1) for name, rows in by_rank.items()} | {
        "tokens": tokens,
        "value_trace": (distances * visible).sum(-1) / tokens,
        "value_radius": distances.masked_fill(hidden, 0.0).amax(-1).sqrt(),
    }


def _range(rows: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    return rows.masked_fill(hidden, -torch.inf).amax(-1) - rows.masked_fill(hidden, torch.inf).amin(-1)


def bound_records(rows: Mapping[str, np.ndarray], ranks: Sequence[int]) -> list[BoundRecord]:
    """Medians over rows, one record per rank; ``BY_RANK`` (..., K, R) and ``BY_ROW`` (..., R)."""
    records = []
    tokens, trace, radius = (rows[name] for name in BY_ROW)
    for place, rank in enumerate(ranks):
        delta, reach, apart, squared, error = (rows[name][..., place, :] for name in BY_RANK)
        bounds = bounds_of_rows(delta, reach, tokens)
        error_bound = 2 * bounds.total_variation * radius
        broken = (
            (apart > bounds.total_variation + ROUNDING)
            | (squared > bounds.sharper + ROUNDING)
            | (squared > bounds.squared_distance + ROUNDING)
            | (error > error_bound + ROUNDING * (1 + radius))
        )
        medians = {
            "half_range": delta,
            "logit_bound": reach,
            "total_variation": apart,
            "total_variation_bound": bounds.total_variation,
            "squared_distance": squared,
            "squared_bound": bounds.squared_distance,
            "sharper_bound": bounds.sharper,
            "output_error": error,
            "output_error_bound": error_bound,
            "independent_output_error": np.sqrt(trace * squared),
            "independent_output_error_bound": np.sqrt(trace * bounds.squared_distance),
        }
        records.append(
            BoundRecord(
                rank=rank,
                rows=delta.size,
                violations=int(broken.sum()),
                # max_j |p_j - p'_j| <= TV, so the first inequality alone gives ||p - p'||^2 <= 2 tanh(delta/2)^2.
                long_context_says_more=float(np.mean(bounds.squared_distance < 2 * np.square(bounds.total_variation))),
                **{name: float(f"{np.median(values):.4g}") for name, values in medians.items()},
            )
        )
    return records
