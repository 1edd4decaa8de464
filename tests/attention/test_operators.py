"""Every operator, forward and backward, against its float64 definition."""

from __future__ import annotations

import attention_cases as cases
import pytest
import torch
from torch import Tensor

from headcount.attention.kernels import build
from headcount.attention.operators.pairwise import FEW_ROWS

# Relative to the size of what is compared (at least 1 for outputs, 4 for gradients). float64, float32:
# rounding through at most 6^4 terms and a softmax, some hundred units of the last place. bfloat16: the inputs
# are what the reference sees. In torch only the output is rounded (2^-9 of it). The compiled kernel also
# rounds the products q * k1 to 2^-9: logits reach 10 here, so weights are off by up to 2^-9 * 10 = 2%.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 4e-2}


def assert_close(found: Tensor, wanted: Tensor, dtype: torch.dtype, what: str, scale: float = 1.0) -> None:
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    room = TOLERANCE[dtype] * max(scale, wanted.abs().max().item())
    error = (found.double() - wanted).abs().max().item()
    assert error <= room, f"{what}: off by {error:.2e}, allowed {room:.2e}"


def check(case: cases.Case, seed: int = 0) -> None:
    leaves, arguments, options = cases.streams(case, seed)
    found = cases.KINDS[case.kind].call(*arguments, **options)
    wanted = cases.truth(case, arguments, options)
    assert_close(found, wanted, case.dtype, "output")
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(wanted.shape, generator=generator, dtype=torch.float64).to(case.dtype)
    grads = torch.autograd.grad(found, leaves, cotangent)
    truths = torch.autograd.grad(wanted, leaves, cotangent.double())
    for index, (grad, true) in enumerate(zip(grads, truths, strict=True)):
        assert_close(grad, true.double(), case.dtype, f"gradient {index}", scale=4.0)


TWO_PATHS = ("pairwise", "third_order", "strassen")


@pytest.mark.parametrize(
    ("case", "path"),
    [
        pytest.param(case, path, id=f"{case}-{path}")
        for case in cases.table()
        for path in (("torch", "compiled") if case.kind in TWO_PATHS else ("auto",))
    ],
)
def test_every_way_of_calling(case: cases.Case, path: str) -> None:
    if path == "compiled" and build.build().library is None:
        pytest.skip(f"no compiled kernels: {build.build().reason}")
    with build.use(path), build.watch() as ran:
        check(case)
    if case.kind == "pairwise":
        # Rows that share keys; the fused kernel's causal form takes one head at a time, with a copy of its keys.
        shared = 1 if case.mask == "causal" and case.window is None else case.heads // case.kv_heads
        few = shared * case.tokens <= FEW_ROWS or "fewer" in case.mask
        assert ran == [("pairwise", path if few else "torch")]
    elif path != "auto":
        assert ran == [(case.kind, path), (f"{case.kind} backward", path)]
