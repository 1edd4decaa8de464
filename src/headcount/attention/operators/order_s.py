"""Attention of order s: logits are products of a query and s - 1 keys. For s up to 5, since the work is N^s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headcount.attention.machinery import tiled
from headcount.attention.machinery.autograd import operator
from headcount.attention.machinery.explicit import count_logits, explicit
from headcount.attention.machinery.layout import prepare
from headcount.attention.operators.pairwise import pairwise
from headcount.attention.operators.third_order import third_order
from headcount.core.errors import HeadcountError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

MAX_ORDER = 5


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, ranges, scale = arguments
    sides = (len(tensors) - 1) // 2
    return tiled.forward(tensors[0], tensors[1 : 1 + sides], tensors[1 + sides :], None, ranges, scale)


def _backward(grad_out: Tensor, grad_lse: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, out, lse, ranges, scale = arguments
    sides = (len(tensors) - 1) // 2
    ks, vs = tensors[1 : 1 + sides], tensors[1 + sides :]
    dq, dks, dvs, _ = tiled.backward(grad_out, grad_lse, tensors[0], ks, vs, None, out, lse, ranges, scale)
    return dq, *dks, *dvs


def _names(order: int) -> list[str]:
    sides = range(1, order)
    return ["q", *(f"k{s}" for s in sides), *(f"v{s}" for s in sides)]


_OPERATORS = {
    order: operator(
        f"order_{order}",
        _names(order),
        forward=_forward,
        backward=_backward,
        explicit=explicit,
        logits=count_logits,
    )
    for order in (4, 5)
}


def order_s(
    q: Float[Tensor, "batch heads queries dim"],
    ks: Sequence[Float[Tensor, "batch kv_heads tokens dim"]],
    vs: Sequence[Float[Tensor, "batch kv_heads tokens v_dim"]],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    dropout_p: float = 0.0,
    check_finite: bool = False,
) -> Float[Tensor, "batch heads queries v_dim"]:
    """Order-s attention for s = len(ks) + 1 from 2 to 5.

    ``out_i = sum_T softmax_T(scale sum_c q_ic prod_s ks[s][T_s, c]) prod_s vs[s][T_s]``, T over the tuples of
    s - 1 keys (Sanford, Hsu, Telgarsky 2023, section 5). O(N^s dim) work, O(N dim) memory. For
    s = 2 and s = 3 it calls :func:`pairwise` and :func:`third_order`.

    scale: 1/sqrt(dim) if None. causal: a query uses positions up to its own. window: s - 1 lengths, the
    last w_s positions for key set s; implies causal. key_padding_mask: True where a token is padding. Queries
    are the last positions when there are fewer of them than keys. A query with nothing to attend to gives
    zeros.

    Raises HeadcountError for shapes, dtypes, windows or an order that do not fit, and for dropout_p other
    than 0.

    >>> import torch
    >>> q, k, v = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 3, 2), torch.tensor([[[[1.0], [2.0], [3.0]]]])
    >>> order_s(q, [k, k, k], [v, v, v])  # all weights equal: the cube of the mean value
    tensor([[[[8.]]]])
    """
    order = len(ks) + 1
    if not 2 <= order <= MAX_ORDER or len(vs) != len(ks):
        raise HeadcountError(
            f"order_s: {len(ks)} key sets and {len(vs)} value sets",
            fix=f"pass equally many of both, from 1 to {MAX_ORDER - 1}",
        )
    options: dict[str, Any] = {
        "scale": scale,
        "causal": causal,
        "key_padding_mask": key_padding_mask,
        "dropout_p": dropout_p,
        "check_finite": check_finite,
    }
    if order == 2:
        return pairwise(q, ks[0], vs[0], window=window, **options)
    if order == 3:
        return third_order(q, ks[0], ks[1], vs[0], vs[1], window=window, **options)
    layout = prepare(
        "order_s",
        {"q": q},
        {f"ks[{index}]": key for index, key in enumerate(ks)},
        {f"vs[{index}]": value for index, value in enumerate(vs)},
        window=window,
        **options,
    )
    out, _ = _OPERATORS[order](
        layout.rows(q), *map(layout.keys, ks), *map(layout.keys, vs), layout.ranges, layout.scale
    )
    return layout.unfold(out).to(q.dtype)
