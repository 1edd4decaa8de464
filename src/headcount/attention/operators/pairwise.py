"""Ordinary softmax attention: PyTorch's fused kernel where it is suitable, headcount's implementation elsewhere.

The tiled implementation handles windows, padding and key biases. The compiled kernel handles few queries with many
keys, as in decoding, where PyTorch's kernel is up to nine times slower than two products in bfloat16. PyTorch's CPU
kernel has no second derivative and leaves its fast path if keys and values differ in dim; here it runs inside an
operator with a second derivative, on dims padded with zeros (which change no logit and no value).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from headcount.attention.kernels import build, native
from headcount.attention.machinery import tiled
from headcount.attention.machinery.autograd import operator, product
from headcount.attention.machinery.explicit import weighted_sum
from headcount.attention.machinery.layout import prepare
from headcount.attention.machinery.masks import allowed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

FEW_ROWS = 16
"""Up to this many queries per KV head, reading the keys costs more than multiplying them."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _fused_mask(q: Tensor, k: Tensor, ranges: Tensor) -> str | None:
    """The mask of PyTorch's CPU kernel that equals these ranges: "full", "causal", or None if neither does."""
    if q.device.type != "cpu":
        return None
    rows, tokens = q.shape[1], k.shape[1]
    low, high = ranges[:, 0, 0], ranges[:, 0, 1]
    if bool((low > 0).any()):
        return None
    if bool((high == tokens).all()):
        return "full"
    ramp = torch.arange(1, tokens + 1, device=q.device, dtype=high.dtype)
    return "causal" if rows == tokens and bool((high == ramp).all()) else None


def _widen(tensor: Tensor, dim: int) -> Tensor:
    return tensor[:, None] if tensor.shape[-1] == dim else pad(tensor, (0, dim - tensor.shape[-1]))[:, None]


def _forward(q: Tensor, k: Tensor, v: Tensor, ranges: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    result = native.pairwise_forward(q, k, v, ranges, scale) if q.shape[1] <= FEW_ROWS else None
    build.note("pairwise", "torch" if result is None else "compiled")
    if result is not None:
        return result
    mask = _fused_mask(q, k, ranges)
    if mask is None:
        return tiled.forward(q, [k], [v], None, ranges, scale)
    dim = max(q.shape[-1], v.shape[-1])
    out, lse = _flash(_widen(q, dim), _widen(k, dim), _widen(v, dim), 0.0, mask == "causal", scale=scale)
    return out[:, 0, :, : v.shape[-1]].to(lse.dtype).contiguous(), lse[:, 0].contiguous()


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    mask = _fused_mask(q, k, ranges)
    if mask is None or bool(grad_lse.any()):  # the fused kernel does not support a gradient of the log-sum-exp
        dq, dks, dvs, _ = tiled.backward(grad_out, grad_lse, q, [k], [v], None, out, lse, ranges, scale)
        return dq, dks[0], dvs[0]
    dim = max(q.shape[-1], v.shape[-1])
    wide = [_widen(tensor, dim) for tensor in (grad_out.to(q.dtype), q, k, v, out.to(q.dtype))]
    dq, dk, dv = _flash_backward(*wide, lse[:, None], 0.0, mask == "causal", scale=scale)
    return dq[:, 0, :, : q.shape[-1]], dk[:, 0, :, : k.shape[-1]], dv[:, 0, :, : v.shape[-1]]


def _explicit(q: Tensor, k: Tensor, bias: Tensor, v: Tensor, ranges: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits = (q @ k.mT) * scale + bias[:, None, :]
    out, lse = weighted_sum(logits[:, None], [allowed(ranges[:, 0], k.shape[1])], [v[:, None]])
    return out[:, 0], lse[:, 0]


def _biased_forward(
    q: Tensor, k: Tensor, bias: Tensor, v: Tensor, ranges: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return tiled.forward(q, [k], [v], bias, ranges, scale)


def _biased_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    bias: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    dq, dks, dvs, dbias = tiled.backward(grad_out, grad_lse, q, [k], [v], bias, out, lse, ranges, scale)
    assert dbias is not None
    return dq, dks[0], dbias, dvs[0]


def _count_logits(q: Tensor, k: Tensor, *_: Tensor) -> int:
    return product([*q.shape[:2], k.shape[1]])


_pairwise = operator(
    "pairwise",
    ("q", "k", "v"),
    forward=_forward,
    backward=_backward,
    explicit=lambda q, k, v, ranges, scale: _explicit(q, k, k.new_zeros(k.shape[:2]), v, ranges, scale),
    logits=_count_logits,
)

biased = operator(
    "pairwise_biased",
    ("q", "k", "bias", "v"),
    forward=_biased_forward,
    backward=_biased_backward,
    explicit=_explicit,
    logits=_count_logits,
)
"""``biased(q, k, bias, v, ranges, scale) -> (out, lse)``: with a bias on each key; one step of tree attention."""


def pairwise(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads tokens dim"],
    v: Float[Tensor, "batch kv_heads tokens v_dim"],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | Sequence[int] | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    dropout_p: float = 0.0,
    check_finite: bool = False,
) -> Float[Tensor, "batch heads queries v_dim"]:
    """Softmax attention, ``out_i = sum_j softmax_j(scale <q_i, k_j>) v_j``.

    O(N^2 dim) work, O(N w dim) with a window; O(N dim) memory.

    scale: 1/sqrt(dim) when None. causal: a query uses positions up to its own. window: the last w positions,
    the query's own included; implies causal. key_padding_mask: True where a token is padding. Queries are the
    last positions when there are fewer of them than keys (PyTorch aligns them to the first). A query with
    nothing to attend to gives zeros.

    Raises HeadcountError for shapes, dtypes or a window that do not fit, and for dropout_p other than 0.

    >>> import torch
    >>> q, k = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 2, 2)
    >>> pairwise(q, k, torch.tensor([[[[1.0], [3.0]]]]))
    tensor([[[[2.]]]])
    """
    layout = prepare(
        "pairwise",
        {"q": q},
        {"k": k},
        {"v": v},
        scale=scale,
        causal=causal,
        window=window,
        key_padding_mask=key_padding_mask,
        dropout_p=dropout_p,
        check_finite=check_finite,
    )
    plain = window is None and key_padding_mask is None and (not causal or q.shape[2] == k.shape[2])
    if plain and q.device.type != "cpu":
        return on_accelerator(q, k, v, layout.scale, causal)
    if plain and causal and q.shape[1] != k.shape[1]:
        # The fused kernel requires equal numbers of rows and keys per head, so each query head gets a copy of
        # its keys.
        shared = q.shape[1] // k.shape[1]
        return pairwise(
            q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), scale=layout.scale, causal=True
        )
    out, _ = _pairwise(layout.rows(q), layout.keys(k), layout.keys(v), layout.ranges, layout.scale)
    return layout.unfold(out).to(q.dtype)


def on_accelerator(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """PyTorch's dispatch, which selects the fused kernel of the device."""
    return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
