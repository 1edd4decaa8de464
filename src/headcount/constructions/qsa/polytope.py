"""qSA with keys on a closed curve: exactly 2 q dimensions, for any N, at a high cost in precision."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headcount import tasks
from headcount.constructions.base import Construction, check_epsilon
from headcount.constructions.certificate import Certificate
from headcount.constructions.qsa.curve import curve_gap, curve_query, least_curve_gap
from headcount.constructions.qsa.unit import LEAST_GAP, QSAModule, QueryMap, check_size, depth_for, sufficient_bits
from headcount.constructions.qsa.wide import polytope_outputs
from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject


class CurveKeys(QueryMap):
    """Keys u_t = (cos l theta_t, sin l theta_t) for l = 1..q, theta_t = 2 pi t/N; queries in closed form."""

    def __init__(self, tokens: int, sparsity: int, depth: float) -> None:
        super().__init__(depth)
        self.tokens = tokens
        # Angles are reduced mod N as integers, so each has a single rounding error for any l t.
        turns = torch.outer(torch.arange(tokens), torch.arange(1, sparsity + 1)) % tokens
        angles = turns.double() * (2 * math.pi / tokens)
        self.register_buffer("keys", torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))

    def separators(self, sets: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of -prod (1 - cos(theta - theta_j)), and its minimum distance from 0 off the set."""
        return curve_query(sets, self.tokens), curve_gap(sets, self.tokens)


class PolytopeModule(QSAModule):
    """qSA with keys on the trigonometric moment curve."""

    def __init__(self, dim: int, tokens: int, sparsity: int, depth: float) -> None:
        super().__init__(dim, CurveKeys(tokens, sparsity, depth))
        self.settings = {"dim": dim, "tokens": tokens, "sparsity": sparsity, "depth": depth}

    @classmethod
    def restore(cls, settings: JsonObject, tensors: dict[str, Tensor]) -> PolytopeModule:
        """Restore the module from saved settings and tensors, which include the keys."""
        module = cls(**settings)
        module.queries.keys = tensors["queries.keys"]
        return module

    def wide_outputs(self, *arguments: Tensor, bits: int) -> NDArray[np.float64]:
        """See ``headcount.constructions.qsa.wide``."""
        z, y = (argument.numpy() for argument in arguments)
        return np.stack([polytope_outputs(*row, self.settings["depth"], bits) for row in zip(z, y, strict=True)])


def build_qsa_polytope(tokens: int = 64, sparsity: int = 2, dim: int = 8, epsilon: float = 1e-3) -> Construction:
    """Weights for qSA with exactly m = d' + 2q, any N, all inputs (Sanford et al. 2023, Theorem 3).

    The points of the moment curve are the vertices of a cyclic polytope, in which every q of them span a
    face: the trigonometric polynomial -prod_{j in y} (1 - cos(theta - theta_j)) is 0 on y and negative at
    every other point; its 2q non-constant coefficients are the query. (The algebraic curve of the
    paper works as well; the closed one keeps all keys of one length and is far better conditioned.) Each
    query is scaled by depth / gap of its set (``depth_for``).

    The small gap makes it sensitive to rounding: for q neighbours the gap is prod (1 - cos(2 pi d/N)), about
    (2 pi^2/N^2)^q (floor(q/2)!)^2 (ceil(q/2)!)^2 for q << N, so about 2 q log2(N/q) bits are needed. The
    coefficients of one factor have absolute sum 2, so those of the product at most 2^q; with the gap of
    the worst set this bounds the rounding (``sufficient_bits``). Gaps below 1e-300 (float64 underflow) are rejected.
    """
    task = tasks.get("qsa", tokens=tokens, sparsity=sparsity, dim=dim)
    check_epsilon(epsilon)
    check_size(tokens, sparsity, dim, 2 * sparsity)
    depth = depth_for(tokens, sparsity, epsilon)
    gap = least_curve_gap(tokens, sparsity)
    if gap < LEAST_GAP:
        raise HeadcountError(
            f"the gap of {sparsity} neighbours among {tokens} tokens is below {LEAST_GAP:g}",
            fix="choose a smaller sparsity, or qsa-certificate",
        )
    # |2 c_l| over cosines and sines is at most sqrt(2) times the sum of the complex coefficients.
    log2_terms = 0.5 + sparsity + math.log2(depth / gap) if depth else -math.inf
    certificate = Certificate(
        name="qsa-polytope",
        embedding_dim=dim + 2 * sparsity,
        single_map_dim=dim + 4 * sparsity,
        heads=1,
        layers=1,
        order=2,
        guarantee="all inputs",
        gap=gap,
        scale=depth / gap,
        epsilon=epsilon,
        bits=sufficient_bits(log2_terms, 2 * sparsity, tokens, depth, epsilon),
    )
    return Construction(task, PolytopeModule(dim, tokens, sparsity, depth), certificate)
