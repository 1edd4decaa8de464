"""Calls the compiled kernels; returns None if they do not apply, and the caller falls back to torch.

Workspaces are torch tensors, one part per thread, so that they appear in PyTorch's memory profiles and kernels do
not allocate memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headcount.attention.kernels import build
from headcount.attention.machinery.autograd import accumulation_dtype

ONE_THREAD_FLOPS = 2_000_000
"""Below this number of operations, starting threads costs more than it saves."""

_NAMES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}


def _library(tensor: Tensor) -> ctypes.CDLL | None:
    return build.library() if tensor.device.type == "cpu" else None


def _call(library: ctypes.CDLL, name: str, *arguments: Tensor | int | float) -> Any:
    """Call a kernel with tensors as pointers, integers as long and floats as double."""
    converted: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            assert argument.is_contiguous()
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, float):
            converted.append(ctypes.c_double(argument))
        else:
            converted.append(ctypes.c_long(argument))
    return getattr(library, name)(*converted)


def _space(library: ctypes.CDLL, name: str, threads: int, *sizes: int) -> Tensor:
    function = getattr(library, name)
    function.restype = ctypes.c_long
    bytes_each = function(*map(ctypes.c_long, sizes))
    return torch.empty(bytes_each * threads, dtype=torch.uint8)


def _threads(flops: float) -> int:
    return 1 if flops < ONE_THREAD_FLOPS else torch.get_num_threads()


def _multiplied(library: ctypes.CDLL, kernel: str, tensors: list[Tensor]) -> list[Tensor]:
    """Contiguous tensors in the kernel's dtype: float32 if the kernel has no bfloat16 variant."""
    if not hasattr(library, f"hc_{kernel}_{_NAMES[tensors[0].dtype]}"):
        tensors = [tensor.to(accumulation_dtype(tensor.dtype)) for tensor in tensors]
    return [tensor.contiguous() for tensor in tensors]


def third_order_forward(
    q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, ranges: Tensor, scale: float
) -> tuple[Tensor, Tensor] | None:
    """(out, lse) in the accumulation dtype; shapes as in :mod:`headcount.attention.machinery.tiled`."""
    library = _library(q)
    if library is None:
        return None
    wide = accumulation_dtype(q.dtype)
    tensors = _multiplied(library, "third_order_forward", [q, k1, k2, v1, v2])
    name = _NAMES[tensors[0].dtype]
    (groups, rows, dim), tokens, v_dim = q.shape, k1.shape[1], v1.shape[2]
    threads = _threads(4.0 * groups * rows * tokens**2 * max(dim, v_dim))
    space = _space(library, f"hc_third_order_forward_space_{name}", threads, tokens, dim, v_dim)
    out = torch.empty(groups, rows, v_dim, dtype=wide)
    lse = torch.empty(groups, rows, dtype=wide)
    _call(
        library,
        f"hc_third_order_forward_{name}",
        *(*tensors, ranges.contiguous(), out, lse, space),
        *(groups, rows, tokens, dim, v_dim, float(scale), threads),
    )
    return out, lse


def third_order_backward(
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
) -> tuple[Tensor, ...] | None:
    """Gradients of the five tensors in the dtype of the tensors."""
    library = _library(q)
    if library is None:
        return None
    wide = accumulation_dtype(q.dtype)
    grad = grad_out.to(wide)
    sums = [grad.contiguous(), ((grad * out).sum(-1) - grad_lse).contiguous()]
    tensors = _multiplied(library, "third_order_backward", [q, k1, k2, v1, v2])
    name = _NAMES[tensors[0].dtype]
    (groups, rows, dim), tokens, v_dim = q.shape, k1.shape[1], v1.shape[2]
    threads = _threads(12.0 * groups * rows * tokens**2 * max(dim, v_dim))
    space = _space(library, f"hc_third_order_backward_space_{name}", threads, tokens, dim, v_dim)
    grads = [torch.empty(tensor.shape, dtype=wide) for tensor in tensors]
    _call(
        library,
        f"hc_third_order_backward_{name}",
        *(*sums, *tensors, lse.contiguous(), ranges.contiguous(), *grads, space),
        *(groups, rows, tokens, dim, v_dim, float(scale), threads),
    )
    return tuple(grad.to(q.dtype) for grad in grads)


