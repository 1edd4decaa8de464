"""What must hold whatever the numbers: shapes, symmetries, scale laws, and what the theory says."""

from __future__ import annotations

import attention_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_operators import assert_close, check
from torch import Tensor

from headcount import attention
from headcount.attention.kernels import build
from headcount.attention.machinery import reference

FLOAT64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["pairwise", "third_order", "strassen", "triangular", "tree_star"]),
    dtype=st.sampled_from([cases.FLOAT64, cases.FLOAT32]),
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    shared=st.integers(1, 3),
    tokens=st.integers(1, 20),
    dim=st.integers(1, 19),
    v_dim=st.integers(1, 19),
    mask=st.sampled_from(["full", "causal", "padded"]),
    window=st.one_of(st.none(), st.tuples(st.integers(1, 25), st.integers(1, 25))),
)
def test_any_shape(kind, dtype, batch, kv_heads, shared, tokens, dim, v_dim, mask, window) -> None:
    short = None if window is None else window[: cases.KINDS[kind].windows]
    check(cases.Case(kind, dtype, batch, kv_heads * shared, kv_heads, mask, short, tokens, dim, v_dim))


# 48 is the compiled kernels' block of rows, 6, 8 and 12 their register tiles, 16 (8) their vectors.
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 47, 49, 97])
@pytest.mark.parametrize("kind", ["third_order", "strassen"])
@pytest.mark.parametrize("path", ["torch", "auto"])
def test_lengths_around_the_tiles(kind: str, tokens: int, path: str) -> None:
    dim = 1 if tokens == 1 else 33
    with build.use(path):
        check(cases.Case(kind, cases.FLOAT32, 1, 2, 1, "causal", None, tokens, dim=dim, v_dim=tokens % 7 + 1))


# 256 is the block of keys, 128 the depth of Strassen's; at the full dtypes, with few queries.
@pytest.mark.parametrize("tokens", [127, 129, 255, 257, 300])
@pytest.mark.parametrize("kind", ["third_order", "strassen"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_many_keys_and_few_queries(kind: str, tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(tokens)
    streams = cases.KINDS[kind].queries
    shapes = [(1, 2, 3, 20)] * streams + [(1, 1, tokens, 20)] * 2 + [(1, 1, tokens, 18)] * 2
    leaves = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    found, wanted = (getattr(module, kind)(*leaves, causal=True) for module in (attention, reference))
    assert_close(found, wanted, dtype, "output")
    slopes = [torch.autograd.grad(out.double().square().sum(), leaves) for out in (found, wanted)]
    for index, (one, other) in enumerate(zip(*slopes, strict=True)):
        assert_close(one, other.double(), dtype, f"gradient {index}")


@pytest.mark.parametrize("v_dim", [16, 48, 64, 80, 130])
@pytest.mark.parametrize("kind", ["third_order", "strassen"])
def test_value_dims_around_the_register_tiles(kind: str, v_dim: int) -> None:
    check(cases.Case(kind, cases.FLOAT32, 1, 1, 1, "full", (40, 30), 70, dim=64, v_dim=v_dim))
    check(cases.Case(kind, cases.FLOAT64, 1, 1, 1, "full", None, 20, dim=130, v_dim=v_dim))


def call(kind: str, tensors: list[Tensor], **options) -> Tensor:
    entry = cases.KINDS[kind]
    q, k = entry.queries, entry.queries + entry.keys
    return entry.call(*entry.pack(tensors[:q], tensors[q:k], tensors[k:]), **options)


@pytest.mark.parametrize("kind", ["pairwise", "third_order", "order_4", "strassen", "tree_fork", "triangular"])
def test_tokens_may_be_permuted(kind: str) -> None:
    leaves, _, _ = cases.streams(cases.Case(kind, FLOAT64, 1, 2, 1, "full", None, tokens=5))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1))

    def permute(tensor: Tensor) -> Tensor:
        tensor = tensor[:, :, order]
        return tensor[:, :, :, order] if cases.KINDS[kind].pairs else tensor

    out, moved = call(kind, leaves), call(kind, [permute(leaf) for leaf in leaves])
    torch.testing.assert_close(moved, permute(out), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["pairwise", "third_order", "order_4", "strassen", "tree_chain", "triangular"])
def test_a_common_shift_of_the_logits_changes_nothing(kind: str) -> None:
    """One more coordinate that is constant in all queries and keys adds a constant to every logit."""
    leaves, _, _ = cases.streams(cases.Case(kind, FLOAT64, 2, 2, 2, "full", None, tokens=4))
    entry = cases.KINDS[kind]
    longer = [torch.nn.functional.pad(t, (0, 1), value=3.0) for t in leaves[: entry.queries + entry.keys]]
    out = call(kind, leaves, scale=0.5)
    shifted = call(kind, [*longer, *leaves[entry.queries + entry.keys :]], scale=0.5)
    torch.testing.assert_close(shifted, out, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["pairwise", "third_order", "order_4", "strassen", "tree_chain", "triangular"])
def test_scales(kind: str) -> None:
    """The scale may be moved into the tensors, and the output is linear in each set of values."""
    leaves, _, _ = cases.streams(cases.Case(kind, FLOAT64, 1, 2, 1, "causal", None, tokens=4))
    entry = cases.KINDS[kind]
    both = kind in ("strassen", "tree_chain")  # every inner product holds two streams
    scaled = [t * (2.0 if both or i == 0 else 1.0) for i, t in enumerate(leaves[: entry.queries + entry.keys])]
    values = leaves[entry.queries + entry.keys :]
    out = call(kind, leaves, scale=1.2)
    same = call(kind, [*scaled, *values], scale=0.3 if both else 0.6)
    torch.testing.assert_close(same, out, rtol=1e-12, atol=1e-13)
    tripled = call(kind, [*leaves[: entry.queries + entry.keys], *(3.0 * value for value in values)], scale=1.2)
    factor = 3.0 ** (1 if kind in ("pairwise",) else len(values))
    torch.testing.assert_close(tripled, factor * out, rtol=1e-12, atol=1e-13)
    default = call(kind, leaves)
    torch.testing.assert_close(default, call(kind, leaves, scale=leaves[0].shape[-1] ** -0.5))


def test_pairwise_is_pytorch_s_own() -> None:
    q, k, v = randn(2, 4, 9, 5, seed=1), randn(2, 2, 9, 5, seed=2), randn(2, 2, 9, 3, seed=3)
    theirs = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attention.pairwise(q, k, v), theirs(q, k, v, enable_gqa=True))
    torch.testing.assert_close(
        attention.pairwise(q, k, v, causal=True), theirs(q, k, v, is_causal=True, enable_gqa=True)
    )
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, 3:] = True
    torch.testing.assert_close(
        attention.pairwise(q, k, v, key_padding_mask=padding),
        theirs(q, k, v, attn_mask=~padding[:, None, None], enable_gqa=True),
    )


