"""Simulation of torch modules in p-bit arithmetic: every operation is computed in float64, then rounded.

The following are rounded to the active format:

1. parameters, buffers and inputs, once;
2. the result of every operation that PyTorch dispatches (additions, products, exponentials, ...);
3. inside a matrix product: every product and every addition, the additions in pairs (a tree of depth log2 n).
   With ``accumulate="once"`` an inner product is a single operation instead: summed exactly and rounded at the
   end, as in matrix units with wide accumulators;
4. inside a softmax: the maximum is exact; difference, exponential, sum (a tree as in 3) and quotient are
   each rounded. Other sums and means along an axis are also trees as in 3;
5. token maps of the constructions (``TokenMap``) are arbitrary maps in the theory: they are computed exactly
   and their result is rounded.

Fused attention kernels are decomposed into these operations; any other compound operation (a layer norm, a
convolution) counts as a single operation.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from headcount.core.errors import HeadcountError
from headcount.pbit.formats import Format, get_format

Accumulate = Literal["each", "once"]
_Module = TypeVar("_Module", bound=nn.Module)

_BLOCK = 2**22
"""Maximum number of elementary products of a matrix product in memory at once."""


class _Rounding(TorchDispatchMode):
    """Rounds the result of every operation to one format."""

    def __init__(self, to: Format, accumulate: Accumulate) -> None:
        TorchDispatchMode.__init__(self)
        self.to, self.accumulate = to, accumulate
        self.exact = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.exact:
            return func(*args, **kwargs)
        special = _SPECIAL.get(func.overloadpacket) if hasattr(func, "overloadpacket") else None
        if special is not None:
            return special(self, func, *args, **kwargs)
        return self._rounded(func(*args, **kwargs))

    def _rounded(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            if result.dtype == torch.float64:
                return self.to.round(result)
            if result.is_floating_point():
                raise HeadcountError(
                    f"an operation gave {result.dtype} inside simulated arithmetic",
                    fix="let the module compute in the type of its inputs",
                )
            return result
        if isinstance(result, list | tuple):
            return type(result)(self._rounded(item) for item in result)
        return result

    # -- sums ------------------------------------------------------------------------------------------

    def tree_sum(self, terms: Tensor, dim: int) -> Tensor:
        """The sum over ``dim``: pairwise with every addition rounded, or exact and rounded once."""
        if self.accumulate == "once":
            return self.to.round(terms.sum(dim))
        terms = terms.movedim(dim, 0)
        if len(terms) == 0:
            return terms.sum(0)
        while len(terms) > 1:
            half = len(terms) // 2
            paired = self.to.round(terms[:half] + terms[half : 2 * half])
            terms = torch.cat([paired, terms[2 * half :]]) if len(terms) % 2 else paired
        return terms[0]

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., r, n) times (..., n, c)."""
        if self.accumulate == "once":
            return self.to.round(a @ b)
        b = b.expand(*a.shape[:-2], *b.shape[-2:]) if b.dim() < a.dim() else b
        out = a.new_empty(*a.shape[:-1], b.shape[-1])
        per_row = a[..., 0, :].numel() * b.shape[-1] if a.shape[-2] else 1
        rows = max(1, _BLOCK // max(1, per_row))
        for start in range(0, a.shape[-2], rows):
            block = a[..., start : start + rows, :, None] * b[..., None, :, :]
            out[..., start : start + rows, :] = self.tree_sum(self.to.round(block), -2)
        return out


def _mm(mode: _Rounding, func: Any, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a, b)


def _mv(mode: _Rounding, func: Any, a: Tensor, v: Tensor) -> Tensor:
    return mode.matmul(a, v[:, None])[:, 0]


def _dot(mode: _Rounding, func: Any, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a[None], b[:, None])[0, 0]


def _addmm(mode: _Rounding, func: Any, c: Tensor, a: Tensor, b: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
    round_ = mode.to.round
    product = mode.matmul(a, b)
    product = product if alpha == 1 else round_(alpha * product)
    return round_((c if beta == 1 else round_(beta * c)) + product)


def _softmax(mode: _Rounding, func: Any, x: Tensor, dim: int, *_: Any) -> Tensor:
    round_ = mode.to.round
    weights = round_(torch.exp(round_(x - x.amax(dim, keepdim=True))))
    return round_(weights / mode.tree_sum(weights, dim).unsqueeze(dim))


def _log_softmax(mode: _Rounding, func: Any, x: Tensor, dim: int, *_: Any) -> Tensor:
    round_ = mode.to.round
    shifted = round_(x - x.amax(dim, keepdim=True))
    total = mode.tree_sum(round_(torch.exp(shifted)), dim).unsqueeze(dim)
    return round_(shifted - round_(torch.log(total)))


def _sum(mode: _Rounding, func: Any, x: Tensor, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    if x.dtype != torch.float64:
        return mode._rounded(func(x, **kwargs) if dims is None else func(x, dims, keepdim, **kwargs))
    dims = range(x.dim()) if dims is None or len(dims) == 0 else [d % x.dim() for d in dims]
    for dim in sorted(dims, reverse=True):
        x = mode.tree_sum(x, dim)
        if keepdim:
            x = x.unsqueeze(dim)
    return x


def _mean(mode: _Rounding, func: Any, x: Tensor, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    total = _sum(mode, func, x, dims, keepdim)
    return mode.to.round(total * (total.numel() / x.numel()))


_aten = torch.ops.aten
_SPECIAL: dict[Any, Callable[..., Any]] = {
    _aten.mm: _mm,
    _aten.bmm: _mm,
    _aten.mv: _mv,
    _aten.dot: _dot,
    _aten.addmm: _addmm,
    _aten.baddbmm: _addmm,
    _aten._softmax: _softmax,
    _aten._log_softmax: _log_softmax,
    _aten.sum: _sum,
    _aten.mean: _mean,
}
_active: ContextVar[_Rounding | None] = ContextVar("headcount_rounding", default=None)


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Disable rounding inside a simulation (for maps that are arbitrary in the theory)."""
    mode = _active.get()
    if mode is None:
        yield
        return
    mode.exact += 1
    try:
        yield
    finally:
        mode.exact -= 1


class TokenMap(nn.Module):
    """A map of single tokens that is arbitrary in the theory (an MLP of any size).

    Subclasses implement ``map``; a simulation computes it exactly and rounds its results.
    """

    def map(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The map itself."""
        raise NotImplementedError  # nn.Module is no ABC: without this a bare class would answer None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Apply ``map``; in a simulation the results are rounded once."""
        with exactly():
            results = self.map(*inputs)
        return tuple(result.clone() for result in results)  # clone is dispatched, so a simulation rounds it


def rounded_copy(module: _Module, precision: str | Format) -> _Module:
    """A float64 copy of ``module`` with parameters and buffers rounded to the format."""
    to = get_format(precision) if isinstance(precision, str) else precision
    twin = copy.deepcopy(module).double()
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.dtype == torch.float64:
                tensor.copy_(to.round(tensor))
    return twin


def run(module: nn.Module, *inputs: Tensor, precision: str | Format, accumulate: Accumulate = "each") -> Any:
    """``module(*inputs)`` in simulated p-bit arithmetic (see the module docstring for what is rounded).

    The module is not changed; the result is float64. Inputs that are not floating-point are passed
    unchanged. Raises ``HeadcountError`` for an unknown precision.

    >>> run(nn.Softmax(-1), torch.tensor([0.0, 1.0, 2.0]), precision="e5m2").tolist()
    [0.078125, 0.25, 0.625]
    """
    to = get_format(precision) if isinstance(precision, str) else precision
    if accumulate not in ("each", "once"):
        raise HeadcountError(f"accumulate {accumulate!r} is unknown", fix="choose each or once")
    twin = rounded_copy(module, to)
    rounded_inputs = [to.round(x.double()) if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        if to.is_float64:
            return twin(*rounded_inputs)
        mode = _Rounding(to, accumulate)
        token = _active.set(mode)
        try:
            with sdpa_kernel(SDPBackend.MATH), mode:
                return twin(*rounded_inputs)
        finally:
            _active.reset(token)
