"""Multi-query associative recall: keys are followed by values once and queried later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.tasks.base import NO_ANSWER, Answer, Task
from headcount.tasks.sizes import SYMBOLS


@dataclass(frozen=True)
class Recall(Task):
    """Recall (MQAR, Arora et al. 2023): the value that last followed the token's key before it.

    Symbols 0..V/2-1 are keys, V/2..V-1 values. A key directly followed by a value binds it. The target of a
    key that was bound before is the value of its latest binding; all other tokens have no question.
    Inputs: ``x`` (count, N) symbols. Targets: (count, N) symbols or ``NO_ANSWER``.

    - uniform: independent uniform symbols.
    - balanced: distinct keys with values, fillers, then as many queries as half of the tokens.
    - adversarial: as balanced, but half of the keys are bound a second time to another value, and only the later
      binding counts. Fewer than half of the tokens are then queries.

    >>> print(Recall(tokens=9, symbols=8).draw(x=[0, 5, 1, 6, 0, 1, 0, 7, 0]))  # keys 0..3, values 4..7
    x       0  5  1  6  0  1  0  7  0
    target  .  .  .  .  5  6  5  .  7
    """

    name: ClassVar[str] = "recall"
    answer: ClassVar[Answer] = "class"
    summary: ClassVar[str] = "the value that last followed the token's key (multi-query associative recall)"

    symbols: int = SYMBOLS.field(64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symbols % 2:
            raise HeadcountError(
                f"symbols {self.symbols} is odd, but half of them are keys and half values",
                fix=f"choose {self.symbols + 1}",
            )

    @property
    def vocabulary(self) -> int | None:
        """V."""
        return self.symbols

    @property
    def classes(self) -> int | None:
        """V: the classes are the symbols."""
        return self.symbols

    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        return {"x": rng.integers(0, self.symbols, (count, self.tokens))}

    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        queries = round(self.tokens / 2)
        return {"x": self._stored_then_asked(rng, count, queries, again=False)}

    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        if self.symbols < 4:
            raise HeadcountError("with one value no key can be bound again", fix="give --symbols 4 or more")
        queries = max(1, self.tokens // 4)
        return {"x": self._stored_then_asked(rng, count, queries, again=True)}

    def _stored_then_asked(self, rng: np.random.Generator, count: int, queries: int, again: bool) -> NDArray[np.int64]:
        """Pairs, then (with ``again``) half of the keys with new values, then fillers, then queries."""
        half, room = self.symbols // 2, self.tokens - queries
        pairs = min(half, room // 3 if again else room // 2)
        if pairs < (2 if again else 1):
            raise HeadcountError(
                f"{self.tokens} tokens have no room for pairs and queries", fix="give --tokens 8 or more"
            )
        x = rng.integers(half, self.symbols, (count, self.tokens))  # fillers are values not preceded by a key
        for row in x:
            keys = rng.permutation(half)[:pairs]
            row[0 : 2 * pairs : 2] = keys
            if again:
                redone = pairs // 2
                start = 2 * pairs
                row[start : start + 2 * redone : 2] = keys[:redone]
                shift = rng.integers(1, half, redone)
                row[start + 1 : start + 2 * redone : 2] = half + (row[1 : 2 * redone : 2] - half + shift) % half
            row[room:] = keys[rng.integers(0, pairs, queries)]
        return x

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (x,) = self._named(inputs)
        return {"x": self._symbols("x", x, self.symbols)}

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """One pass over the positions, all sequences at once."""
        x, half = inputs["x"], self.symbols // 2
        bound = np.full((len(x), half), NO_ANSWER, dtype=np.int64)
        targets = np.full(x.shape, NO_ANSWER, dtype=np.int64)
        everyone = np.arange(len(x))
        for position in range(self.tokens):
            now = x[:, position]
            if position:
                before = x[:, position - 1]
                binds = (before < half) & (now >= half)
                bound[everyone[binds], before[binds]] = now[binds]
            asks = now < half
            targets[asks, position] = bound[everyone[asks], now[asks]]
        return targets
