"""One table: every operator, and every way of calling it, with its float64 reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headcount import attention
from headcount.attention.machinery import reference
from headcount.core.seeds import torch_generator

FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Kind:
    """An operator as streams of tensors: how many queries, keys and values, and how they are passed."""

    call: Callable[..., Tensor]
    truth: Callable[..., Tensor]
    queries: int
    keys: int
    values: int
    windows: int
    pairs: bool = False
    pack: Callable[[list[Tensor], list[Tensor], list[Tensor]], tuple[Any, ...]] = lambda q, k, v: (*q, *k, *v)


def _tree(parents: list[int]) -> Kind:
    return Kind(
        attention.tree,
        reference.tree,
        queries=1,
        keys=len(parents),
        values=len(parents),
        windows=len(parents),
        pack=lambda q, k, v: (*q, k, v, parents),
    )


def _order(order: int) -> Kind:
    sides = order - 1
    return Kind(
        attention.order_s,
        reference.order_s,
        queries=1,
        keys=sides,
        values=sides,
        windows=sides,
        pack=lambda q, k, v: (*q, k, v),
    )


KINDS = {
    "pairwise": Kind(attention.pairwise, reference.pairwise, 1, 1, 1, 1),
    "third_order": Kind(attention.third_order, reference.third_order, 1, 2, 2, 2),
    "order_2": _order(2),
    "order_3": _order(3),
    "order_4": _order(4),
    "order_5": _order(5),
    "strassen": Kind(attention.strassen, reference.strassen, 2, 2, 2, 2),
    "triangular": Kind(attention.triangular, reference.triangular, 1, 1, 2, 1, pairs=True),
    "tree_chain": _tree([0, 1]),
    "tree_star": _tree([0, 0]),
    "tree_fork": _tree([0, 1, 1, 0]),
}

HEADS = [(1, 1, 1), (2, 4, 2), (1, 3, 1)]  # batch, heads, KV heads
MASKS = ["full", "causal", "padded", "causal padded", "all padded", "fewer queries", "causal fewer queries"]
WINDOWS: list[tuple[int, ...] | None] = [None, (3, 2, 4, 1), (1, 9, 1, 9)]


@dataclass(frozen=True)
class Case:
    kind: str
    dtype: torch.dtype
    batch: int
    heads: int
    kv_heads: int
    mask: str
    window: tuple[int, ...] | None
    tokens: int = 6
    dim: int = 5
    v_dim: int = 3

    def __str__(self) -> str:
        window = "all" if self.window is None else "x".join(map(str, self.window))
        heads = f"{self.batch}.{self.heads}.{self.kv_heads}"
        return "-".join([self.kind, str(self.dtype)[6:], heads, self.mask.replace(" ", "_"), window])


def table() -> list[Case]:
    """Every kind x dtype x heads x mask x window that makes sense, at small sizes."""
    cases = []
    for name, dtype, (batch, heads, kv_heads), mask, window in itertools.product(
        KINDS, (FLOAT64, FLOAT32, BFLOAT16), HEADS, MASKS, WINDOWS
    ):
        kind = KINDS[name]
        if kind.pairs and "fewer" in mask:
            continue
        # A window already orders the positions, so causal adds nothing to it.
        if window is not None and "causal" in mask:
            continue
        short = None if window is None else window[: kind.windows]
        tokens = 4 if name == "order_5" or name == "tree_fork" else 6
        cases.append(Case(name, dtype, batch, heads, kv_heads, mask, short, tokens))
    return cases


def streams(case: Case, seed: int = 0, scale: float = 1.0) -> tuple[list[Tensor], tuple[Any, ...], dict[str, Any]]:
    """The tensors of a case (leaves that ask for gradients), the operator's arguments and its options."""
    kind = KINDS[case.kind]
    generator = torch_generator(seed, "attention case", str(case), case.tokens, case.dim, case.v_dim)
    queries = case.tokens - 2 if "fewer" in case.mask else case.tokens

    def make(heads: int, tokens: int, dim: int) -> Tensor:
        shape = (case.batch, heads, *([tokens, tokens] if kind.pairs else [tokens]), dim)
        tensor = torch.randn(shape, generator=generator, dtype=FLOAT64) * scale
        return tensor.to(case.dtype).requires_grad_()

    q = [make(case.heads, queries, case.dim) for _ in range(kind.queries)]
    k = [make(case.kv_heads, case.tokens, case.dim) for _ in range(kind.keys)]
    v = [make(case.kv_heads, case.tokens, case.v_dim) for _ in range(kind.values)]
    padding = None
    if "padded" in case.mask:
        padding = torch.rand(case.batch, case.tokens, generator=generator) < 0.4
        padding[-1, 0] = True
        if case.mask == "all padded":
            padding[0] = True
    window: Any = case.window
    options = {"causal": "causal" in case.mask, "window": window, "key_padding_mask": padding}
    return [*q, *k, *v], kind.pack(q, k, v), options


def truth(case: Case, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """The reference's output; it takes a window of one length as an integer."""
    options = dict(options)
    if KINDS[case.kind].windows == 1 and case.kind != "order_2" and options["window"] is not None:
        options["window"] = options["window"][0]
    return KINDS[case.kind].truth(*arguments, **options)
