"""How fast an operator is, how much memory it takes, and how exact it is, measured in one run.

Times are the least of several, taken in turn with a large matrix product of the same dtype and threads: on a
noisy machine the fraction of that product's speed is worth more than seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from headcount.attention import masks, reference
from headcount.attention.checks import check_window
from headcount.attention.kernels import build
from headcount.attention.naive import naive
from headcount.attention.order_s import order_s
from headcount.attention.pairwise import pairwise
from headcount.attention.strassen import strassen
from headcount.attention.third_order import third_order
from headcount.attention.tree import tree
from headcount.attention.triangular import triangular
from headcount.errors import HeadcountError
from headcount.memory import peak_memory
from headcount.progress import Progress, silent
from headcount.seeds import torch_generator

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
GEMM_SIZE = 2048
ERROR_ROWS = 8
ERROR_LOGITS = 2**24


@dataclass(frozen=True)
class Entry:
    """One operator as the bench sees it.

    axes: keys of one tuple. windows: lengths that its window has. flops: for one allowed tuple (edge of the
    tree) and channel, forward, then forward and backward, matrix products only. logit_parts: inner products
    that a logit adds.
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
    """An operator that takes lists of keys and values, called with all tensors in a row."""
    return lambda q, *rest, **options: operator(q, rest[:sides], rest[sides:], *last, **options)


def _one_window(truth: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A reference that takes its window as an integer."""
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
        *(1, 1, 2, 1, 1, (4, 12)),
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
    """What is measured."""

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
        """Queries, keys and values of unit variance, queries and keys such that logits have unit variance."""
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
        """Of the matrix products over all allowed tuples: 4 N^3 dim for third order, forward and in full."""
        sides = 1 if self.name == "tree" else self.entry.axes  # the tree's work goes with its edges
        place = torch.arange(self.tokens)
        ranges = masks.position_ranges(
            place,
            self.tokens,
            causal=self.causal,
            windows=None if self.window is None else self.window[:sides],
            sides=sides,
        ).double()
        lengths = (ranges[:, 1] - ranges[:, 0]).prod(0)
        if self.entry.pairs:  # the place of the pair (i, j) is max(i, j): 2 p + 1 pairs have place p
            lengths = lengths * (2 * place + 1)
        each = self.entry.flops[1 if self.backward else 0]
        return float(lengths.sum()) * each * self.dim * self.heads * self.batch

    def run(self, tensors: Sequence[Tensor], call: Callable[..., Tensor] | None = None) -> Tensor:
        """Forward, and the gradients of all tensors when asked; returns the output."""
        out = (call or self.entry.call)(*tensors, **self.options)
        if self.backward:
            torch.autograd.grad(out, list(tensors), torch.ones_like(out))
        return out.detach()


def measure(
    problem: Problem,
    *,
    threads: int | None = None,
    seconds: float = 10.0,
    memory: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Time, speed, memory and error of one problem; the fields are described in docs/operators.md.

    seconds: how long to go on repeating, beyond the three times at the least.
    """
    stages = 4
    tensors = problem.tensors()
    dtype = DTYPES[problem.dtype]
    with thread_count(threads) as used:
        progress("operator bench", 0, stages)
        with build.watch() as ran:
            out = problem.run(tensors)
        square = torch.randn(GEMM_SIZE, GEMM_SIZE, generator=torch_generator(0, "gemm")).to(dtype)
        best, gemm = least_seconds([lambda: problem.run(tensors), lambda: square @ square], seconds)
        progress("operator bench", 1, stages)
        naive = naive_seconds(problem, tensors, seconds)
        progress("operator bench", 2, stages)
    extra = extra_peak_bytes(problem, used) if memory else None
    progress("operator bench", 3, stages)
    error, relative = max_error(problem, tensors, out)
    progress("operator bench", 4, stages)
    gflops, gemm_gflops = problem.flops() / best / 1e9, 2 * GEMM_SIZE**3 / gemm / 1e9
    return {
        **asdict(problem),
        "threads": used,
        "path": ran[0][1] if ran else "torch",
        "kernel": build.build().description if ran and ran[0][1] == "compiled" else "",
        "seconds": best,
        "naive_seconds": naive,
        "gflops": gflops,
        "gemm_gflops": gemm_gflops,
        "fraction_of_gemm": gflops / gemm_gflops,
        "extra_peak_bytes": extra,
        "max_error": error,
        "max_relative_error": relative,
    }


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """PyTorch's thread count inside the block, put back after it."""
    before = torch.get_num_threads()
    if threads is not None and threads < 1:
        raise HeadcountError(f"{threads} threads", fix="use 1 or more")
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def least_seconds(
    calls: Sequence[Callable[[], Any]], seconds: float, at_least: int = 3, at_most: int = 50
) -> list[float]:
    """The least time of each call; they take turns, so that all meet the same disturbances."""
    best = [math.inf] * len(calls)
    start = time.perf_counter()
    for done in range(at_most):
        if done >= at_least and time.perf_counter() - start > seconds:
            break
        for index, call in enumerate(calls):
            before = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - before)
    return best


