"""Attention beyond pairs: operators that are exact, memory-safe and fast, forward and backward.

Every operator takes (batch, heads, tokens, dim) tensors, shares KV heads among query heads, allows values of
another dim, and has the options ``scale``, ``causal``, ``window``, ``key_padding_mask`` and ``check_finite``.
Each is held against its definition in :mod:`headcount.attention.reference`. docs/operators.md says what each
computes, costs and can represent.
"""

from __future__ import annotations

from headcount.attention.module import SelfAttention
from headcount.attention.order_s import order_s
from headcount.attention.pairwise import pairwise
from headcount.attention.strassen import strassen
from headcount.attention.third_order import third_order
from headcount.attention.tree import tree
from headcount.attention.triangular import triangular

__all__ = ["SelfAttention", "order_s", "pairwise", "strassen", "third_order", "tree", "triangular"]
