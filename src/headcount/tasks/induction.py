"""k-hop induction heads: follow the last earlier occurrence k times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.tasks.base import NO_ANSWER, Answer, Task
from headcount.tasks.sizes import HOPS, SYMBOLS


@dataclass(frozen=True)
class Induction(Task):
    """k-hop induction: target_i = x at hop^k(i), with hop(i) = 1 + (last p < i with x_p = x_i).

    For k = 1 this is the induction head: the symbol after the last earlier occurrence of this symbol (Sanford et
    al. 2024, arXiv 2402.09268, Definition of k-hop). A token has no question if some hop has no earlier
    occurrence. Inputs: ``x`` (count, N) symbols. Targets: (count, N) symbols or ``NO_ANSWER``.

    - uniform: independent uniform symbols.
    - balanced: 40 to 60% of the tokens have an answer: distinct symbols first, then repeats of them.
    - adversarial: sequences 2k, 2k+1 differ in one token, the one that contains the last token's answer.

    By default, ``symbols`` equals the number of tokens.

    >>> print(Induction(tokens=6, symbols=4).draw(x=[3, 1, 2, 3, 1, 3]))
    x       3  1  2  3  1  3
    target  .  .  .  1  2  1
    """

    name: ClassVar[str] = "induction"
    answer: ClassVar[Answer] = "class"
    summary: ClassVar[str] = "what followed the token's last occurrence, followed hops times"

    symbols: int | None = SYMBOLS.field(None)
    hops: int = HOPS.field(1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symbols is None:
            object.__setattr__(self, "symbols", max(2, self.tokens))

    @property
    def vocabulary(self) -> int:
        """V."""
        assert self.symbols is not None
        return self.symbols

    @property
    def classes(self) -> int:
        """V."""
        return self.vocabulary

    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        return {"x": rng.integers(0, self.vocabulary, (count, self.tokens))}

    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        return {"x": np.stack([self._balanced_sequence(rng) for _ in range(count)])}

    def _balanced_sequence(self, rng: np.random.Generator) -> NDArray[np.int64]:
        n = self.tokens
        low, high = int(np.ceil(0.4 * n)), int(np.floor(0.6 * n))
        distinct = n // 2
        for _ in range(40):
            distinct = min(max(distinct, 1), self.vocabulary, n)
            fresh = _distinct_symbols(rng, self.vocabulary, distinct)
            x = np.concatenate([fresh, fresh[rng.integers(0, distinct, n - distinct)]])
            answered = int((self._solve({"x": x[None]}) != NO_ANSWER).sum())
            if low <= answered <= high:
                return x
            step = max(1, abs(answered - n // 2) // 2)
            distinct += step if answered > high else -step
        if self.vocabulary >= n // 2 and low <= n - n // 2 <= high:
            # Repeating the last symbol makes it follow itself, so every repeat has an answer for any number of hops.
            fresh = _distinct_symbols(rng, self.vocabulary, n // 2)
            return np.concatenate([fresh, np.full(n - n // 2, fresh[-1])])
        raise HeadcountError(
            f"with {self.vocabulary} symbols in {n} tokens nearly every token has an answer",
            fix=f"use {max(4, n // 2)} symbols or more, and 4 tokens or more",
        )

    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        few = min(self.vocabulary, max(2, self.tokens // (4 * self.hops)))
        x = np.repeat(rng.integers(0, few, ((count + 1) // 2, self.tokens)), 2, axis=0)
        place = self._hop(x)[::2, -1]
        answered = place >= 0
        rows, places = 2 * np.flatnonzero(answered) + 1, place[answered]
        shift = rng.integers(1, self.vocabulary, len(rows))
        x[rows, places] = (x[rows, places] + shift) % self.vocabulary
        return {"x": x[:count]}

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (x,) = self._named(inputs)
        return {"x": self._symbols("x", x, self.vocabulary)}

    def _hop(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """hop^k(i) for all i; -1 if it does not exist."""
        count, n = x.shape
        # Sort positions by (sequence, symbol, position): the predecessor, if it has the same symbol, is the
        # last earlier occurrence.
        key = (np.arange(count)[:, None] * self.vocabulary + x).ravel()
        order = np.argsort(key, kind="stable")
        follows = key[order[1:]] == key[order[:-1]]
        hop = np.full(count * n, -1, dtype=np.int64)
        hop[order[1:][follows]] = order[:-1][follows] % n + 1
        hop = hop.reshape(count, n)
        place = np.broadcast_to(np.arange(n), (count, n))
        for _ in range(self.hops):
            place = np.where(place < 0, -1, np.take_along_axis(hop, np.maximum(place, 0), axis=1))
        return place

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """O(N log N) for the last occurrences and O(N k) for the hops."""
        place = self._hop(inputs["x"])
        answers = np.take_along_axis(inputs["x"], np.maximum(place, 0), axis=1)
        return np.where(place < 0, NO_ANSWER, answers)


def _distinct_symbols(rng: np.random.Generator, symbols: int, number: int) -> NDArray[np.int64]:
    """``number`` distinct symbols in random order."""
    return rng.choice(symbols, number, replace=False)
