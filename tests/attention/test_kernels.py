"""Building the kernels: cached, for this processor, and never in the way of a machine without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headcount import attention
from headcount.attention.kernels import build
from headcount.errors import HeadcountError

SCRIPT = """
import torch
from headcount import attention
from headcount.attention import reference
from headcount.attention.kernels import build

made = build.build()
print(made.file and made.file.name, "|", made.description, "|", made.reason)
for dtype, room in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
    streams = [torch.randn(1, 2, 70, 20, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(6)]
    with build.watch() as ran:
        for name, given in (("third_order", streams[1:]), ("strassen", streams)):
            found = getattr(attention, name)(*given, causal=True)
            wanted = getattr(reference, name)(*given, causal=True)
            assert (found.double() - wanted).abs().max() < room * 4, (name, dtype)
            slopes = [torch.autograd.grad(out.square().sum(), given) for out in (found, wanted)]
            for one, other in zip(*slopes):
                assert (one.double() - other.double()).abs().max() < room * 40, (name, dtype)
print({path for _, path in ran})
"""


def run(cache: Path, **environment: str) -> list[str]:
    """A fresh process with its own cache: the two lines that SCRIPT prints."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


needs_compiler = pytest.mark.skipif(
    build.build().library is None, reason=f"no kernels: {build.build().reason}"
)


def test_no_compiler_means_torch(tmp_path: Path) -> None:
    first, second = run(tmp_path, CXX="no-such-compiler")
    assert first.startswith("None |") and "no-such-compiler" in first
    assert second == "{'torch'}"


def test_a_compiler_that_fails_means_torch(tmp_path: Path) -> None:
    """It answers what it is, but cannot compile: the reason is its own first error."""
    fake = tmp_path / "cxx"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *-dM*) echo fake;; *) echo "error: out of paper" >&2; exit 1;; esac\n'
    )
    fake.chmod(0o755)
    first, second = run(tmp_path, CXX=str(fake))
    assert first == "None |  | error: out of paper"
    assert second == "{'torch'}"


def test_a_cache_that_cannot_be_written_means_torch(tmp_path: Path) -> None:
    (tmp_path / "headcount").write_text("a file in the way")
    first, second = run(tmp_path)
    assert first.startswith("None |") and second == "{'torch'}"


@needs_compiler
def test_narrower_processors(tmp_path: Path) -> None:
    """The same sources without this processor's widest instructions; the next process takes the cache."""
    compiler = os.environ.get("CXX", "c++")
    narrow = f"{compiler} -mno-avx512f -O1" if "AVX-512" in build.build().description else f"{compiler} -O1"
    first, second = run(tmp_path, CXX=narrow)
    assert "AVX-512" not in first and second == "{'compiled'}"
    library = tmp_path / "headcount" / "kernels" / first.split()[0]
    written = library.stat().st_mtime_ns
    assert run(tmp_path, CXX=narrow) == [first, second]
    assert library.stat().st_mtime_ns == written
    assert [file.name for file in library.parent.iterdir()] == [library.name]  # nothing half-made is left


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
    with pytest.raises(
        HeadcountError, match="HEADCOUNT_KERNELS=quick is no path; use one of auto, torch, compiled"
    ):
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
    x = [
        torch.randn(1, 2, 130, 16, generator=torch.Generator().manual_seed(i)).requires_grad_()
        for i in range(5)
    ]
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
