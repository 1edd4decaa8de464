"""Derivatives of first and second order, and passage through torch.compile and torch.func."""

from __future__ import annotations

import attention_cases as cases
import pytest
import torch
from torch import Tensor

from headcount import attention
from headcount.attention.bench import measure as bench
from headcount.attention.kernels import build
from headcount.attention.machinery import autograd
from headcount.core.errors import HeadcountError

SMALL = [
    cases.Case(kind, cases.FLOAT64, 1, 2, 1, mask, window, tokens=3, dim=2, v_dim=2)
    for kind, windows in {name: kind.windows for name, kind in cases.KINDS.items()}.items()
    for mask, window in [("full", None), ("all padded", None), ("causal", None), ("full", (2,) * windows)]
    if kind not in ("order_2", "order_3", "tree_fork")
]


def flat(case: cases.Case):
    """The operator as a function of its tensors alone."""
    leaves, _, options = cases.streams(case)
    kind = cases.KINDS[case.kind]

    def call(*tensors: Tensor) -> Tensor:
        q, k = kind.queries, kind.queries + kind.keys
        packed = kind.pack(list(tensors[:q]), list(tensors[q:k]), list(tensors[k:]))
        return kind.call(*packed, **options)

    return call, leaves


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_first_derivative_is_the_slope(case: cases.Case) -> None:
    call, leaves = flat(case)
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_second_derivative_is_the_slope_of_the_first(case: cases.Case) -> None:
    call, leaves = flat(case)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def test_second_derivative_of_many_logits_is_refused() -> None:
    x = torch.randn(1, 1, 200, 2, dtype=torch.float64, requires_grad=True)
    out = attention.third_order(x, x, x, x, x)
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(HeadcountError, match=r"8,000,000 logits, more than 4,194,304"):
        torch.autograd.grad(grad.sum(), x)
    assert autograd.SECOND_LIMIT == 4_194_304


@pytest.mark.parametrize("kind", ["pairwise", "third_order", "strassen", "triangular", "tree_star"])
def test_compiled_graph_is_whole_and_agrees(kind: str) -> None:
    case = cases.Case(kind, cases.FLOAT64, 2, 2, 1, "padded", None)
    call, leaves = flat(case)

    def loss(*tensors: Tensor) -> Tensor:
        return call(*tensors).square().sum()

    wanted = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.skipif(build.build().library is None, reason="inductor needs a compiler too")
def test_inductor_takes_the_operator() -> None:
    layer = attention.SelfAttention(8, num_heads=2, kv_heads=1, causal=True)
    x = torch.randn(2, 7, 8)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", ["pairwise", "third_order", "order_5", "strassen", "triangular", "tree_fork"])
def test_vmap_is_a_loop(kind: str) -> None:
    case = cases.Case(kind, cases.FLOAT64, 1, 2, 1, "causal", None, tokens=3)
    call, leaves = flat(case)
    stacks = [torch.stack([leaf.detach() + shift for shift in (0.0, 0.3, -0.2)]) for leaf in leaves]
    wanted = torch.stack([call(*(stack[i] for stack in stacks)) for i in range(3)])
    torch.testing.assert_close(torch.func.vmap(call)(*stacks), wanted, rtol=1e-12, atol=1e-13)
    # One tensor mapped along another axis, the rest shared.
    moved = stacks[0].movedim(0, -1)
    found = torch.func.vmap(call, in_dims=(-1, *(None for _ in stacks[1:])))(moved, *(s[0] for s in stacks[1:]))
    wanted = torch.stack([call(stacks[0][i], *(stack[0] for stack in stacks[1:])) for i in range(3)])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["pairwise", "third_order", "strassen", "triangular", "tree_star"])
def test_gradients_of_each_example(kind: str) -> None:
    case = cases.Case(kind, cases.FLOAT64, 1, 1, 1, "full", None, tokens=3)
    call, leaves = flat(case)
    rest = [leaf.detach() for leaf in leaves[1:]]
    examples = torch.stack([leaves[0].detach() * factor for factor in (1.0, 0.5)])

    def loss(first: Tensor) -> Tensor:
        return call(first, *rest).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(examples)
    for example, grad in zip(examples, found, strict=True):
        leaf = example.clone().requires_grad_()
        torch.testing.assert_close(grad, torch.autograd.grad(loss(leaf), leaf)[0], rtol=1e-12, atol=1e-13)


def test_padding_mask_may_be_mapped_too() -> None:
    x = torch.randn(1, 1, 4, 2, dtype=torch.float64)
    masks = torch.tensor([[[False, True, False, False]], [[True, True, False, False]]])

    def call(mask: Tensor) -> Tensor:
        return attention.third_order(x, x, x, x, x, key_padding_mask=mask)

    torch.testing.assert_close(torch.func.vmap(call)(masks), torch.stack([call(mask) for mask in masks]))


@pytest.mark.parametrize("name", ["pairwise", "third_order", "order_4", "strassen", "triangular", "pairwise_biased"])
def test_registration_is_sound(name: str) -> None:
    """PyTorch's own checks: the op changes no input, and the fake kernel gives the real one's shapes and dtypes."""
    op, rows = getattr(torch.ops.headcount, name).default, 5
    generator = torch.Generator().manual_seed(0)
    *tensors, _, _ = (argument.name for argument in op._schema.arguments)
    given = []
    for tensor in tensors:
        dim = {"v": 3, "q": 4, "k": 4}.get(tensor[0])
        shape = [2, rows] if dim is None else [2, rows, rows, dim] if name == "triangular" else [2, rows, dim]
        given.append(torch.randn(shape, generator=generator).bfloat16())
    sides = sum(tensor.startswith("k") for tensor in tensors)
    ranges = torch.tensor([0, rows], dtype=torch.int32)[:, None].expand(2, sides, 2, rows)
    torch.library.opcheck(op, (*given, ranges, 0.5), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("kind", ["pairwise", "third_order", "order_4", "strassen", "triangular", "tree_chain"])
@pytest.mark.parametrize("path", ["torch", "auto"])
def test_same_bytes_twice(kind: str, path: str) -> None:
    """Deterministic for one number of threads, here two, at sizes where both work."""
    tokens = {"order_4": 14, "triangular": 24}.get(kind, 70)
    case = cases.Case(kind, cases.FLOAT32, 2, 4, 2, "causal", None, tokens, dim=16, v_dim=16)
    runs = []
    with build.use(path), bench.thread_count(2):
        for _ in range(2):
            call, leaves = flat(case)
            out = call(*leaves)
            runs.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)