def pairwise_forward(q: Tensor, k: Tensor, v: Tensor, ranges: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """(out, lse) for few queries and many keys."""
    library = _library(q)
    if library is None:
        return None
    wide = accumulation_dtype(q.dtype)
    tensors = _multiplied(library, "pairwise", [q, k, v])
    name = _NAMES[tensors[0].dtype]
    (groups, rows, dim), tokens, v_dim = q.shape, k.shape[1], v.shape[2]
    threads = _threads(4.0 * groups * rows * tokens * max(dim, v_dim))
    sizes = (groups, rows, tokens, dim, v_dim)
    space = _space(library, f"hc_pairwise_space_{name}", 1, *sizes, threads)
    out = torch.empty(groups, rows, v_dim, dtype=wide)
    lse = torch.empty(groups, rows, dtype=wide)
    _call(
        library,
        f"hc_pairwise_{name}",
        *(*tensors, ranges.contiguous(), out, lse, space),
        *(*sizes, float(scale), threads),
    )
    return out, lse


@dataclass(frozen=True)
class Strassen:
    """The contractions of factorised Strassen attention, for one dtype; created by :func:`strassen`."""

    library: ctypes.CDLL
    name: str

    def _ask(self, what: str, *sizes: int) -> int:
        function = getattr(self.library, f"hc_{what}_{self.name}")
        function.restype = ctypes.c_long
        return int(function(*map(ctypes.c_long, sizes)))

    def padded(self, rows: Tensor) -> Tensor:
        """(.., n, dim) padded with zeros to a multiple of the vector width, as the kernels expect."""
        lanes = self._ask("lanes")
        return torch.nn.functional.pad(rows, (0, -rows.shape[-1] % lanes)).contiguous()

    def packed(self, e12: Tensor, *, swapped: bool) -> Tensor:
        """E12 (J, L), or its transpose, in the memory layout of the kernels."""
        first, second = e12.shape if not swapped else e12.shape[::-1]
        steps = (1, first) if swapped else (second, 1)
        count = self._ask("strassen_packed", first, second)
        out = torch.empty(count, dtype=e12.dtype)
        threads = _threads(10.0 * count)
        _call(self.library, f"hc_strassen_pack_{self.name}", e12, out, *steps, first, second, threads)
        return out

    def forward(self, e1: Tensor, e2: Tensor, packed: Tensor, v1: Tensor, v2: Tensor, ranges: Tensor) -> Tensor:
        """sum_j e1_ij v1_jc sum_l e12_jl e2_il v2_lc, (I, padded dim), from padded v1, v2; ranges (I, 4)."""
        rows, first, second, dim = e1.shape[0], e1.shape[1], e2.shape[1], v1.shape[1]
        threads = _threads(2.0 * rows * first * second * dim)
        space = _space(self.library, f"hc_strassen_inner_space_{self.name}", threads, first, dim)
        out = torch.empty(rows, dim, dtype=v1.dtype)
        _call(
            self.library,
            f"hc_strassen_forward_{self.name}",
            *(e1, e2, packed, v1, v2, ranges, out, space, rows, first, second, dim, threads),
        )
        return out

    def inner_backward(
        self,
        e1: Tensor,
        e2: Tensor,
        packed: Tensor,
        v1: Tensor,
        v2: Tensor,
        pull: Tensor,
        ranges: Tensor,
        *,
        swapped: bool,
    ) -> tuple[Tensor, Tensor]:
        """da_ij = sum_c pull_ic v1_jc inner_ijc and dv1_jc = sum_i e1_ij pull_ic inner_ijc.

        With ``swapped``, e1 and v1 belong to l, e2 and v2 to j, and ``packed`` is the packed transpose.
        """
        rows, first, second, dim = e1.shape[0], e1.shape[1], e2.shape[1], v1.shape[1]
        threads = _threads(2.0 * rows * first * second * dim)
        space = _space(self.library, f"hc_strassen_inner_space_{self.name}", threads, first, dim)
        da, dv1 = torch.empty_like(e1), torch.empty_like(v1)
        _call(
            self.library,
            f"hc_strassen_backward_{self.name}",
            *(e1, e2, packed, v1, v2, pull, ranges, da, dv1, space),
            *(rows, first, second, dim, int(swapped), threads),
        )
        return da, dv1

    def cross(self, e1: Tensor, e2: Tensor, v1: Tensor, v2: Tensor, pull: Tensor) -> Tensor:
        """sum_ic (e1_ij v1_jc pull_ic) (e2_il v2_lc): (J, L)."""
        rows, first, second, dim = e1.shape[0], e1.shape[1], e2.shape[1], v1.shape[1]
        threads = _threads(2.0 * rows * first * second * dim)
        space = _space(self.library, f"hc_strassen_cross_space_{self.name}", threads, first, second, dim)
        panel = self._ask("panel")
        out = torch.empty(first, second + -second % panel, dtype=v1.dtype)
        _call(
            self.library,
            f"hc_strassen_cross_{self.name}",
            *(e1, e2, v1, v2, pull, out, space, rows, first, second, dim, threads),
        )
        return out[:, :second]


def strassen(tensor: Tensor) -> Strassen | None:
    """The contractions in the accumulation dtype of ``tensor``, or None if they must be computed in torch."""
    library = _library(tensor)
    if library is None:
        return None
    return Strassen(library, _NAMES[accumulation_dtype(tensor.dtype)])
