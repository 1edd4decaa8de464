"""The bench: the counts it divides by, the error it reports, and the form of its answer. Never a speed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

import pytest
import torch

from headcount.attention.bench import measure as bench
from headcount.attention.bench.naive import naive
from headcount.attention.bench.problem import OPERATORS, Problem
from headcount.attention.kernels import build
from headcount.cli import main
from headcount.core.errors import HeadcountError
from headcount.core.memory import peak_memory


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("causal", [False, True])
def test_naive_is_the_operator(name: str, causal: bool) -> None:
    """The comparison compares the same thing."""
    problem = Problem(name, 5, dim=3, heads=2, dtype="float64", causal=causal)
    tensors = problem.tensors()
    if causal and name in ("tree", "triangular"):
        assert bench.naive_seconds(problem, tensors, 0.0) is None
        return
    call = naive(name, OPERATORS[name].axes, 5, causal, None)
    torch.testing.assert_close(problem.run(tensors, call), problem.run(tensors), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("window", [None, (3, 2, 2, 3)])
def test_reported_error_is_the_error(name: str, window: tuple[int, ...] | None) -> None:
    """Zero but for rounding on the operator's own output, and what was added to it otherwise."""
    window = window and window[: OPERATORS[name].windows]
    problem = Problem(name, 7, dim=3, heads=2, dtype="float64", window=window)
    tensors = problem.tensors()
    out = problem.run(tensors)
    error, relative = bench.max_error(problem, tensors, out)
    assert error is not None and error < 1e-13 and relative is not None and relative < 1e-12
    error, _ = bench.max_error(problem, tensors, out + 0.25)
    assert error == pytest.approx(0.25)


def test_work_is_counted_over_allowed_tuples() -> None:
    n, d = 6, 4
    assert Problem("third_order", n, dim=d).flops() == 4 * n**3 * d
    assert Problem("third_order", n, dim=d, backward=True, heads=2, batch=3).flops() == 6 * 16 * n**3 * d
    assert Problem("strassen", n, dim=d).flops() == 2 * n**3 * d
    assert Problem("third_order", n, dim=d, causal=True).flops() == 4 * d * sum(i**2 for i in range(1, n + 1))
    windowed = sum(min(i, 3) * min(i, 2) for i in range(1, n + 1))
    assert Problem("third_order", n, dim=d, window=(3, 2)).flops() == 4 * d * windowed
    pairs = sum(max(i, j) + 1 for i in range(n) for j in range(n))
    assert Problem("triangular", n, dim=d, causal=True).flops() == 4 * d * pairs
    assert Problem("tree", n, dim=d).flops() == 8 * n**2 * d


def test_logits_have_unit_variance() -> None:
    q1, q2, k1, k2, _, _ = Problem("strassen", 300, dim=16).tensors()
    first, between, second = (x[0, 0] @ y[0, 0].T / 4 for x, y in ((q1, k1), (k1, k2), (q2, k2)))
    assert float(first.var() + between.var() + second.var()) == pytest.approx(1.0, abs=0.1)


def test_measure_answers_every_question(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "operator bench third-order --tokens 24 --dim 8 --heads 2 --backward --seconds 0 --threads 1 --json"
    with pytest.raises(SystemExit) as left:
        main(arguments.split())
    assert left.value.code == 0
    found = json.loads(capsys.readouterr().out)
    for field in ("seconds", "naive_seconds", "gflops", "gemm_gflops", "fraction_of_gemm"):
        assert found[field] > 0
    assert found["max_error"] < 1e-6 and found["max_relative_error"] < 1e-5
    assert found["extra_peak_bytes"] is None or found["extra_peak_bytes"] >= 0
    assert found["fraction_of_gemm"] == pytest.approx(found["gflops"] / found["gemm_gflops"])
    assert (found["path"] == "compiled") == (build.build().library is not None)
    assert found["threads"] == 1 and found["backward"] is True


def test_torch_path_is_what_runs_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    run = "operator bench strassen --tokens 8 --dim 4 --path torch --seconds 0 --no-memory --json"
    with pytest.raises(SystemExit):
        main(run.split())
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["kernel"], found["extra_peak_bytes"]) == ("torch", "", None)


@pytest.mark.parametrize("name", ["third_order", "strassen"])
def test_no_cube_in_memory(name: str) -> None:
    """Forward and backward at N = 256: a cube of logits is 64 MiB, and the naive form shows that it is seen."""
    problem = Problem(name, 256, dim=4, backward=True)
    tensors, cube = problem.tensors(), 4 * 256**3

    def peak(call: Callable[..., torch.Tensor] | None) -> int:
        return peak_memory(lambda: problem.run(tensors, call), torch.device("cpu"))[1]

    for path in ("torch", "auto"):
        with build.use(path):
            assert peak(None) < 0.3 * cube
    assert peak(naive(name, 2, 256, False, None)) > cube


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with bench.thread_count(before + 1) as used:
        assert used == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_cube_that_does_not_fit_has_no_naive_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "available_bytes", lambda device: 1000)
    problem = Problem("third_order", 8, dim=2)
    assert bench.naive_seconds(problem, problem.tensors(), 0.0) is None


def test_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["operator", "list", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["operators"]] == list(OPERATORS)
    assert found["kernels"]["path"] in ("torch", "compiled")
    with pytest.raises(SystemExit):
        main(["operator", "list"])
    assert "third_order" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("quartic", "no operator is called quartic"),
        ("pairwise --dtype float16", "dtype float16 is not offered"),
        ("pairwise --tokens 0", "tokens 0 is below 1"),
        ("third_order --window 3", r"window \(3,\) has 1 lengths for 2 key sets"),
        ("third_order --window 3,2", "window 3,2 is no list of lengths"),
        ("pairwise --threads 0 --tokens 4", "0 threads"),
        ("pairwise --path slow", "slow is no path"),
    ],
)
def test_wrong_usage(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["operator", "bench", *arguments.split()])
    assert left.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_failed_memory_process_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nMemoryError: no room\n")

    monkeypatch.setattr(bench.subprocess, "run", killed)
    with pytest.raises(HeadcountError, match=r"the process that measures memory failed: MemoryError: no room"):
        bench.extra_peak_bytes(Problem("third_order", 4), 1)
