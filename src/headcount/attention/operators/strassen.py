"""Strassen attention: logits are sums over the edges of a triangle, so the exponentials factorise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from headcount.attention.machinery import factorised, strassen_exact
from headcount.attention.machinery.autograd import operator, product
from headcount.attention.machinery.explicit import weighted_sum
from headcount.attention.machinery.layout import prepare
from headcount.attention.machinery.masks import allowed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def _forward(
    q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, ranges: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    out, lse, certified = factorised.forward(q1, q2, k1, k2, v1, v2, ranges, scale)
    strassen_exact.forward(out, lse, ~certified, q1, q2, k1, k2, v1, v2, ranges, scale)
    return out, lse


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q1: Tensor,
    q2: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    tensors = (q1, q2, k1, k2, v1, v2)
    grads, certified = factorised.backward(grad_out, grad_lse, *tensors, out, ranges, scale)
    strassen_exact.backward(grads, ~certified, grad_out, grad_lse, *tensors, out, lse, ranges, scale)
    return tuple(grad.to(q1.dtype) for grad in grads)


def _explicit(
    q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, ranges: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    first, between, second = q1 @ k1.mT, k1 @ k2.mT, q2 @ k2.mT
    logits = (first[..., :, None] + between[:, None] + second[..., None, :]) * scale
    inside = [allowed(ranges[:, side], k1.shape[1]) for side in (0, 1)]
    out, lse = weighted_sum(logits[:, None], inside, [v1[:, None], v2[:, None]])
    return out[:, 0], lse[:, 0]


_strassen = operator(
    "strassen",
    ("q1", "q2", "k1", "k2", "v1", "v2"),
    forward=_forward,
    backward=_backward,
    explicit=_explicit,
    logits=lambda q1, q2, k1, *_: product([*q1.shape[:2], k1.shape[1], k1.shape[1]]),
)


def strassen(
    q1: Float[Tensor, "batch heads queries dim"],
    q2: Float[Tensor, "batch heads queries dim"],
    k1: Float[Tensor, "batch kv_heads tokens dim"],
    k2: Float[Tensor, "batch kv_heads tokens dim"],
    v1: Float[Tensor, "batch kv_heads tokens v_dim"],
    v2: Float[Tensor, "batch kv_heads tokens v_dim"],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    dropout_p: float = 0.0,
    check_finite: bool = False,
) -> Float[Tensor, "batch heads queries v_dim"]:
    """Strassen attention (Kozachinskiy et al. 2025, arXiv 2501.19215), for logits of any size.

    ``out_i = sum_jl softmax_jl(scale (<q1_i,k1_j> + <k1_j,k2_l> + <k2_l,q2_i>)) v1_j * v2_l``. The
    exponential factorises, so the sums are products of N x N matrices: 2 N^3 v_dim operations and O(N^2)
    exponentials. Rows whose factors are certified not to have underflowed are computed this way; the others by
    an exact log-sum-exp over their pairs, with O(N^2) exponentials each
    (:mod:`headcount.attention.machinery.factorised` gives the certificate and its proof).

    scale: 1/sqrt(dim) when None. causal: a query uses positions up to its own on both sides. window: (w1,
    w2), the last w1 positions for k1 and the last w2 for k2; implies causal. key_padding_mask: True where a
    token is padding. Queries are the last positions when there are fewer of them than keys. A query with
    nothing to attend to gives zeros.

    Raises HeadcountError for shapes, dtypes or windows that do not fit, and for dropout_p other than 0.

    >>> import torch
    >>> q, k = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 2, 2)
    >>> strassen(q, q, k, k, torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[[[5.0], [7.0]]]]))
    tensor([[[[12.]]]])
    """
    layout = prepare(
        "strassen",
        {"q1": q1, "q2": q2},
        {"k1": k1, "k2": k2},
        {"v1": v1, "v2": v2},
        scale=scale,
        causal=causal,
        window=window,
        key_padding_mask=key_padding_mask,
        dropout_p=dropout_p,
        check_finite=check_finite,
    )
    keys = (layout.keys(tensor) for tensor in (k1, k2, v1, v2))
    out, _ = _strassen(layout.rows(q1), layout.rows(q2), *keys, layout.ranges, layout.scale)
    return layout.unfold(out).to(q1.dtype)