def test_what_other_devices_run_is_the_same() -> None:
    from headcount.attention.operators.pairwise import on_accelerator

    q, k, v = randn(2, 4, 9, 5, seed=1), randn(2, 2, 9, 5, seed=2), randn(2, 2, 9, 3, seed=3)
    for causal in (False, True):
        torch.testing.assert_close(
            on_accelerator(q, k, v, 0.3, causal), reference.pairwise(q, k, v, scale=0.3, causal=causal)
        )


def test_orders_two_and_three_are_the_named_operators() -> None:
    q, ks, vs = (
        randn(1, 2, 5, 3),
        [randn(1, 2, 5, 3, seed=i) for i in (1, 2)],
        [randn(1, 2, 5, 3, seed=i) for i in (3, 4)],
    )
    assert torch.equal(attention.order_s(q, ks[:1], vs[:1]), attention.pairwise(q, ks[0], vs[0]))
    assert torch.equal(attention.order_s(q, ks, vs), attention.third_order(q, *ks, *vs))


@pytest.mark.parametrize("path", ["torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_logits(path: str, dtype: torch.dtype) -> None:
    """Logits of size 1e4: the running maximum must move, and nothing overflows or vanishes."""
    q, k1, k2 = (100 ** (2 / 3) * randn(1, 1, 80, 4, seed=i).to(dtype) for i in range(3))
    v1, v2 = (randn(1, 1, 80, 2, seed=i).to(dtype) for i in (3, 4))
    with build.use(path):
        found = attention.third_order(q, k1, k2, v1, v2, scale=1.0)
    wanted = reference.third_order(q, k1, k2, v1, v2, scale=1.0)
    # A logit of 1e4 is known to 1e4 * 2^-53 (2^-24), and so is the logarithm of a weight.
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-11 if dtype == FLOAT64 else 5e-3)


def test_rising_logits_move_the_maximum() -> None:
    """Keys in order of their logits, so that every tile exceeds all before it by more than 2^32."""
    tokens = 200
    ramp = torch.linspace(0, 1, tokens, dtype=torch.float32)[None, None, :, None]
    q, one = torch.full((1, 1, 3, 1), 500.0), torch.ones(1, 1, tokens, 1)
    v = randn(1, 1, tokens, 2, seed=5).float()
    for k1, k2 in ((ramp, one), (one, ramp), (ramp, ramp)):
        found = attention.third_order(q, k1, k2, v, v, scale=1.0)
        wanted = reference.third_order(q, k1, k2, v, v, scale=1.0)
        assert_close(found, wanted, torch.float32, "output", scale=10.0)
