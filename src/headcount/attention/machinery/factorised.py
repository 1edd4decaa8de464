"""Strassen attention by matrix products, with a certificate for each row that no significant term underflowed.

With a = scale <q1_i, k1_j>, b = scale <k1_j, k2_l>, c = scale <q2_i, k2_l> and the maxima beta_j = max_l
b_jl, alpha_i = max_j (a_ij + beta_j), gamma_i = max_l c_il over the keys allowed for row i, define

    E1_ij = exp(a_ij + beta_j - alpha_i),  E12_jl = exp(b_jl - beta_j),  E2_il = exp(c_il - gamma_i),   all <=
    1.

    Z_i = sum_jl E1_ij E12_jl E2_il,   out_ic = sum_j E1_ij v1_jc sum_l E12_jl E2_il v2_lc / Z_i,

and the log-sum-exp of row i is alpha_i + gamma_i + log Z_i. The inner sum over l, for all i and c of
a chunk of rows, is a single product of E12 with the matrix with entries E2_il v2_lc.

**Certificate.** alpha, beta and gamma need not be attained at the same pair (j, l); in that case every product is
small and may underflow. Let t be the smallest normal number. A factor, or a product of factors, that underflows is
below t, and since all other factors are at most 1, so is the lost term. A row loses at most n1 n2 t in
total, where n1 n2 is the number of its pairs. So ``Z_i >= n1 n2 t / eps`` proves that the lost part is at most eps
of Z_i, which is within the rounding error. Values are first scaled to at most 1 by powers of two, so that
the same holds for the numerators, relative to the largest value. In float32 at N = 1024 the threshold is
1e-25: a row fails if its largest logit is 57 below alpha_i + gamma_i.

The logits are computed and shifted in float64: their N^2 entries are cheap, and logits of size 1e4 keep their
fractional parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headcount.attention.machinery.autograd import accumulation_dtype
from headcount.attention.machinery.contraction import Exponentials, choose

BLOCK_NUMBERS = 2**18
"""Maximum number of E12 entries of groups processed together, unless a single group has more."""


@dataclass
class Between:
    """E12 and beta for a block of keys."""

    j: slice
    l: slice
    e12: Tensor
    beta: Tensor
    prepared: list[list[Tensor]]


@dataclass
class Chunk:
    """The scaled exponentials of some rows of some groups; shapes (g, r, j), (g, r, l), (g, j, l)."""

    g: slice
    r: slice
    between: Between
    given: Exponentials
    mixed: Tensor
    """sum_l E12_jl E2_il, (g, r, j)."""
    z: Tensor
    lse: Tensor
    certified: Tensor


def chunks(
    q1: Tensor,
    q2: Tensor,
    k1: Tensor,
    k2: Tensor,
    ranges: Tensor,
    scale: float,
    row_step: int,
    prepare: Callable[[Tensor], list[list[Tensor]]],
) -> Iterator[Chunk]:
    """Split the work into chunks; consecutive chunks with the same block of keys share their Between object."""
    wide = accumulation_dtype(q1.dtype)
    groups, rows = q1.shape[:2]
    tokens = k1.shape[1]
    row_step = min(rows, row_step)
    group_step = min(groups, max(1, BLOCK_NUMBERS // (tokens * max(tokens, row_step))))
    bounds = ranges.cpu()
    for g_start in range(0, groups, group_step):
        g = slice(g_start, min(g_start + group_step, groups))
        between = None
        for r_start in range(0, rows, row_step):
            r = slice(r_start, min(r_start + row_step, rows))
            part = bounds[g, :, :, r]
            j, l = (
                slice(int(part[:, side, 0].min()), max(int(part[:, side, 1].max()), int(part[:, side, 0].min())))
                for side in (0, 1)
            )
            if j.stop == j.start or l.stop == l.start:
                continue
            if between is None or (between.j, between.l) != (j, l):
                b = (k1[g, j].double() * scale) @ k2[g, l].double().mT
                beta = b.amax(-1)
                e12 = b.sub_(beta[..., None]).to(wide).exp_()
                between = Between(j, l, e12, beta, prepare(e12))
            yield _chunk(q1, q2, k1, k2, ranges, scale, g, r, between, wide)


def _chunk(
    q1: Tensor,
    q2: Tensor,
    k1: Tensor,
    k2: Tensor,
    ranges: Tensor,
    scale: float,
    g: slice,
    r: slice,
    between: Between,
    wide: torch.dtype,
) -> Chunk:
    j, l = between.j, between.l
    a = ((q1[g, r].double() * scale) @ k1[g, j].double().mT).add_(between.beta[:, None])
    c = (q2[g, r].double() * scale) @ k2[g, l].double().mT
    e1, alpha = _scaled_exponential(a, ranges[g, 0, :, r], j, wide)
    e2, gamma = _scaled_exponential(c, ranges[g, 1, :, r], l, wide)
    mixed = e2 @ between.e12.mT
    z = (e1 * mixed).sum(-1)
    info = torch.finfo(wide)
    pairs = (j.stop - j.start) * (l.stop - l.start)
    some = (ranges[g, :, 1, r] > ranges[g, :, 0, r]).all(1)
    certified = (z >= pairs * info.tiny / info.eps) | ~some
    lse = torch.where(some, alpha + gamma + z.double().log(), -torch.inf).to(wide)
    starts = torch.tensor([j.start, j.start, l.start, l.start], dtype=ranges.dtype, device=ranges.device)
    inside = ranges[g, :, :, r].flatten(1, 2) - starts[:, None]
    exponentials = Exponentials(e1, e2, between.e12, inside, between.prepared)
    return Chunk(g, r, between, exponentials, mixed, torch.where(some & certified, z, 1.0), lse, certified)


def _widest(ranges: Tensor) -> int:
    return int((ranges[:, :, 1] - ranges[:, :, 0]).amax().clamp(min=1))


def _scaled_exponential(logits: Tensor, ranges: Tensor, keys: slice, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """exp(logits - row maximum), zero outside the ranges (g, 2, rows), and the row maxima."""
    low, high = ranges[:, 0, :, None], ranges[:, 1, :, None]
    if bool((low > keys.start).any() | (high < keys.stop).any()):
        place = torch.arange(keys.start, keys.stop, device=logits.device)
        logits = logits.masked_fill_((place < low) | (place >= high), -torch.inf)
    top = logits.amax(-1)
    top = torch.where(top == -torch.inf, 0.0, top)
    return logits.sub_(top[..., None]).to(wide).exp_(), top


def normalised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values divided by a power of two per group, so that they are at most 1, and the powers (g, 1, 1)."""
    largest = values.abs().amax((1, 2), keepdim=True)
    exponent = torch.where(largest > 0, torch.frexp(largest).exponent, 0)
    return torch.ldexp(values, -exponent), torch.ldexp(torch.ones_like(largest), exponent)


