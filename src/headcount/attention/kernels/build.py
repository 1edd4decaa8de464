"""Builds the C++ kernels on first use for the current processor and selects the path of each operator.

The sources beside this file are compiled into one shared library by the installed compiler (``$CXX``, else ``c++``,
``g++``, ``clang++``), in the user's cache directory (``$XDG_CACHE_HOME`` or ``~/.cache``, under
``headcount/kernels``). Its name is a hash of the sources, the flags and everything the compiler defines for this
processor, so machines with a shared home directory never load each other's code. The library is written to a
temporary directory and then renamed, so an interrupted build or two concurrent builds leave no partial file. Plain C
functions are called through ctypes; PyTorch's headers are not needed.

``HEADCOUNT_KERNELS`` chooses the path: ``auto`` (compiled if available, else plain torch), ``torch``, or
``compiled`` (an error if not available). :func:`use` does the same for a block of code, and
:func:`watch` records which path ran.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from headcount.core.errors import HeadcountError

PATHS = ("auto", "torch", "compiled")
SOURCES = (
    "simd.h",
    "third_order.h",
    "third_order_forward.cpp",
    "third_order_backward.cpp",
    "strassen.cpp",
    "pairwise.cpp",
)
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
# With native instructions and threads first, then without flags that a compiler may not support.
VARIANTS = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
    ("-fopenmp",),
    (),
)
BUILD_SECONDS = 300

_log = logging.getLogger("headcount")
_chosen: ContextVar[str | None] = ContextVar("headcount_kernels", default=None)
_watched: ContextVar[list[tuple[str, str]] | None] = ContextVar("headcount_kernels_watched", default=None)


@dataclass(frozen=True)
class Built:
    """The result of a build: a loaded library, or the reason why there is none."""

    library: ctypes.CDLL | None
    reason: str
    file: Path | None = None

    @property
    def description(self) -> str:
        """The instruction set and other compilation features of the library; empty without a library."""
        if self.library is None:
            return ""
        self.library.hc_description.restype = ctypes.c_char_p
        return str(self.library.hc_description().decode())


def path() -> str:
    """The requested path: ``auto``, ``torch`` or ``compiled``."""
    asked = _chosen.get() or os.environ.get("HEADCOUNT_KERNELS", "auto")
    if asked not in PATHS:
        raise HeadcountError(f"HEADCOUNT_KERNELS={asked} is no path", fix=f"use one of {', '.join(PATHS)}")
    return asked


@contextlib.contextmanager
def use(path: str) -> Iterator[None]:
    """Use the given path inside the block: ``torch``, ``compiled`` or ``auto``."""
    if path not in PATHS:
        raise HeadcountError(f"{path} is no path", fix=f"use one of {', '.join(PATHS)}")
    token = _chosen.set(path)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def watch() -> Iterator[list[tuple[str, str]]]:
    """Record (operator, path) of every operator with two paths that runs inside the block.

    >>> import torch
    >>> from headcount import attention
    >>> from headcount.attention.kernels import build
    >>> x = torch.ones(1, 1, 2, 1)
    >>> with build.use("torch"), build.watch() as ran:
    ...     _ = attention.third_order(x, x, x, x, x)
    >>> ran
    [('third_order', 'torch')]
    """
    ran: list[tuple[str, str]] = []
    token = _watched.set(ran)
    try:
        yield ran
    finally:
        _watched.reset(token)


def note(operator: str, path: str) -> None:
    """Report to :func:`watch` that ``operator`` ran on ``path``."""
    ran = _watched.get()
    if ran is not None:
        ran.append((operator, path))


def library() -> ctypes.CDLL | None:
    """The compiled kernels, built if needed; None on the torch path, or on auto if the build fails."""
    asked = path()
    if asked == "torch":
        return None
    built = build()
    if built.library is None and asked == "compiled":
        raise HeadcountError(
            f"the compiled kernels cannot be built: {built.reason}",
            fix="install a C++ compiler, or leave HEADCOUNT_KERNELS at auto",
        )
    return built.library


@functools.cache
def build() -> Built:
    """Find the library in the cache or compile it; runs once per process."""
    compiler = _compiler()
    if compiler is None:
        return Built(None, "no C++ compiler found (looked for $CXX, c++, g++, clang++)")
    sources = {name: Path(__file__).with_name(name).read_bytes() for name in SOURCES}
    reason = ""
    for variant in VARIANTS:
        target = _target(compiler, variant)
        if target is None:
            continue
        digest = hashlib.blake2b(digest_size=10)
        for part in (*sources.values(), target, repr((FLAGS, variant)).encode()):
            digest.update(hashlib.blake2b(part).digest())
        try:
            file = _cache() / f"kernels-{digest.hexdigest()}.so"
            if not file.exists():
                _log.info("building the attention kernels once for this processor: %s", file)
                _compile(compiler, (*FLAGS, *variant), file)
            return Built(ctypes.CDLL(str(file)), "", file)
        except (OSError, subprocess.SubprocessError) as error:
            reason = _one_line(error)
    return Built(None, reason or f"{compiler[0]} compiles nothing")


def _compiler() -> list[str] | None:
    asked = os.environ.get("CXX", "").split()
    if asked:
        return asked
    if sys.platform == "win32":
        return None  # the sources use the vector extensions of GCC and Clang
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [compiler] if compiler else None


def _target(compiler: list[str], variant: tuple[str, ...]) -> bytes | None:
    """Everything the compiler defines under these flags: its version and the processor's features."""
    try:
        return subprocess.run(
            [*compiler, *variant, "-dM", "-E", "-x", "c++", os.devnull],
            check=True,
            capture_output=True,
            timeout=BUILD_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "headcount" / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compile(compiler: list[str], flags: tuple[str, ...], file: Path) -> None:
    """Compile all sources in parallel, then link the library: 17 s of CPU time with GCC 12."""

    def run(*arguments: str | Path) -> None:
        subprocess.run(
            [*compiler, *flags, *map(str, arguments)], check=True, capture_output=True, timeout=BUILD_SECONDS
        )

    sources = [Path(__file__).with_name(name) for name in SOURCES if name.endswith(".cpp")]
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="build-") as folder:
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(lambda source, made: run("-w", "-c", source, "-o", made), sources, objects))
        made = Path(folder) / file.name
        run("-shared", *objects, "-o", made)
        made.replace(file)


def _one_line(error: Exception) -> str:
    output = getattr(error, "stderr", None)
    lines = (output.decode(errors="replace") if output else str(error)).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else type(error).__name__)
