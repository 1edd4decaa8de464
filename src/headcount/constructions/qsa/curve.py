"""The trigonometric moment curve: queries that separate a set of its points, and their gaps."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


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

    If y contains every token, the gap is capped at a finite value.
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
    """The gap of the worst set: the q points nearest to some t, prod_i (1 - cos(2 pi d_i / N)).

    d = 1, 1, 2, 2, 3, ...: the factor grows with the distance, so no set gives a smaller product at any t. The gap
    is 1 if the set contains every token.
    """
    if sparsity == tokens:
        return 1.0
    distances = np.minimum(np.arange(1, tokens), tokens - np.arange(1, tokens))
    nearest = np.sort(distances)[:sparsity]
    return float(np.prod(2 * np.sin(nearest * (math.pi / tokens)) ** 2))
