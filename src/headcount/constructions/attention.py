"""The attention unit of the constructions: ordinary dense weights, order 2 (pairs) or higher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_BLOCK = 2**24
"""Maximum number of attention weights in memory at once."""


class AttentionUnit(nn.Module):
    """H heads of order s on embedded tokens; head outputs are summed and logits are not divided by sqrt(m).

    With queries Q = Phi W_Q, keys K^t = Psi W_K^t and values V^t = Psi W_V^t for t = 2..s,

        f(Phi)_i = sum over heads of sum_{j_2..j_s} A_{i j_2..j_s} V^2_{j_2} * ... * V^s_{j_s},
        A_i = softmax over all tuples of sum_c Q_ic K^2_{j_2 c} ... K^s_{j_s c}

    (elementwise products of values). Order 2 is ordinary attention, order 3 the third-order unit of Sanford
    et al. 2023. Phi (``queries``, (batch, N, m)) and Psi (``tokens``, (batch, T, m)) are the same embedding
    in the model of computation; they can be passed separately so that blank tokens make no queries and a token
    map with two outputs can be used.

    Weights: ``w_q`` (H, m, e); ``w_k`` (H, s-1, m, e); ``w_v`` (H, s-1, m, o). Work: O(N T^(s-1) e).
    """

    def __init__(self, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> None:
        super().__init__()
        assert w_q.dim() == 3 and w_k.dim() == w_v.dim() == 4 and w_k.shape[:3] == w_v.shape[:3]
        self.w_q, self.w_k, self.w_v = nn.Parameter(w_q), nn.Parameter(w_k), nn.Parameter(w_v)

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], prefix: str) -> AttentionUnit:
        """Restore the unit from a state dict that contains the weights under ``prefix``."""
        return cls(*(tensors[prefix + name] for name in ("w_q", "w_k", "w_v")))

    @property
    def heads(self) -> int:
        """H."""
        return len(self.w_q)

    @property
    def order(self) -> int:
        """s."""
        return self.w_k.shape[1] + 1

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(batch, N, m) and (batch, T, m) to (batch, N, o)."""
        total: Tensor | None = None
        for head in range(self.heads):
            out = self._head(queries @ self.w_q[head], tokens, head)
            total = out if total is None else total + out
        assert total is not None
        return total

    def _head(self, queries: Tensor, tokens: Tensor, head: int) -> Tensor:
        keys = _over_tuples([tokens @ w for w in self.w_k[head]])
        values = _over_tuples([tokens @ w for w in self.w_v[head]])
        rows = max(1, _BLOCK // keys.shape[1])
        blocks = [
            torch.softmax(queries[:, start : start + rows] @ keys.mT, dim=-1) @ values
            for start in range(0, queries.shape[1], rows)
        ]
        return torch.cat(blocks, dim=1)


def _over_tuples(factors: list[Tensor]) -> Tensor:
    """Elementwise products over all tuples of tokens: s-1 tensors (batch, T, e) to (batch, T^(s-1), e)."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, :, None, :] * factor[:, None, :, :]).flatten(1, 2)
    return product
