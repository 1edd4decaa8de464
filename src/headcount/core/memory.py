"""Peak memory of a callable, beyond what was in use when it started.

On CUDA this is the allocator's own counter. Elsewhere it is the resident set of the process: on Linux the kernel's
high-water mark (``VmHWM``), which is reset to the current size by writing 5 to ``/proc/self/clear_refs``; if that file
does not exist or is not writable, a thread samples the size every 2 ms. The resident set covers all threads of the
process and only pages that were written to. Memory that was freed but is still held by the allocator at the start
would not be counted again, so it is first returned to the system where the C library supports it (glibc). Treat
differences below a few MiB as noise.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import torch

Result = TypeVar("Result")
Method = Literal["cuda", "high-water mark", "sampled"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_INTERVAL_SECONDS = 0.002


def method_for(device: torch.device) -> Method:
    """The method that ``peak_memory`` will use; see the module docstring."""
    if device.type == "cuda":
        return "cuda"
    return "high-water mark" if _reset_high_water() else "sampled"


def peak_memory(call: Callable[[], Result], device: torch.device) -> tuple[Result, int]:
    """(the result of ``call``, its peak memory in bytes beyond what was in use before).

    >>> made, peak_bytes = peak_memory(lambda: torch.ones(2**24), torch.device("cpu"))
    >>> peak_bytes > 0.9 * 4 * 2**24
    True
    """
    if device.type != "cuda":
        _give_back()
    method = method_for(device)
    if method == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return result, max(0, torch.cuda.max_memory_allocated(device) - before)
    return _by_high_water(call) if method == "high-water mark" else _by_sampling(call)


def _reset_high_water() -> bool:
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
        return _status("VmHWM") is not None
    return False


def _status(field: str) -> int | None:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _give_back() -> None:
    """Return free memory to the system, so that reusing it is counted."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _by_high_water(call: Callable[[], Result]) -> tuple[Result, int]:
    before = _status("VmRSS") or 0
    result = call()
    return result, max(0, (_status("VmHWM") or 0) - before)


def _by_sampling(call: Callable[[], Result]) -> tuple[Result, int]:
    import psutil

    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(_INTERVAL_SECONDS):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        result = call()
    finally:
        done.set()
        thread.join()
    return result, max(highest, process.memory_info().rss) - before


def available_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on ``device`` without evicting or swapping anything."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