def naive_seconds(problem: Problem, tensors: Sequence[Tensor], seconds: float) -> float | None:
    """The same with all logits in memory, as an einsum in the problem's dtype; None where they do not fit.

    "Fit" means that three arrays of logits (six with the backward pass) take at most half of the free memory.
    Masks that hold along the edges of a tree, or for pairs of tokens, have no textbook form here.
    """
    entry = problem.entry
    if (entry.pairs or problem.name == "tree") and (problem.causal or problem.window is not None):
        return None
    rows = problem.tokens**2 if entry.pairs else problem.tokens
    channels = problem.dim if entry.pairs else 1  # the pairs' values cannot be summed without the paths' products
    logits = problem.batch * problem.heads * rows * problem.tokens**entry.axes * channels
    copies = 6 if problem.backward else 3
    if logits * DTYPES[problem.dtype].itemsize * copies > psutil.virtual_memory().available / 2:
        return None
    call = naive(problem.name, entry.axes, problem.tokens, problem.causal, problem.window)
    return least_seconds([lambda: problem.run(tensors, call)], seconds / 2, 1, 5)[0]


def max_error(problem: Problem, tensors: Sequence[Tensor], out: Tensor) -> tuple[float | None, float | None]:
    """Largest error of the output against the float64 reference, absolute and relative to the largest entry.

    At up to eight positions spread over the sequence; None where not even one fits the reference.
    """
    entry, tokens = problem.entry, problem.tokens
    given = [tensor.detach() for tensor in tensors]
    if entry.pairs:
        if problem.batch * problem.heads * tokens**3 > ERROR_LOGITS:
            return None, None
        truth = entry.truth(*given, **problem.options)
        return _compare(out, truth)
    each = problem.batch * problem.heads * tokens**entry.axes
    if problem.window is not None:
        each = problem.batch * problem.heads * max(problem.window) ** entry.axes
    rows = min(ERROR_ROWS, tokens, ERROR_LOGITS // each)
    if rows == 0:
        return None, None
    places = torch.linspace(0, tokens - 1, rows).round().long() if rows > 1 else torch.tensor([tokens - 1])
    truths = []
    for place in places.tolist():
        # A window needs only the keys in it; along a chain of edges the windows add up.
        reach = tokens if problem.window is None else sum(problem.window)
        low = max(0, place + 1 - reach)
        keys = slice(low, place + 1 if problem.causal or problem.window is not None else tokens)
        queries = [tensor[:, :, place : place + 1] for tensor in given[: entry.queries]]
        others = [tensor[:, :, keys] for tensor in given[entry.queries :]]
        truths.append(entry.truth(*queries, *others, positions=torch.tensor([place - low]), **problem.options))
    return _compare(out[:, :, places], torch.cat(truths, dim=2))


def _compare(out: Tensor, truth: Tensor) -> tuple[float, float]:
    error = float((out.double() - truth).abs().max())
    return error, error / max(float(truth.abs().max()), sys.float_info.min)


def extra_peak_bytes(problem: Problem, threads: int) -> int:
    """Resident memory at the peak of one call beyond what was resident before, in a process of its own.

    Counts everything: outputs and gradients, workspaces, buffers of the matrix library
    (:func:`headcount.memory.peak_memory`).
    """
    code = "from headcount.attention.bench import report_peak; report_peak()"
    request = json.dumps({"problem": asdict(problem), "threads": threads, "path": build.path()})
    done = subprocess.run([sys.executable, "-c", code], input=request, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise HeadcountError(
            "the process that measures memory failed: " + (done.stderr.strip().splitlines() or ["killed"])[-1],
            fix="use fewer tokens, or leave memory out",
        )
    return int(json.loads(done.stdout)["extra_peak_bytes"])


def report_peak() -> None:
    """The other side of :func:`extra_peak_bytes`: reads a request on stdin and prints the answer."""
    request = json.loads(sys.stdin.read())
    fields = request["problem"]
    if fields["window"] is not None:
        fields["window"] = tuple(fields["window"])
    problem = Problem(**fields)
    with thread_count(request["threads"]), build.use(request["path"]):
        small = Problem(**{**fields, "tokens": min(problem.tokens, 32)})
        small.run(small.tensors())  # loads kernels and wakes threads
        tensors = problem.tensors()
        _, peak_bytes = peak_memory(lambda: problem.run(tensors), torch.device("cpu"))
    sys.stdout.write(json.dumps({"extra_peak_bytes": peak_bytes}))
