"""Third-order (trilinear, also "2-simplicial") attention: a query attends to pairs of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from headcount.attention.kernels import build, native
from headcount.attention.machinery import tiled
from headcount.attention.machinery.autograd import operator
from headcount.attention.machinery.explicit import count_logits, explicit
from headcount.attention.machinery.layout import prepare

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def _forward(
    q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, ranges: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    result = native.third_order_forward(q, k1, k2, v1, v2, ranges, scale)
    build.note("third_order", "torch" if result is None else "compiled")
    return result or tiled.forward(q, [k1, k2], [v1, v2], None, ranges, scale)


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    result = native.third_order_backward(grad_out, grad_lse, q, k1, k2, v1, v2, out, lse, ranges, scale)
    build.note("third_order backward", "torch" if result is None else "compiled")
    if result is not None:
        return result
    dq, dks, dvs, _ = tiled.backward(grad_out, grad_lse, q, [k1, k2], [v1, v2], None, out, lse, ranges, scale)
    return dq, *dks, *dvs


_third_order = operator(
    "third_order",
    ("q", "k1", "k2", "v1", "v2"),
    forward=_forward,
    backward=_backward,
    explicit=explicit,
    logits=count_logits,
)


def third_order(
    q: Float[Tensor, "batch heads queries dim"],
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
    """Third-order attention, ``out_i = sum_jl softmax_jl(scale sum_c q_ic k1_jc k2_lc) v1_j * v2_l``.

    Sanford, Hsu, Telgarsky 2023 (arXiv 2306.02896), the "2-simplicial" attention of Clift et al. 2019. O(N^3
    dim) work, or O(N w1 w2 dim) with a window; O(N dim) memory, forward and backward.

    scale: 1/sqrt(dim) when None. causal: a query uses positions up to its own on both sides. window: (w1,
    w2), the last w1 positions for k1 and the last w2 for k2, the query's own included; implies causal.
    key_padding_mask: True where a token is padding. Queries are the last positions when there are fewer of
    them than keys. A query with nothing to attend to gives zeros.

    Raises HeadcountError for shapes, dtypes or windows that do not fit, and for dropout_p other than 0.

    >>> import torch
    >>> q, k = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 2, 2)
    >>> third_order(q, k, k, torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[[[5.0], [7.0]]]]))
    tensor([[[[12.]]]])
    """
    layout = prepare(
        "third_order",
        {"q": q},
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
    out, _ = _third_order(layout.rows(q), *keys, layout.ranges, layout.scale)
    return layout.unfold(out).to(q.dtype)
