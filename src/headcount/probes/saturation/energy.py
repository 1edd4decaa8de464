"""Number of components that hold 90% of the energy of a head's logits and of its weight product.

- One window of T tokens: the matrix of all its logits, queries by keys, minus the mean of each row (softmax is
  invariant to it): c Q (K - 1 m')'. Keys are those after the rotary embedding; the causal mask is ignored. The rank
  is at most d, and with K - 1 m' = Q_2 R the squared singular values over c^2 are the eigenvalues of R Q'Q R', a (d, d)
  matrix: no T x T array is needed.
- All windows together: E[logit^2] over queries and keys drawn independently. Its components are the eigenvalues of
  C_k^(1/2) C_q C_k^(1/2) (``saturation.head_forms``).
- The weights: the singular values of W_q' W_k of one head, (hidden, hidden) and of rank at most d. With
  W_q' = Q_1 R_1 and W_k' = Q_2 R_2 they are those of R_1 R_2'. Weights are used as stored: without biases, norms and
  the rotary embedding.

Energy is the sum of squared singular values, the squared Frobenius norm.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from headcount.pretrained.families import family_of, layer_shape, layers_of, projections_of
from headcount.pretrained.running.capture import AttentionCall
from headcount.probes.saturation.ranks import hidden_keys

SHARE = 0.9
ROUNDING = 1e-24
"""Centred logits with energy below this share of |Q|^2 |K|^2 count as zero: rounding error of constant keys."""


def components(energies: torch.Tensor, share: float = SHARE) -> torch.Tensor:
    """Number of leading energies (..., d), in descending order, that hold ``share`` of their sum; 0 if all are zero.

    >>> components(torch.tensor([6.0, 3.0, 1.0]))
    tensor(2)
    """
    sums = energies.cumsum(-1)
    # The tolerance makes an exactly met share count as met despite rounding of the sum.
    short = sums < share * sums[..., -1:] * (1 - 1e-12)
    return (short.sum(-1) + 1) * (sums[..., -1] > 0)


def product_energies(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Squared singular values of left @ right', descending: (..., n, d) and (..., m, d) -> (..., min(n, m, d))."""
    first, second = (torch.linalg.qr(side.double(), mode="r").R for side in (left, right))
    energies: torch.Tensor = torch.linalg.svdvals(first @ second.transpose(-1, -2)).square()
    return energies


def logit_components(call: AttentionCall, window: int, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Components that hold 90% of the energy of one window's centred logits, and the output error without the rest.

    The second is the summed squared output error of the queries at ``positions`` when the window's logits are replaced
    by their leading components, the best approximation of that rank. Returns (H,), (H,).
    """
    q, k, v = (side[window].detach().cpu().double() for side in (call.q, call.k, call.v))
    groups = len(q) // len(k)
    size = k.square().sum((1, 2)).repeat_interleave(groups) * q.square().sum((1, 2))
    k = k - k.mean(1, keepdim=True)
    basis, triangle = torch.linalg.qr(k)
    basis, triangle = (part.repeat_interleave(groups, dim=0) for part in (basis, triangle))
    # Q K' = Q R' Q_2' has the right singular vectors Q_2 V, with V the eigenvectors of R Q'Q R'.
    energies, vectors = torch.linalg.eigh(triangle @ (q.transpose(1, 2) @ q) @ triangle.transpose(1, 2))
    energies, vectors = energies.flip(-1).clamp_min(0.0), vectors.flip(-1)
    constant = energies.sum(-1) <= ROUNDING * size
    counts = components(energies.masked_fill(constant[:, None], 0.0))
    bias = hidden_keys(call, window, positions).cpu().double()
    bias = bias.expand(len(q), *bias.shape[-2:])
    squares = []
    for head, count in enumerate(counts.tolist()):
        queries = q[head, positions] @ triangle[head].T @ vectors[head, :, :count]
        keys = basis[head] @ vectors[head, :, :count]
        exact = call.scaling * q[head, positions] @ k[head // groups].T + bias[head]
        apart = (call.scaling * queries @ keys.T + bias[head]).softmax(-1) - exact.softmax(-1)
        squares.append((apart @ v[head // groups]).square().sum())
    return counts, torch.stack(squares)


def weight_components(model: PreTrainedModel) -> list[list[int]]:
    """Number of components that hold 90% of the energy of W_q' W_k, by layer and query head."""
    family = family_of(model.config)
    counts = []
    for index, layer in enumerate(layers_of(model, family)):
        n_heads, n_kv_heads, qk_dim, _ = layer_shape(model.config, index)
        weights = projections_of(layer, family, model.config)
        q = weights.q.detach().cpu().double().reshape(n_heads, qk_dim, -1).transpose(1, 2)
        k = weights.k.detach().cpu().double().reshape(n_kv_heads, qk_dim, -1).transpose(1, 2)
        energies = product_energies(q, k.repeat_interleave(n_heads // n_kv_heads, dim=0))
        counts.append(components(energies).tolist())
    return counts
