"""Wrong input: the message names the sizes and says how to mend them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from headcount import attention
from headcount.core.errors import HeadcountError

X = torch.zeros(2, 4, 6, 8)
KV = torch.zeros(2, 2, 6, 8)
PAIRS = torch.zeros(1, 2, 3, 3, 4)


def third(**changes: Any) -> Callable[[], Any]:
    named = {"q": X, "k1": KV, "k2": KV, "v1": KV, "v2": KV}
    tensors = {name: changes.pop(name, tensor) for name, tensor in named.items()}
    return lambda: attention.third_order(**tensors, **changes)


CASES: list[tuple[Callable[[], Any], str]] = [
    (third(k2=KV[..., :5]), r"shapes do not fit together: .*k2 \(2, 2, 6, 5\)"),
    (third(k1=KV[:, :, :5], k2=KV[:, :, :5]), r"k1 \(2, 2, 5, 8\), .*v1 \(2, 2, 6, 8\)"),
    (third(v1=KV[:1]), r"v1 \(1, 2, 6, 8\).*batch and tokens agree"),
    (third(q=X[:, :3]), r"3 query heads are not a multiple of 2 key-value heads"),
    (third(q=X[0]), r"q \(4, 6, 8\) has 3 axes, not 4; pass \(batch, heads, tokens, dim\)"),
    (third(q=X[:, :, :0]), r"q \(2, 4, 0, 8\) is empty"),
    (third(k1=KV.double()), r"dtypes q float32, k1 float64.*use one of float64, float32 and bfloat16"),
    (
        lambda: attention.pairwise(*(torch.zeros(1, 1, 2, 2, dtype=torch.float16),) * 3),
        r"dtypes q float16, k float16",
    ),
    (third(q=X.to("meta")), r"devices q meta, k1 cpu"),
    (third(window=(0, 3)), r"window \(0, 3\) is below 1"),
    (third(window=(3,)), r"window \(3,\) has 1 lengths for 2 key sets"),
    (third(window=(2.5, 3)), r"window \(2.5, 3\) is below 1 or no integer"),
    (third(dropout_p=0.1), r"dropout of attention weights \(dropout_p=0.1\) is not offered"),
    (
        third(q=torch.full_like(X, torch.nan), check_finite=True),
        r"384 of the 384 entries of q \(2, 4, 6, 8\) are infinite or NaN",
    ),
    (third(key_padding_mask=torch.zeros(2, 5, dtype=torch.bool)), r"pass a bool tensor of shape \(2, 6\)"),
    (third(key_padding_mask=torch.zeros(2, 6)), r"key_padding_mask is torch.float32, \(2, 6\)"),
    (
        lambda: attention.pairwise(X, KV[:, :, :3], KV[:, :, :3], causal=True),
        r"6 queries have no place among 3 keys",
    ),
    (lambda: attention.order_s(X, [KV] * 5, [KV] * 5), r"5 key sets and 5 value sets; .*from 1 to 4"),
    (lambda: attention.order_s(X, [KV] * 2, [KV] * 3), r"2 key sets and 3 value sets"),
    (lambda: attention.tree(X, [KV] * 2, [KV] * 2, [0]), r"2 key sets, 2 value sets and 1 parents"),
    (lambda: attention.tree(X, [], [], []), r"0 key sets"),
    (lambda: attention.tree(X, [KV] * 2, [KV] * 2, [0, 2]), r"parents \[0, 2\] make no tree"),
    (lambda: attention.strassen(X, X[:, :, :5], KV, KV, KV, KV), r"q2 \(2, 4, 5, 8\)"),
    (lambda: attention.triangular(PAIRS, PAIRS, PAIRS, PAIRS[..., :2]), r"v2 \(1, 2, 3, 3, 2\)"),
    (lambda: attention.triangular(*(PAIRS[:, :, :2],) * 4), r"states are not square: q \(1, 2, 2, 3, 4\)"),
    (lambda: attention.triangular(X, X, X, X), r"has 4 axes, not 5"),
]


@pytest.mark.parametrize(("call", "message"), CASES, ids=[message[:40] for _, message in CASES])
def test_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(HeadcountError, match=message) as raised:
        call()
    assert raised.value.fix
    assert raised.value.exit_code == 2


def test_non_finite_input_passes_unless_asked() -> None:
    out = attention.third_order(torch.full_like(X, torch.nan), KV, KV, KV, KV)
    assert bool(out.isnan().all())
    attention.third_order(X, KV, KV, KV, KV, check_finite=True)
