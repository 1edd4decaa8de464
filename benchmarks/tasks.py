"""Speed of the task solvers and samplers, in CPU seconds of one thread: ``python benchmarks/tasks.py``."""

from __future__ import annotations

import time

import numpy as np

from headcount import tasks
from headcount.tasks import residues


def million() -> str:
    """Labels of one Match3 sequence of a million tokens, and the rounding error bound of the FFT."""
    modulus = 1_000_003
    task = tasks.get("match3", tokens=10**6, modulus=modulus)
    x = np.random.default_rng(0).integers(0, modulus, 10**6)
    start = time.process_time()
    task.batch(x=x)
    seconds = time.process_time() - start
    single = residues.Residues.of(x, modulus).indicator()
    bound = residues.rounding_bound(single, single, residues._length(modulus))
    return f"match3, N = 1,000,000, M = 1,000,003: labels in {seconds:.2f} s; rounding bound {bound:.1e}"


def balanced() -> str:
    """1,000 label-balanced sequences of 256 tokens."""
    start = time.process_time()
    tasks.get("match3", tokens=256).sample(0, 1000, "balanced")
    return f"match3, N = 256: 1,000 balanced sequences in {time.process_time() - start:.1f} s"


def floats(tokens: int, sparsity: int, dim: int) -> str:
    """qSA batches including targets, in vector entries per second."""
    task = tasks.get("qsa", tokens=tokens, sparsity=sparsity, dim=dim)
    count = 4_000_000 // (tokens * dim)
    start = time.process_time()
    task.sample(0, count)
    rate = count * tokens * dim / (time.process_time() - start) / 1e6
    return f"qsa, N = {tokens}, q = {sparsity}, d' = {dim}: {rate:.0f} million floats/s"


if __name__ == "__main__":
    print(million())
    print(balanced())
    for sizes in ((4096, 16, 8), (256, 8, 16), (64, 4, 8)):
        print(floats(*sizes))
