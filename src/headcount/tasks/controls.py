"""Parity and majority: two controls, one hard and one easy for attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headcount.tasks.base import Answer, Task


@dataclass(frozen=True)
class _Bits(Task):
    """Base of the tasks about the number of ones in a bit sequence; every token has the same target."""

    answer: ClassVar[Answer] = "binary"

    @property
    def vocabulary(self) -> int | None:
        """2."""
        return 2

    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        return {"x": rng.integers(0, 2, (count, self.tokens))}

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (x,) = self._named(inputs)
        return {"x": self._symbols("x", x, 2)}

    @abstractmethod
    def _answer(self, ones: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The answer of each sequence from its number of ones."""

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
        answer = self._answer(inputs["x"].sum(axis=1)).astype(np.int8)
        return np.repeat(answer[:, None], self.tokens, axis=1)


@dataclass(frozen=True)
class Parity(_Bits):
    """Parity: 1 iff the number of ones in the whole sequence is odd.

    Inputs: ``x`` (count, N) bits. Targets: (count, N), equal along a sequence; so balance is over the batch.

    - uniform: independent bits. - balanced: half of the sequences are odd.
    - adversarial: sequences 2k, 2k+1 differ in one bit.

    >>> print(Parity(tokens=4).draw(x=[1, 0, 1, 1]))
    x       1  0  1  1
    target  1  1  1  1
    """

    name: ClassVar[str] = "parity"
    summary: ClassVar[str] = "1 iff the sequence has an odd number of ones (a control)"

    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        x = self._uniform(rng, count)["x"]
        parity = rng.permutation(np.arange(count) % 2)
        flip = x.sum(axis=1) % 2 != parity
        x[flip, rng.integers(0, self.tokens, count)[flip]] ^= 1
        return {"x": x}

    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        x = np.repeat(self._uniform(rng, (count + 1) // 2)["x"], 2, axis=0)
        rows = np.arange(1, len(x), 2)
        x[rows, rng.integers(0, self.tokens, len(rows))] ^= 1
        return {"x": x[:count]}

    def _answer(self, ones: NDArray[np.int64]) -> NDArray[np.bool_]:
        odd: NDArray[np.bool_] = ones % 2 == 1
        return odd


@dataclass(frozen=True)
class Majority(_Bits):
    """Majority: 1 iff more than half of the bits of the whole sequence are ones.

    Inputs: ``x`` (count, N) bits. Targets: (count, N), equal along a sequence; so balance is over the batch.

    - uniform: independent bits. - balanced: half of the sequences have a majority, its size uniform.
    - adversarial: N // 2 ones or one more.

    >>> print(Majority(tokens=4).draw(x=[1, 0, 1, 0]))
    x       1  0  1  0
    target  0  0  0  0
    """

    name: ClassVar[str] = "majority"
    summary: ClassVar[str] = "1 iff more than half of the sequence's bits are ones (a control)"

    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        most = self.tokens // 2  # ones without a majority
        has_majority = rng.permutation(np.arange(count) % 2 == 1)
        ones = np.where(has_majority, rng.integers(most + 1, self.tokens + 1, count), rng.integers(0, most + 1, count))
        return {"x": self._with_ones(rng, ones)}

    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        return {"x": self._with_ones(rng, self.tokens // 2 + np.arange(count) % 2)}

    def _with_ones(self, rng: np.random.Generator, ones: NDArray[np.int64]) -> NDArray[np.int64]:
        sorted_bits = (np.arange(self.tokens) < ones[:, None]).astype(np.int64)
        return rng.permuted(sorted_bits, axis=1)

    def _answer(self, ones: NDArray[np.int64]) -> NDArray[np.bool_]:
        return 2 * ones > self.tokens
