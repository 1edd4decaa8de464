"""Peak memory of a callable, by each method that this machine has."""

from __future__ import annotations

import time

import pytest
import torch

from headcount.core import memory
from headcount.core.memory import available_bytes, method_for, peak_memory

CPU = torch.device("cpu")
MIB = 2**20


def a_peak_of_96() -> int:
    """Hold 96 MiB for a moment, then 32."""
    kept = torch.ones(8 * MIB)
    more = torch.ones(16 * MIB)
    time.sleep(0.05)  # long enough for the sampling thread to look
    del more
    return kept.numel()


def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)


@pytest.mark.parametrize("by_sampling", [False, True])
def test_finds_a_peak_that_is_gone(by_sampling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_sampling:
        sampled(monkeypatch)
    result, peak = peak_memory(a_peak_of_96, CPU)
    assert result == 8 * MIB
    # The allocator may round up or reuse pages that were resident before: some MiB either way.
    assert peak == pytest.approx(96 * MIB, abs=16 * MIB)


def test_an_earlier_peak_does_not_count() -> None:
    a_peak_of_96()
    _, peak = peak_memory(lambda: torch.ones(2 * MIB), CPU)
    assert peak < 32 * MIB


def test_the_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert method_for(CPU) in ("high-water mark", "sampled")
    sampled(monkeypatch)
    assert method_for(CPU) == "sampled"


def test_errors_pass_through_and_stop_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    def fail() -> None:
        raise RuntimeError("no")

    sampled(monkeypatch)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no"):
        peak_memory(fail, CPU)
    assert threading.active_count() == before


def test_available_is_a_number_of_bytes() -> None:
    import psutil

    assert 0 < available_bytes(CPU) <= psutil.virtual_memory().total
