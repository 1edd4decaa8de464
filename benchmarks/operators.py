"""The figures that docs/operators.md shows: speed, ratios and memory of the attention operators.

    python benchmarks/operators.py [PART ...] [--quick] [--threads N] [--path auto|torch|compiled] [--json]

Each ratio is of least times taken in turn within one run, so that a busy machine disturbs both sides alike.
Parts: product, dtypes, backward, strassen, window, memory, decoding; all of them by default. With --quick, a
quarter of the tokens: the same table in a few seconds, for a look, not for the record. The exit code is 1
when a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from headcount.attention.bench.measure import GEMM_SIZE, extra_peak_bytes, least_seconds, naive_seconds, thread_count
from headcount.attention.bench.problem import DTYPES, Problem
from headcount.attention.kernels import build
from headcount.attention.operators.pairwise import on_accelerator, pairwise

MIB = 2**20


@dataclass
class Figure:
    """One line of the table: what was measured, the value, and its required bound."""

    what: str
    value: float
    bound: float
    at_least: bool

    @property
    def held(self) -> bool:
        """Whether the bound is met."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


class Bench:
    """Measurements with the token counts of the record divided by ``shrink``."""

    def __init__(self, shrink: int, seconds: float, threads: int) -> None:
        self.shrink, self.seconds, self.threads = shrink, seconds, threads
        self.figures: list[Figure] = []
        self.times: dict[str, float] = {}

    def problem(self, name: str, tokens: int, **options: object) -> Problem:
        """A problem with the record's token count divided by ``shrink``."""
        return Problem(name, tokens // self.shrink, **options)  # type: ignore[arg-type]

    def seconds_of(self, *problems: Problem) -> list[float]:
        """The minimum time of each problem, measured in an interleaved order."""
        calls = []
        for problem in problems:
            tensors = problem.tensors()
            problem.run(tensors)
            calls.append(lambda problem=problem, tensors=tensors: problem.run(tensors))
        return least_seconds(calls, self.seconds, at_least=5)

    def hold(self, what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
        """Record a figure and its bound."""
        bound = at_least if at_least is not None else at_most
        assert bound is not None
        self.figures.append(Figure(what, value, bound, at_least is not None))
        sys.stderr.write(f"{what}: {value:.3g}\n")

    def product(self) -> None:
        """Third-order attention compared with a matrix product and with the einsum over the cube."""
        problem = self.problem("third_order", 512)
        tensors = problem.tensors()
        problem.run(tensors)
        square = torch.randn(GEMM_SIZE, GEMM_SIZE).to(DTYPES[problem.dtype])
        array = square.numpy()
        calls: list[Callable[[], object]] = [
            lambda: problem.run(tensors),
            lambda: square @ square,
            lambda: array @ array,
        ]
        third_order, gemm, numpy_gemm = least_seconds(calls, self.seconds, at_least=5)
        rate, gemm_rate = problem.flops() / third_order, 2 * GEMM_SIZE**3 / gemm
        self.times |= {
            "third order, seconds": third_order,
            "GFLOP/s": rate / 1e9,
            "matrix product, GFLOP/s": gemm_rate / 1e9,
            "NumPy's matrix product (its own threads), GFLOP/s": 2 * GEMM_SIZE**3 / numpy_gemm / 1e9,
        }
        self.hold("third order N=512 float32: fraction of the matrix product", rate / gemm_rate, at_least=0.60)
        naive = naive_seconds(problem, tensors, self.seconds)
        if naive is not None:
            self.hold("third order N=512 float32: times faster than the einsum", naive / third_order, at_least=5.0)

    def dtypes(self) -> None:
        """bfloat16 compared with float32."""
        single, half = self.seconds_of(
            self.problem("third_order", 512), self.problem("third_order", 512, dtype="bfloat16")
        )
        self.hold("third order N=512: bfloat16 over float32, speed", single / half, at_least=1.8)

    def backward(self) -> None:
        """Forward and backward passes compared with the forward pass alone."""
        for name, dtype in (("third_order", "float32"), ("third_order", "bfloat16"), ("strassen", "float32")):
            forward, both = self.seconds_of(
                self.problem(name, 512, dtype=dtype), self.problem(name, 512, dtype=dtype, backward=True)
            )
            self.hold(f"{name} N=512 {dtype}: forward and backward over forward", both / forward, at_most=4.5)

    def strassen(self) -> None:
        """Strassen attention compared with third-order attention."""
        third, strassen = self.seconds_of(self.problem("third_order", 1024), self.problem("strassen", 1024))
        self.hold("Strassen N=1024: times faster than third order", third / strassen, at_least=2.5)

    def window(self) -> None:
        """The windowed operator is linear in the tokens."""
        short, long = self.seconds_of(
            self.problem("third_order", 4096, window=(512, 32)),
            self.problem("third_order", 8192, window=(512, 32)),
        )
        self.hold("third order 512 x 32: time at N=8192 over N=4096", long / short, at_most=2.3)

    def memory(self) -> None:
        """Extra memory of the forward and backward passes, and its growth."""
        peaks = {
            tokens: extra_peak_bytes(self.problem("third_order", tokens, backward=True), self.threads)
            for tokens in (512, 1024, 2048)
        }
        sizes = {tokens: size / MIB for tokens, size in peaks.items()}
        self.times |= {f"extra MiB at N={tokens}": size for tokens, size in sizes.items()}
        self.hold("third order N=1024 forward and backward: extra MiB", sizes[1024], at_most=64)
        # Linear growth is a factor of 4 from 512 to 2048; quadratic growth would be 16 and cubic growth 64.
        self.hold("third order: extra memory at N=2048 over N=512", sizes[2048] / sizes[512], at_most=6)

    def decoding(self) -> None:
        """One query per sequence, 9 heads, 3 KV heads of 64, 8 sequences of 4096, compared with PyTorch's kernel."""
        shapes = [(8, 9, 1, 64), *[(8, 3, 4096 // self.shrink, 64)] * 2]
        for dtype in ("float32", "bfloat16"):
            generator = torch.Generator().manual_seed(0)
            tensors = [torch.randn(shape, generator=generator).to(DTYPES[dtype]) for shape in shapes]
            ours, pytorch = least_seconds(
                [
                    lambda tensors=tensors: pairwise(*tensors),
                    lambda tensors=tensors: on_accelerator(*tensors, 64**-0.5, False),
                ],
                self.seconds,
                at_least=20,
                at_most=2000,
            )
            self.times |= {f"decoding {dtype}, us": ours * 1e6, f"PyTorch's decoding {dtype}, us": pytorch * 1e6}
            self.hold(f"decoding 8 x 4096 {dtype}: times faster than PyTorch's SDPA", pytorch / ours, at_least=1.0)


PARTS = ("product", "dtypes", "backward", "strassen", "window", "memory", "decoding")


def main() -> int:
    """Measure every figure and print the table; the exit code is 0 if all bounds are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", default=PARTS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--path", choices=build.PATHS, default="auto")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to repeat each comparison")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"no part is called {part}: use {', '.join(PARTS)}")
    with build.use(options.path), thread_count(options.threads) as threads:
        bench = Bench(4 if options.quick else 1, options.seconds, threads)
        path = "compiled" if build.library() is not None else "torch"
        for part in options.parts:
            getattr(bench, part)()
    kernel = build.build().description if path == "compiled" else ""
    if options.json:
        figures = [{**vars(figure), "held": figure.held} for figure in bench.figures]
        print(json.dumps({"path": path, "kernel": kernel, "threads": threads, "figures": figures, **bench.times}))
    else:
        print(f"path {path} {kernel}, {threads} threads")
        print("| figure | measured | bound | |\n|---|---|---|---|")
        for figure in bench.figures:
            bound = f"{'>=' if figure.at_least else '<='} {figure.bound:g}"
            print(f"| {figure.what} | {figure.value:.3g} | {bound} | {'held' if figure.held else 'missed'} |")
        for what, value in bench.times.items():
            print(f"{what}: {value:.3g}")
    return 0 if all(figure.held for figure in bench.figures) else 1


if __name__ == "__main__":
    sys.exit(main())
