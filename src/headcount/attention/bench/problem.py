"""The operators of the benchmark, and a problem with its tensors and its FLOP count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headcount.attention.machinery import masks, reference
from headcount.attention.machinery.checks import check_window
from headcount.attention.operators.order_s import order_s
from headcount.attention.operators.pairwise import pairwise
from headcount.attention.operators.strassen import strassen
from headcount.attention.operators.third_order import third_order
from headcount.attention.operators.tree import tree
from headcount.attention.operators.triangular import triangular
from headcount.core.errors import HeadcountError
from headcount.core.seeds import torch_generator

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """Description of one operator for the benchmark.

    axes: number of keys in a tuple. windows: number of window lengths. flops: per allowed tuple (tree: per edge) and
    channel, forward, then forward and backward, matrix products only. logit_parts: number of inner products that are
    added in a logit.
    """

    summary: str
    queries: int
    keys: int
    values: int
    axes: int
    windows: int
    flops: tuple[int, int]
    call: Callable[..., Tensor]
    truth: Callable[..., Tensor]
    logit_parts: int = 1
    pairs: bool = False


def _listed(operator: Callable[..., Tensor], sides: int, *last: Any) -> Callable[..., Tensor]:
    """Adapts an operator that takes lists of keys and values to positional tensors."""
    return lambda q, *rest, **options: operator(q, rest[:sides], rest[sides:], *last, **options)


def _one_window(truth: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Adapts a reference that takes its window as an integer."""
    return lambda *tensors, window, **options: truth(*tensors, window=window and window[0], **options)


OPERATORS = {
    "pairwise": Entry("softmax attention", 1, 1, 1, 1, 1, (4, 14), pairwise, _one_window(reference.pairwise)),
    "third_order": Entry(
        "a query with pairs of keys, trilinear", 1, 2, 2, 2, 2, (4, 16), third_order, reference.third_order
    ),
    "order_4": Entry(
        "a query with triples of keys",
        *(1, 3, 3, 3, 3, (4, 16)),
        _listed(order_s, 3),
        _listed(reference.order_s, 3),
    ),
    "order_5": Entry(
        "a query with quadruples of keys",
        *(1, 4, 4, 4, 4, (4, 16)),
        _listed(order_s, 4),
        _listed(reference.order_s, 4),
    ),
    "strassen": Entry(
        "pairs of keys, logit summed over a triangle",
        *(2, 2, 2, 2, 2, (2, 8)),
        strassen,
        reference.strassen,
        logit_parts=3,
    ),
    "triangular": Entry(
        "pairs of tokens with paths between them",
        *(1, 1, 2, 1, 1, (4, 16)),
        triangular,
        _one_window(reference.triangular),
        pairs=True,
    ),
    "tree": Entry(
        "a chain of two keys below the query (parents 0, 1), by messages",
        *(1, 2, 2, 2, 2, (8, 28)),
        _listed(tree, 2, (0, 1)),
        _listed(reference.tree, 2, (0, 1)),
        logit_parts=2,
    ),
}


@dataclass(frozen=True)
class Problem:
    """One benchmark problem: an operator, sizes and options."""

    name: str
    tokens: int
    dim: int = 64
    heads: int = 1
    batch: int = 1
    dtype: str = "float32"
    backward: bool = False
    causal: bool = False
    window: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in OPERATORS:
            raise HeadcountError(f"no operator is called {self.name}", fix=f"use {', '.join(OPERATORS)}")
        if self.dtype not in DTYPES:
            raise HeadcountError(f"dtype {self.dtype} is not offered", fix=f"use {', '.join(DTYPES)}")
        for what in ("tokens", "dim", "heads", "batch"):
            if getattr(self, what) < 1:
                raise HeadcountError(f"{what} {getattr(self, what)} is below 1", fix="use 1 or more")
        check_window(self.name, self.window, self.entry.windows)

    @property
    def entry(self) -> Entry:
        """The operator's row in :data:`OPERATORS`."""
        return OPERATORS[self.name]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the call."""
        return {"causal": self.causal, "window": self.window}

    def tensors(self) -> list[Tensor]:
        """Queries, keys and values, scaled so that logits and values have unit variance."""
        entry = self.entry
        generator = torch_generator(self.seed, "operator bench", self.name)
        spread = entry.logit_parts ** (-0.25)
        counts = (entry.queries + entry.keys, entry.values)
        made = []
        for count, factor in zip(counts, (spread, 1.0), strict=True):
            for _ in range(count):
                places = (self.tokens, self.tokens) if entry.pairs else (self.tokens,)
                tensor = torch.randn(self.batch, self.heads, *places, self.dim, generator=generator) * factor
                made.append(tensor.to(DTYPES[self.dtype]).requires_grad_(self.backward))
        return made

    def flops(self) -> float:
        """FLOPs of the matrix products over all allowed tuples: 4 N^3 dim for an unmasked third-order forward pass."""
        sides = 1 if self.name == "tree" else self.entry.axes  # tree: work proportional to its edges
        place = torch.arange(self.tokens)
        ranges = masks.position_ranges(
            place,
            self.tokens,
            causal=self.causal,
            windows=None if self.window is None else self.window[:sides],
            sides=sides,
        ).double()
        lengths = (ranges[:, 1] - ranges[:, 0]).prod(0)
        if self.entry.pairs:  # the position of the pair (i, j) is max(i, j), so 2 p + 1 pairs have position p
            lengths = lengths * (2 * place + 1)
        each = self.entry.flops[1 if self.backward else 0]
        return float(lengths.sum()) * each * self.dim * self.heads * self.batch

    def run(self, tensors: Sequence[Tensor], call: Callable[..., Tensor] | None = None) -> Tensor:
        """Run the forward pass, and the backward pass if requested; return the output."""
        out = (call or self.entry.call)(*tensors, **self.options)
        if self.backward:
            torch.autograd.grad(out, list(tensors), torch.ones_like(out))
        return out.detach()
