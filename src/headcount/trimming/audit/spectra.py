"""From moments to directions: the linear combinations of a side's numbers, ranked by their effect on the loss.

With x (D numbers per token, mean m, covariance C) and the metric G of the loss, dropping all but r directions
by the map x -> m + P (x - m) costs about

    1/2 tr(G (I - P) C (I - P)') = 1/2 sum_{i > r} s_i,    s = eigenvalues of C^{1/2} G C^{1/2}, descending,

and the best P of rank r is C^{1/2} V_r V_r' C^{-1/2} with V the eigenvectors (Eckart-Young in the metric G). With
G the Fisher information, the s_i are nats per token on one scale for keys and values of every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FLOOR = 1e-9
"""Eigenvalues of C below this share of the largest are raised to it, so that its inverse root exists.

Float64 eigenvalues carry noise of about 1e-16 of the largest; the floor is far above the noise and far below any
relevant eigenvalue.
"""


CONSTANT = 1e-12
"""A side whose largest variance is below this share of E[|x|^2] is constant: its covariance is taken as zero.

The remainder of C - m m' is then rounding error, which inverse roots would amplify: float64 sums of N equal terms have
an error of about 1e-16 sqrt(N) (1e-12 at N = 10^8), and float32 keys by 1e-7 each (1e-14 squared).
"""


@dataclass(frozen=True)
class Directions:
    """A side's directions, most important first. ``energies`` (D,): s; all float64."""

    mean: torch.Tensor
    energies: torch.Tensor
    root: torch.Tensor
    inverse_root: torch.Tensor
    vectors: torch.Tensor

    def projection(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(down (rank, D), up (D, rank)) with P = up @ down and the columns of ``up`` orthonormal.

        An orthonormal ``up`` keeps latents on the scale of x, which matters in float32 and lower precision. At full
        rank, both are the identity.
        """
        width = len(self.energies)
        if rank >= width:
            eye = torch.eye(width, dtype=torch.float64)
            return eye, eye.clone()
        chosen = self.vectors[:, :rank]
        up, triangle = torch.linalg.qr(self.root @ chosen)
        return triangle @ chosen.T @ self.inverse_root, up


def directions(mean: torch.Tensor, second_moment: torch.Tensor, metric: torch.Tensor | None) -> Directions:
    """Directions of one side from E[x], E[x x'] and G (``None``: the identity); shapes (D,), (D, D), (D, D).

    A constant side (see ``is_constant``) has zero energies and, below full rank, zero maps; only its mean matters.
    """
    covariance = second_moment - torch.outer(mean, mean)
    values, basis = torch.linalg.eigh((covariance + covariance.T) / 2)
    if float(values[-1]) <= CONSTANT * float(second_moment.trace()):
        zero = torch.zeros_like(covariance)
        return Directions(mean, torch.zeros_like(values), zero, zero, torch.eye(len(values), dtype=values.dtype))
    floored = values.clamp_min(float(values[-1].clamp_min(0.0)) * FLOOR).clamp_min(torch.finfo(torch.float64).tiny)
    root = (basis * values.clamp_min(0.0).sqrt()) @ basis.T
    inverse_root = (basis / floored.sqrt()) @ basis.T
    weighed = root @ root if metric is None else root @ metric @ root
    energies, vectors = torch.linalg.eigh((weighed + weighed.T) / 2)
    return Directions(mean, energies.flip(0).clamp_min(0.0), root, inverse_root, vectors.flip(1))


def is_constant(mean: torch.Tensor, second_moment: torch.Tensor) -> bool:
    """Whether x is the same for every token: the variance of every entry is below ``CONSTANT`` of E[|x|^2].

    >>> one = torch.ones(2, dtype=torch.float64)
    >>> is_constant(one, torch.outer(one, one)), is_constant(0 * one, torch.outer(one, one))
    (True, False)
    """
    variances = second_moment.diagonal() - mean.square()
    return float(variances.max()) <= CONSTANT * float(second_moment.trace())


def head_blocks(
    mean: torch.Tensor, second_moment: torch.Tensor, metric: torch.Tensor | None, n_kv_heads: int
) -> list[Directions]:
    """Directions of each KV head separately, from the diagonal blocks of C and G."""
    width = len(mean) // n_kv_heads
    blocks = []
    for head in range(n_kv_heads):
        rows = slice(head * width, (head + 1) * width)
        metric_block = None if metric is None else metric[rows, rows]
        blocks.append(directions(mean[rows], second_moment[rows, rows], metric_block))
    return blocks
