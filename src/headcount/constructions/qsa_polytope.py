"""qSA with keys on a closed curve: exactly 2 q dimensions, for any N, at a high price in precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headcount import tasks
from headcount.constructions.base import Construction
from headcount.constructions.certificate import Certificate
from headcount.constructions.match_s import check_epsilon
from headcount.constructions.qsa import (
    LEAST_GAP,
    QSAModule,
    QueryMap,
    check_size,
    depth_for,
    sufficient_bits,
)
from headcount.errors import HeadcountError


class CurveKeys(QueryMap):
    """Keys u_t = (cos l theta_t, sin l theta_t) for l = 1..q, theta_t = 2 pi t/N; queries in closed form."""

    def __init__(self, tokens: int, sparsity: int, depth: float) -> None:
        super().__init__(depth)
        self.tokens = tokens
        # Angles are reduced mod N as integers, so that they carry one rounding whatever l t is.
        turns = torch.outer(torch.arange(tokens), torch.arange(1, sparsity + 1)) % tokens
        angles = turns.double() * (2 * math.pi / tokens)
        self.register_buffer("keys", torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))

    def separators(self, sets: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of -prod (1 - cos(theta - theta_j)), and its distance from 0 off the set."""
        return curve_query(sets, self.tokens), curve_gap(sets, self.tokens)


class PolytopeModule(QSAModule):
    """qSA with keys on the trigonometric moment curve."""

    def __init__(self, dim: int, tokens: int, sparsity: int, depth: float) -> None:
        super().__init__(dim, CurveKeys(tokens, sparsity, depth))
        self.settings = {"dim": dim, "tokens": tokens, "sparsity": sparsity, "depth": depth}

    @classmethod
    def restore(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> PolytopeModule:
        """From the saved numbers; the keys are part of them."""
        module = cls(**settings)
        module.queries.keys = tensors["queries.keys"]
        return module

    def wide_outputs(self, *arguments: Tensor, bits: int) -> NDArray[np.float64]:
        """``headcount.constructions.wide``."""
        from headcount.constructions.wide import polytope_outputs

        z, y = (argument.numpy() for argument in arguments)
        return np.stack([polytope_outputs(*row, self.settings["depth"], bits) for row in zip(z, y, strict=True)])


def curve_query(sets: Tensor, tokens: int) -> Tensor:
    """w_y (rows, 2q): <w_y, u_t> = -prod_{j in y} (1 - cos(theta_t - theta_j)) + a constant of y.

    Each factor is 1 - (e^{-i theta_j} e^{i theta} + c.c.)/2, so the product is a Laurent polynomial in
    e^{i theta} of degree q; with coefficients c_l it is c_0 + sum_l 2 Re(c_l) cos l theta - 2 Im(c_l) sin l
    theta. The constant c_0 drops out of the softmax.
    """
    q = sets.shape[1]
    angle = sets.double() * (2 * math.pi / tokens)
    coefficients = torch.zeros(len(sets), 2 * q + 1, dtype=torch.complex128)
    coefficients[:, q] = 1
    for j in range(q):
        half = 0.5 * torch.polar(torch.ones_like(angle[:, j]), -angle[:, j])[:, None]
        grown = coefficients.clone()
        grown[:, 1:] -= half * coefficients[:, :-1]
        grown[:, :-1] -= half.conj() * coefficients[:, 1:]
        coefficients = grown
    upper = -2 * coefficients[:, q + 1 :]
    return torch.cat([upper.real, -upper.imag], dim=1)


def curve_gap(sets: Tensor, tokens: int) -> Tensor:
    """min over t off y of prod_{j in y} (1 - cos(theta_t - theta_j)), to full relative accuracy: (rows,).

    Infinity becomes 1 where y holds every token.
    """
    factor = 2 * torch.sin(torch.arange(tokens, dtype=torch.float64) * (math.pi / tokens)).square()
    gaps = []
    for block in sets.split(512):
        value = torch.ones(len(block), tokens, dtype=torch.float64)
        for j in range(sets.shape[1]):
            distance = (torch.arange(tokens) - block[:, j : j + 1]) % tokens
            value *= factor[distance]
        gaps.append(value.scatter_(1, block, torch.inf).amin(1))
    return torch.cat(gaps).clamp(max=2.0**60)


def least_curve_gap(tokens: int, sparsity: int) -> float:
    """The gap of the worst set of all: the q points nearest to some t, prod_i (1 - cos(2 pi d_i / N)).

    d = 1, 1, 2, 2, 3, ...: the factor grows with the distance, so no set gives any t a smaller product. 1
    where the set holds every token.
    """
    if sparsity == tokens:
        return 1.0
    distances = np.minimum(np.arange(1, tokens), tokens - np.arange(1, tokens))
    nearest = np.sort(distances)[:sparsity]
    return float(np.prod(2 * np.sin(nearest * (math.pi / tokens)) ** 2))


def build_qsa_polytope(tokens: int = 64, sparsity: int = 2, dim: int = 8, epsilon: float = 1e-3) -> Construction:
    """Weights for qSA with exactly m = d' + 2q, any N, all inputs (Sanford et al. 2023, Theorem 3).

    The points of the moment curve are the vertices of a cyclic polytope, in which every q of them span a
    face: the trigonometric polynomial -prod_{j in y} (1 - cos(theta - theta_j)) is 0 on y and negative at
    every other point; its 2q coefficients beside the constant are the query. (The algebraic curve of the
    paper works as well; the closed one keeps all keys of one length and is far better conditioned.) Each
    query is scaled by depth / its own gap (``depth_for``).

    The gap is what makes it fragile: for q neighbours it is prod (1 - cos(2 pi d/N)), about
    (2 pi^2/N^2)^q (floor(q/2)!)^2 (ceil(q/2)!)^2 for q << N, so about 2 q log2(N/q) bits are needed. The
    coefficients of one factor have absolute sum 2, so those of the product at most 2^q; with the worst set's
    gap this bounds the rounding (``sufficient_bits``). Gaps below 1e-300, where float64 ends, are refused.
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
