"""Strassen attention where exponentials overflow or vanish: the certificate and what happens without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headcount import attention
from headcount.attention.kernels import build
from headcount.attention.machinery import factorised, reference, strassen_exact

BOTH = pytest.mark.parametrize("path", ["torch", "auto"])


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tensors(tokens: int, size: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries and keys whose logits have standard deviation ``size``, and values."""
    logits = [randn(1, tokens, 8, seed=i, dtype=dtype) * (size / 3**0.5) ** 0.5 for i in range(4)]
    return [*logits, *(randn(1, tokens, 5, seed=i, dtype=dtype) for i in (4, 5))]


def full(tokens: int) -> Tensor:
    return torch.tensor([[[0], [tokens]], [[0], [tokens]]], dtype=torch.int32).expand(2, 2, tokens)[None]


def certified(given: list[Tensor]) -> Tensor:
    return factorised.forward(*given, full(given[0].shape[1]), 8**-0.5)[2]


def heads(given: list[Tensor]) -> list[Tensor]:
    return [tensor[None] for tensor in given]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_any_size_of_logits(size: float, dtype: torch.dtype, path: str) -> None:
    given = [tensor.requires_grad_() for tensor in heads(tensors(40, size, dtype))]
    with build.use(path):
        found = attention.strassen(*given)
        grads = torch.autograd.grad(found.square().sum(), given)
    wanted = reference.strassen(*given)
    truths = torch.autograd.grad(wanted.square().sum(), given)
    # Logits are added in float64, so a size of 1e4 costs nothing beyond the rounding of weights and sums.
    room = 1e-12 if dtype == torch.float64 else 2e-5
    for one, other in zip([found, *grads], [wanted, *truths], strict=True):
        scale = max(1.0, float(other.detach().abs().max()))
        assert float((one.double() - other.double()).detach().abs().max()) <= room * scale * max(1.0, size / 30)


def test_unit_logits_are_all_certified() -> None:
    assert bool(certified(tensors(64, 1.0)).all())


def test_logits_of_ten_thousand_are_mostly_not() -> None:
    """Naive exponentials of these overflow; the factorised ones vanish on most rows, which is noticed."""
    assert float(certified(tensors(64, 1e4)).double().mean()) < 0.5


def test_rows_that_agree_pass_and_rows_that_do_not_fail() -> None:
    """Row 0 wants the pair (0, 0), which the keys favour. Row 1 wants (0, 1), which the keys forbid by 200.

    For row 1, alpha + gamma exceeds its best logit by more than float32 can hold, so the factors' product
    vanishes.
    """
    key1 = torch.zeros(1, 2, 8)
    key2 = torch.zeros(1, 2, 8)
    key1[0, 0, 0], key2[0, 0, 0], key2[0, 1, 0] = 1.0, 0.0, -200.0
    key2[0, 1, 1] = 1.0
    q1, q2 = torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)
    q1[0, 1, 0], q2[0, 1, 1] = 200.0, 200.0
    v = randn(1, 2, 5, seed=0)
    given = [q1, q2, key1, key2, v, v]
    ranges = full(2)
    out, lse, passed = factorised.forward(*given, ranges, 1.0)
    assert passed.tolist() == [[True, False]]
    fallback = ~passed
    strassen_exact.forward(out, lse, fallback, *given, ranges, 1.0)
    wanted = reference.strassen(*heads(given), scale=1.0)[0]
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-6)


def test_certificate_is_needed() -> None:
    """Without the fallback the same rows would be wrong: the certificate does not fail for nothing."""
    given = tensors(64, 1e4)
    out, _, passed = factorised.forward(*given, full(64), 8**-0.5)
    wanted = reference.strassen(*heads(given))[0]
    error = (out.double() - wanted).abs().amax(-1)
    assert float(error[passed].max()) < 1e-4
    assert float(error[~passed].max()) > 0.1


@BOTH
def test_certified_rows_lose_less_than_rounding(path: str) -> None:
    """Over sizes where some rows pass and some fail, every row that passes is right to float32."""
    mixed = 0
    for size in (20.0, 40.0, 60.0, 80.0):
        given = tensors(48, size)
        with build.use(path):
            out, lse, passed = factorised.forward(*given, full(48), 8**-0.5)
        wanted = reference.strassen(*heads(given))[0]
        mixed += bool(passed.any()) and not bool(passed.all())
        assert float((out.double() - wanted).abs().amax(-1)[passed].max()) < 2e-5
        first, between, second = (
            (x.double() @ y.double().mT) * 8**-0.5
            for x, y in ((given[0], given[2]), (given[2], given[3]), (given[1], given[3]))
        )
        exact = (first[0][:, :, None] + between[0] + second[0][:, None]).flatten(1).logsumexp(-1)
        # lse is stored in float32: half a unit of the last place of numbers up to a few hundred.
        assert float((lse[0].double() - exact).abs()[passed[0]].max()) < 1e-4
    assert mixed >= 2


@BOTH
def test_values_of_any_size(path: str) -> None:
    """Values near the smallest and largest numbers: the powers of two keep them from vanishing."""
    given = heads(tensors(20, 5.0))
    with build.use(path):
        plain = attention.strassen(*given)
        for factor in (2.0**-100, 2.0**60):
            scaled = attention.strassen(*given[:4], given[4] * factor, given[5])
            torch.testing.assert_close(scaled / factor, plain, rtol=1e-6, atol=0)


def test_zero_values() -> None:
    given = heads(tensors(6, 1.0))
    assert not bool(attention.strassen(*given[:4], torch.zeros_like(given[4]), given[5]).any())
