"""Attention beyond pairs: operators that are exact, memory-safe and fast, forward and backward.

Every operator takes (batch, heads, tokens, dim) tensors, shares KV heads among query heads, allows values of a
different dim, and has the options ``scale``, ``causal``, ``window``, ``key_padding_mask`` and ``check_finite``.
Each is tested against its definition in :mod:`headcount.attention.machinery.reference`. docs/operators.md describes
what each computes, costs and can represent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headcount.attention.operators.module import SelfAttention
from headcount.attention.operators.order_s import order_s
from headcount.attention.operators.pairwise import pairwise
from headcount.attention.operators.strassen import strassen
from headcount.attention.operators.third_order import third_order
from headcount.attention.operators.tree import tree
from headcount.attention.operators.triangular import triangular
from headcount.core.lazy import submodules

__all__ = ["SelfAttention", "order_s", "pairwise", "strassen", "third_order", "tree", "triangular"]

if TYPE_CHECKING:
    from headcount.attention import bench as bench
    from headcount.attention import kernels as kernels
    from headcount.attention import machinery as machinery
    from headcount.attention import operators as operators
else:
    __getattr__, __dir__ = submodules(__name__)
