"""Named, independent random generators derived from a single integer seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the purpose described by ``names``, identical on every machine.

    The seed is a blake2b hash of ``seed`` and the names. Distinct names give independent streams, so adding a
    consumer of randomness never changes the stream of another.

    >>> derive(0, "labels", 3) == derive(0, "labels", 3)
    True
    >>> derive(0, "labels", 3) == derive(0, "labels", 4)
    False
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator (PCG64) for the purpose described by ``names``."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))


def torch_generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` for the purpose described by ``names``."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))
