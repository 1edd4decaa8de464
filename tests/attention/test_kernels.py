"""Building the kernels: cached, for this processor, and never in the way of a machine without a compiler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headcount import attention
from headcount.attention.kernels import build
from headcount.attention.machinery import reference
from headcount.core.errors import HeadcountError

BUILT = build.build()
needs_compiler = pytest.mark.skipif(BUILT.library is None, reason=f"no kernels: {BUILT.reason}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and builds that start anew in it; the process's own build comes back afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.build.cache_clear()
    yield tmp_path / "headcount" / "kernels"
    build.build.cache_clear()


def run_operators(dtypes: tuple[torch.dtype, ...]) -> set[str]:
    """Every operator with two paths against its reference, both passes; returns the paths that ran."""
    rooms = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}
    with build.watch() as ran:
        for dtype in dtypes:
            made = [torch.randn(1, 2, 70, 20, generator=torch.Generator().manual_seed(i)) for i in range(6)]
            streams = [tensor.to(dtype).requires_grad_() for tensor in made]
            for name, given in (("third_order", streams[1:]), ("strassen", streams)):
                found = getattr(attention, name)(*given, causal=True)
                wanted = getattr(reference, name)(*given, causal=True)
                assert float((found.double() - wanted).detach().abs().max()) < rooms[dtype] * 4
                slopes = [torch.autograd.grad(out.square().sum(), given) for out in (found, wanted)]
                for one, other in zip(*slopes, strict=True):
                    assert float((one.double() - other.double()).abs().max()) < rooms[dtype] * 40
            few = streams[0][:, :, :3]
            found = attention.pairwise(few, *streams[1:3])
            wanted = reference.pairwise(few, *streams[1:3])
            assert float((found.double() - wanted).detach().abs().max()) < rooms[dtype]
    return {path for _, path in ran}


def test_no_compiler_means_torch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    made = build.build()
    assert made.library is None and made.description == ""
    assert "no-such-compiler compiles nothing" in made.reason
    assert run_operators((torch.float32,)) == {"torch"}
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    build.build.cache_clear()
    assert build.build().reason == "no C++ compiler found (looked for $CXX, c++, g++, clang++)"


def test_a_compiler_that_fails_means_torch(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It answers what it is, but cannot compile: the reason is its own first error."""
    fake = tmp_path / "cxx"
    fake.write_text('#!/bin/sh\ncase "$*" in *-dM*) echo fake;; *) echo "error: out of paper" >&2; exit 1;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    assert build.build() == build.Built(None, "error: out of paper")
    assert run_operators((torch.float32,)) == {"torch"}
    assert list(cache.iterdir()) == []  # nothing half-made is left


def test_a_cache_that_cannot_be_written_means_torch(cache: Path) -> None:
    cache.parent.write_text("a file in the way")
    made = build.build()
    assert made.library is None and str(cache) in made.reason


@needs_compiler
def test_narrower_processors(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sources without this processor's widest instructions; the next build is the cached file."""
    narrow = ["-mno-avx512f"] if "AVX-512" in BUILT.description else []
    monkeypatch.setenv("CXX", " ".join([os.environ.get("CXX", "c++"), *narrow, "-O1"]))
    made = build.build()
    assert made.library is not None and "AVX-512" not in made.description
    assert made.file is not None and list(cache.iterdir()) == [made.file]
    assert run_operators((torch.float64, torch.float32, torch.bfloat16)) == {"compiled"}
    written = made.file.stat().st_mtime_ns
    build.build.cache_clear()
    assert build.build().file == made.file
    assert made.file.stat().st_mtime_ns == written


def test_paths_can_be_chosen_and_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1, 1, 3, 2, requires_grad=True)
    with build.watch() as ran:
        with build.use("torch"):
            attention.third_order(x, x, x, x, x).sum().backward()
        monkeypatch.setenv("HEADCOUNT_KERNELS", "torch")
        attention.strassen(x, x, x, x, x, x)
    assert ran == [("third_order", "torch"), ("third_order backward", "torch"), ("strassen", "torch")]
    attention.third_order(x, x, x, x, x)
    assert len(ran) == 3  # nothing is recorded outside


def test_unknown_paths_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadcountError, match="fast is no path"), build.use("fast"):
        pass
    monkeypatch.setenv("HEADCOUNT_KERNELS", "quick")
    with pytest.raises(HeadcountError, match="HEADCOUNT_KERNELS=quick is no path; use one of auto, torch, compiled"):
        build.path()


def test_compiled_path_without_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build", lambda: build.Built(None, "no compiler"))
    x = torch.ones(1, 1, 3, 2)
    with (
        build.use("compiled"),
        pytest.raises(HeadcountError, match="cannot be built: no compiler; install a C"),
    ):
        attention.third_order(x, x, x, x, x)
    attention.third_order(x, x, x, x, x)


@needs_compiler
def test_one_and_two_threads_agree() -> None:
    """Forward rows are independent of the threads; sums of gradients differ by rounding alone."""
    x = [torch.randn(1, 2, 130, 16, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(5)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = attention.third_order(*x)
            results.append([out, *torch.autograd.grad(out.square().sum(), x)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.detach().abs().max()))