def forward(
    q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, ranges: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Out (G, R, e), lse (G, R), and which rows are certified (G, R); the other rows are undefined."""
    wide = accumulation_dtype(q1.dtype)
    out = q1.new_zeros((*q1.shape[:2], v1.shape[-1]), dtype=wide)
    lse = torch.full(q1.shape[:2], -torch.inf, dtype=wide, device=q1.device)
    certified = torch.ones(q1.shape[:2], dtype=torch.bool, device=q1.device)
    (v1, unit1), (v2, unit2) = normalised(v1.to(wide)), normalised(v2.to(wide))
    way = choose("strassen", q1)
    step, prepare = (
        way.row_step(k1.shape[1], v1.shape[-1], _widest(ranges)),
        partial(way.prepare, backward=False),
    )
    for chunk in chunks(q1, q2, k1, k2, ranges, scale, step, prepare):
        g, r, block = chunk.g, chunk.r, chunk.between
        summed = way.forward(chunk.given, v1[g, block.j], v2[g, block.l])
        out[g, r] = summed / chunk.z[..., None] * unit1[g] * unit2[g]
        lse[g, r], certified[g, r] = chunk.lse, chunk.certified
    return out, lse, certified


def backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q1: Tensor,
    q2: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    out: Tensor,
    ranges: Tensor,
    scale: float,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients of the six tensors through the certified rows, and the mask of those rows.

    With P_ijl the weights and dS = P (sum_c g_ic v1_jc v2_lc - offset_i): da = sum_l dS, dc = sum_j dS, db =
    sum_i dS, each again a matrix product with E12 or of the matrices of a chunk.
    """
    wide = accumulation_dtype(q1.dtype)
    certified = torch.ones(q1.shape[:2], dtype=torch.bool, device=q1.device)
    wides = [tensor.to(wide) for tensor in (q1, q2, k1, k2)]
    grad, offset = grad_out.to(wide), (grad_out.to(wide) * out.to(wide)).sum(-1) - grad_lse.to(wide)
    dq1, dq2, dk1, dk2 = (torch.zeros_like(tensor) for tensor in wides)
    dv1, dv2 = torch.zeros_like(v1, dtype=wide), torch.zeros_like(v2, dtype=wide)
    (v1, unit1), (v2, unit2) = normalised(v1.to(wide)), normalised(v2.to(wide))
    wide_q1, wide_q2, wide_k1, wide_k2 = wides
    pending: tuple[slice, Between, Tensor] | None = None

    def flush() -> None:
        if pending is None:
            return
        g, block, cross = pending
        db = cross * block.e12 * scale
        dk1[g, block.j] += db @ wide_k2[g, block.l]
        dk2[g, block.l] += db.mT @ wide_k1[g, block.j]

    way = choose("strassen backward", q1)
    step, prepare = (
        way.row_step(k1.shape[1], v1.shape[-1], _widest(ranges)),
        partial(way.prepare, backward=True),
    )
    for chunk in chunks(q1, q2, k1, k2, ranges, scale, step, prepare):
        g, r, block, e1, e2 = chunk.g, chunk.r, chunk.between, chunk.given.e1, chunk.given.e2
        j, l = block.j, block.l
        certified[g, r] = chunk.certified
        if pending is None or pending[1] is not block:
            flush()
            pending = g, block, torch.zeros_like(block.e12)
        share = torch.where(chunk.certified, 1 / chunk.z, 0.0)[..., None]
        shift = offset[g, r, None] * share
        pulled = way.backward(chunk.given, v1[g, j], v2[g, l], grad[g, r] * share * unit1[g] * unit2[g])
        dv1[g, j] += pulled.dv1 / unit1[g]
        dv2[g, l] += pulled.dv2 / unit2[g]
        pending[2].add_(pulled.cross - (e1 * shift).mT @ e2)
        da = e1 * (pulled.first - shift * chunk.mixed) * scale
        dc = e2 * (pulled.second - shift * (e1 @ block.e12)) * scale
        dq1[g, r], dq2[g, r] = da @ wide_k1[g, j], dc @ wide_k2[g, l]
        dk1[g, j] += da.mT @ wide_q1[g, r]
        dk2[g, l] += dc.mT @ wide_q2[g, r]
    flush()
    return (dq1, dq2, dk1, dk2, dv1, dv2), certified
