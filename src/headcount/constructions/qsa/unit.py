"""Shared parts of both qSA constructions: the module, the logit levels, and the rounding analysis."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from headcount.constructions.attention import AttentionUnit
from headcount.constructions.base import ConstructionModule
from headcount.core.errors import HeadcountError
from headcount.pbit.simulate import TokenMap

LEAST_GAP = 1e-300
"""Gap assigned to a set without separation so that its query stays finite; its tokens are answered incorrectly."""
NUMBERS_LIMIT = 2**27
"""Maximum number of entries of one matrix or one sequence: 1 GiB in float64."""


class QueryMap(TokenMap):
    """The token map of qSA from sets to queries, each scaled so that its gap becomes ``depth``.

    Subclasses implement ``separators``, which maps sets (rows, q) to vectors w (rows, k) and gaps (rows,).
    """

    keys: Tensor

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.depth = depth

    def separators(self, sets: Tensor) -> tuple[Tensor, Tensor]:
        """The vector w and the gap for each set."""
        raise NotImplementedError  # nn.Module is no ABC: without this a bare class would answer None

    def map(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """y (batch, N, q) to queries (batch, N, k)."""
        (y,) = inputs
        w, gaps = self.separators(y.flatten(0, 1))
        scale = self.depth / gaps.clamp(min=LEAST_GAP)
        return ((w * scale[:, None]).reshape(*y.shape[:2], -1),)


class QSAModule(ConstructionModule):
    """z (batch, N, d') and y (batch, N, q) to (batch, N, d'): one head, one layer.

    The token map gives queries (0; w_y) and keys with values (z; u_i), both of width m = d' + k. W_Q and W_K
    read the last k coordinates, W_V the first d'. W_Q, W_K, W_V are 0 and 1; the scale is in the query.
    """

    input_names: ClassVar[tuple[str, ...]] = ("z", "y")

    def __init__(self, dim: int, queries: QueryMap) -> None:
        super().__init__()
        self.queries = queries
        key_dim = queries.keys.shape[1]
        width = dim + key_dim
        eye = torch.eye(width, dtype=torch.float64)
        self.unit = AttentionUnit(eye[None, :, dim:], eye[None, None, :, dim:], eye[None, None, :, :dim])

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """The means."""
        (w,) = self.queries(y)
        dtype = self.unit.w_q.dtype
        w, z = w.to(dtype), z.to(dtype)
        keys = self.queries.keys.to(dtype).expand(len(z), -1, -1)
        means: Tensor = self.unit(torch.cat([torch.zeros_like(z), w], dim=-1), torch.cat([z, keys], dim=-1))
        return means


def check_size(tokens: int, sparsity: int, dim: int, key_dim: int) -> None:
    """Raise if the keys, matrices or sequences would not fit in memory (``NUMBERS_LIMIT``)."""
    width = dim + key_dim
    for what, numbers in (
        (f"{tokens} tokens of {width} numbers", tokens * width),
        (f"{tokens} sets of {sparsity} tokens", tokens * sparsity),
        (f"matrices of {width} rows and columns", width * width),
    ):
        if numbers > NUMBERS_LIMIT:
            raise HeadcountError(f"{what} are more than {NUMBERS_LIMIT:,} numbers", fix="choose smaller sizes")


def depth_for(tokens: int, sparsity: int, epsilon: float) -> float:
    """Logit difference alpha * gap that gives an error of at most epsilon / 2 in exact arithmetic.

    The mass off the set is rho <= (N-q)/q exp(-depth), and the output is (1 - rho) mean + rho (a convex
    combination of vectors of norm at most 1), so the error is at most 2 rho, and depth = log(4 (N-q)/(q
    epsilon)) suffices. It is never below 0: where the logarithm is negative, uniform attention (depth 0) has
    rho = (N-q)/N <= (N-q)/q < epsilon/4 already, while negative logits would move attention off the set.

    >>> round(depth_for(24, 12, 0.25), 3), depth_for(24, 23, 0.49), depth_for(5, 5, 1e-3)
    (2.773, 0.0, 0.0)
    """
    others = tokens - sparsity
    # A difference of logarithms: the quotient overflows for the smallest epsilons.
    return max(0.0, math.log(4 * others / sparsity) - math.log(epsilon)) if others else 0.0


def sufficient_bits(log2_terms: float, key_dim: int, tokens: int, depth: float, epsilon: float) -> int:
    """Significand bits for which rounding contributes at most the other epsilon / 2.

    ``log2_terms``: log2 of the largest sum over c of |w_c u_jc| of a scaled query (minus infinity if the
    query is 0). A logit carries per term 3 roundings (query, key, product) and ceil(log2 k) of the tree, so
    it is off by delta <= u (3 + ceil(log2 k)) terms, plus u * depth from the subtraction in the softmax.
    Weights then change by a factor e^(+-2 delta), which moves the mean on the set by at most 2 (e^(2 delta) -
    1) ~ 4 delta and multiplies the mass off it by e^(2 delta). Rounding the values, the weights (exponential,
    quotient), their products and the sums' trees of depth log2 N moves the output by at most u (2 log2 N +
    6). The total is at most epsilon / 2 if

        u (5 ((3 + ceil(log2 k)) terms + depth) + 2 ceil(log2 N) + 6) <= epsilon / 2.
    """
    per_term = 5 * (3 + math.ceil(math.log2(key_dim)))
    rest = 5 * depth + 2 * math.ceil(math.log2(tokens)) + 6
    # In logarithms, because terms has up to 2000 bits.
    if log2_terms > 0:
        log2_total = log2_terms + math.log2(per_term + rest * 2**-log2_terms)
    else:
        log2_total = math.log2(per_term * 2**log2_terms + rest)
    return math.ceil(1 + log2_total - math.log2(epsilon))
