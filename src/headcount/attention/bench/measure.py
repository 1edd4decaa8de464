"""Measures the speed, memory and accuracy of an operator in one run.

Times are the minimum of several runs, alternating with a large matrix product of the same dtype and thread count: on
a noisy machine the speed relative to that product is more informative than seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from headcount.attention.bench.naive import naive
from headcount.attention.bench.problem import DTYPES, Problem
from headcount.attention.kernels import build
from headcount.core.errors import HeadcountError
from headcount.core.memory import available_bytes, peak_memory
from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent
from headcount.core.seeds import torch_generator

GEMM_SIZE = 2048
ERROR_ROWS = 8
ERROR_LOGITS = 2**24


def measure(
    problem: Problem,
    *,
    threads: int | None = None,
    seconds: float = 10.0,
    memory: bool = True,
    progress: Progress = silent,
) -> JsonObject:
    """Time, speed, memory and error of one problem; the fields are described in docs/operators.md.

    seconds: how long to keep repeating, after a minimum of three repetitions.
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
    """Set PyTorch's thread count inside the block and restore it afterwards."""
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
    """The minimum time of each call; the calls alternate, so that all are exposed to the same disturbances."""
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
    """Time of the operator with all logits in memory, as an einsum in the problem's dtype; None if they do not fit.

    "Fit" means that three arrays of logits (six with the backward pass) take at most half of the free memory.
    Masks along the edges of a tree and masks for pairs of tokens have no naive implementation here.
    """
    entry = problem.entry
    if (entry.pairs or problem.name == "tree") and (problem.causal or problem.window is not None):
        return None
    rows = problem.tokens**2 if entry.pairs else problem.tokens
    channels = problem.dim if entry.pairs else 1  # pairs: values are summed after forming all path products
    logits = problem.batch * problem.heads * rows * problem.tokens**entry.axes * channels
    copies = 6 if problem.backward else 3
    if logits * DTYPES[problem.dtype].itemsize * copies > available_bytes(torch.device("cpu")) / 2:
        return None
    call = naive(problem.name, entry.axes, problem.tokens, problem.causal, problem.window)
    return least_seconds([lambda: problem.run(tensors, call)], seconds / 2, 1, 5)[0]


def max_error(problem: Problem, tensors: Sequence[Tensor], out: Tensor) -> tuple[float | None, float | None]:
    """Largest error of the output against the float64 reference, absolute and relative to the largest entry.

    Measured at up to eight positions spread over the sequence; None if not even one fits the reference.
    """
    entry, tokens = problem.entry, problem.tokens
    detached = [tensor.detach() for tensor in tensors]
    if entry.pairs:
        if problem.batch * problem.heads * tokens**3 > ERROR_LOGITS:
            return None, None
        truth = entry.truth(*detached, **problem.options)
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
        # A window needs only the keys inside it; the windows along a chain of edges add up.
        reach = tokens if problem.window is None else sum(problem.window)
        low = max(0, place + 1 - reach)
        keys = slice(low, place + 1 if problem.causal or problem.window is not None else tokens)
        queries = [tensor[:, :, place : place + 1] for tensor in detached[: entry.queries]]
        others = [tensor[:, :, keys] for tensor in detached[entry.queries :]]
        truths.append(entry.truth(*queries, *others, positions=torch.tensor([place - low]), **problem.options))
    return _compare(out[:, :, places], torch.cat(truths, dim=2))


def _compare(out: Tensor, truth: Tensor) -> tuple[float, float]:
    error = float((out.double() - truth).abs().max())
    return error, error / max(float(truth.abs().max()), sys.float_info.min)


def extra_peak_bytes(problem: Problem, threads: int) -> int:
    """Peak resident memory of one call beyond what was resident before, measured in a separate process.

    It includes outputs and gradients, workspaces, and buffers of the matrix library
    (:func:`headcount.core.memory.peak_memory`).
    """
    code = "from headcount.attention.bench.measure import report_peak; report_peak()"
    request = json.dumps({"problem": asdict(problem), "threads": threads, "path": build.path()})
    done = subprocess.run([sys.executable, "-c", code], input=request, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise HeadcountError(
            "the process that measures memory failed: " + (done.stderr.strip().splitlines() or ["killed"])[-1],
            fix="use fewer tokens, or leave memory out",
        )
    return int(json.loads(done.stdout)["extra_peak_bytes"])


def report_peak() -> None:
    """The child process of :func:`extra_peak_bytes`: reads a request from stdin and prints the result."""
    request = json.loads(sys.stdin.read())
    fields = request["problem"]
    if fields["window"] is not None:
        fields["window"] = tuple(fields["window"])
    problem = Problem(**fields)
    with thread_count(request["threads"]), build.use(request["path"]):
        small = Problem(**{**fields, "tokens": min(problem.tokens, 32)})
        small.run(small.tensors())  # loads kernels and starts threads
        tensors = problem.tensors()
        _, peak_bytes = peak_memory(lambda: problem.run(tensors), torch.device("cpu"))
    sys.stdout.write(json.dumps({"extra_peak_bytes": peak_bytes}))
