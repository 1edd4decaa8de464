"""Simulated arithmetic: each operation against an explicit loop, and against native float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headcount.core.errors import HeadcountError
from headcount.pbit.formats import get_format
from headcount.pbit.simulate import TokenMap, rounded_copy, run


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


def tree(values: list[float], precision: str) -> float:
    """Sum in pairs, each addition rounded; the odd one out waits."""
    to = get_format(precision)
    while len(values) > 1:
        half = len(values) // 2
        sums = [to.round(torch.tensor([values[i] + values[half + i]], dtype=torch.float64)).item() for i in range(half)]
        values = sums + values[2 * half :]
    return values[0]


def rounded(value: float, precision: str) -> float:
    return get_format(precision).round(torch.tensor([value], dtype=torch.float64)).item()


@pytest.mark.parametrize("precision", ["bf16", "e5m2", "float:6"])
@pytest.mark.parametrize("shapes", [((3, 5), (5, 2)), ((2, 3, 7), (2, 7, 4)), ((2, 3, 4), (4, 2))])
def test_matrix_product_rounds_every_product_and_sum(
    precision: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    to = get_format(precision)
    a, b = (to.round(draw(*shape, seed=i)) for i, shape in enumerate(shapes))
    got = run(Apply(torch.matmul), a, b, precision=precision)
    batched_b = b.expand(*a.shape[:-2], *b.shape[-2:])
    for index in torch.cartesian_prod(*(torch.arange(n) for n in got.shape)).tolist():
        row, column = a[(*index[:-1],)], batched_b[(*index[:-2], slice(None), index[-1])]
        products = [rounded(x * y, precision) for x, y in zip(row.tolist(), column.tolist(), strict=True)]
        assert got[tuple(index)].item() == tree(products, precision)


def test_accumulating_once_rounds_the_exact_sum() -> None:
    to = get_format("bf16")
    a, b = to.round(draw(3, 50)), to.round(draw(50, 2, seed=1))
    got = run(Apply(torch.matmul), a, b, precision="bf16", accumulate="once")
    assert torch.equal(got, to.round(a @ b))  # float64 sums are exact to far below the rounding
    assert not torch.equal(got, run(Apply(torch.matmul), a, b, precision="bf16"))


def test_softmax_rounds_its_four_steps() -> None:
    x = draw(7).tolist()
    p = "bf16"
    x = [rounded(v, p) for v in x]
    weights = [rounded(torch.tensor(rounded(v - max(x), p)).double().exp().item(), p) for v in x]
    total = tree(weights, p)
    want = [rounded(w / total, p) for w in weights]
    assert run(nn.Softmax(-1), torch.tensor(x, dtype=torch.float64), precision=p).tolist() == want


def test_sums_means_and_affine_maps() -> None:
    p = "e5m2"
    x = get_format(p).round(draw(4, 6))
    want = [tree(row, p) for row in x.tolist()]
    assert run(Apply(lambda t: t.sum(-1)), x, precision=p).tolist() == want
    assert run(Apply(lambda t: t.sum(dim=-1, keepdim=True)), x, precision=p)[:, 0].tolist() == want
    means = run(Apply(lambda t: t.mean(-1)), x, precision=p).tolist()
    assert means == [rounded(total / 6, p) for total in want]
    assert run(Apply(torch.sum), torch.arange(5), precision=p).item() == 10  # integers are left alone
    layer = nn.Linear(6, 3).double()
    got = run(layer, x, precision=p)
    weight, bias = (get_format(p).round(t.detach()) for t in (layer.weight, layer.bias))
    product = run(Apply(torch.matmul), x, weight.T, precision=p)
    assert torch.equal(got, get_format(p).round(product + bias))


def test_fp32_follows_native_float32() -> None:
    """Native float32 differs by the order of its sums only: a few units in the last place."""
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8), nn.Softmax(-1))
    x = draw(5, 16).float()
    with torch.no_grad():
        native = net(x)
    got = run(net, x, precision="fp32")
    assert (got - native).abs().max() < 20 * 2.0**-24
    assert torch.equal(get_format("fp32").round(got), got)
    exact = run(net, x, precision="fp64")
    assert (got - exact).abs().max() > 0


def test_trained_attention_runs_unfused() -> None:
    """Fused attention would escape the rounding; taken apart it is rounded, so bf16 differs from float64."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = draw(2, 9, 16).float()
    exact, *others = (run(layer, x, x, x, precision=precision)[0] for precision in ("fp64", "fp32", "bf16", "e5m2"))
    sizes = [float((out - exact).abs().max()) for out in others]
    assert 0 < sizes[0] < 1e-5 < sizes[1] < sizes[2]


def test_token_maps_are_exact_and_rounded_once() -> None:
    class Third(TokenMap):
        def map(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            (x,) = inputs
            return (x / 3 * 5 / 7,)

    got = run(Apply(lambda x: Third()(x)[0]), torch.tensor([1.0]), precision="e5m2").item()
    assert got == rounded(5 / 21, "e5m2")
    plain = run(Apply(lambda x: x / 3 * 5 / 7), torch.tensor([1.0]), precision="e5m2").item()
    assert plain != got  # rounding on the way shows


def test_the_module_is_left_alone() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    run(layer, torch.ones(1, 3), precision="e4m3")
    assert torch.equal(layer.weight, before) and layer.weight.dtype == torch.float32
    twin = rounded_copy(layer, "e4m3")
    assert torch.equal(twin.weight.detach(), get_format("e4m3").round(before.double()))


def test_refusals() -> None:
    with pytest.raises(HeadcountError, match="precision 'fp7' is unknown"):
        run(nn.ReLU(), torch.ones(1), precision="fp7")
    with pytest.raises(HeadcountError, match="accumulate 'twice' is unknown"):
        run(nn.ReLU(), torch.ones(1), precision="fp16", accumulate="twice")
    with pytest.raises(HeadcountError, match=r"torch\.float32 inside simulated arithmetic"):
        run(Apply(lambda x: x.float() + 1), torch.ones(1), precision="fp16")
