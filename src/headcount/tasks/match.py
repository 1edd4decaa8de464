"""Matching: does the token complete a tuple that sums to 0 mod M? Match2, Match3 and the general order s."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.core.options import SIZE_LIMIT
from headcount.tasks.balance import balanced_sequence
from headcount.tasks.base import Answer, Task
from headcount.tasks.residues import ROWS_LIMIT, triples_to_zero, tuples_to_zero
from headcount.tasks.sizes import DISTINCT, MODULUS, ORDER

ORDER_LIMIT = 64
"""The largest number of residues in a tuple; each costs one convolution."""


@dataclass(frozen=True)
class Matching(Task):
    """Base of the tasks about sums mod M: residues in, 0 or 1 out, and the three kinds.

    Inputs: ``x`` (count, N) integers in [0, M). Targets: (count, N) int8.

    - uniform: independent uniform residues.
    - balanced: 40 to 60% positive tokens in every sequence (``headcount.tasks.balance``).
    - adversarial: random residues with planted tuples that sum to 1 or -1 instead of 0 and, for one tuple in four,
      to 0: the smallest difference between a match and a miss.

    By default, ``modulus`` is chosen so that about half of the tokens of uniform sequences match.
    """

    answer: ClassVar[Answer] = "binary"

    modulus: int | None = MODULUS.field(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modulus is None:
            object.__setattr__(self, "modulus", max(self.arity + 1, self.natural_modulus))

    @property
    def residues(self) -> int:
        """M as an integer (``modulus`` is never ``None`` after construction)."""
        return cast(int, self.modulus)

    @property
    def arity(self) -> int:
        """s: the number of residues that are summed."""
        return 3

    @property
    def vocabulary(self) -> int | None:
        """M."""
        return self.modulus

    def places(self, rng: np.random.Generator, token: int) -> NDArray[np.int64]:
        """Positions (i, j_2, ..., j_s) of a tuple that can match at token i, with random j_2, ..., j_s.

        The positions are distinct if the task has enough of them.
        """
        others = rng.permutation(self.tokens)
        others = others[others != token][: self.arity - 1]
        return np.append(token, np.resize(others if len(others) else token, self.arity - 1))

    @property
    def natural_modulus(self) -> int:
        """The M at which a token of a uniform sequence matches with probability about 1/2.

        T tuples hit 0 with probability 1 - exp(-T/M), so M = T / ln 2; T = N^(s-1) / (s-1)!, since the
        orders of the other s - 1 tokens give the same sum.
        """
        return modulus_for(self.tokens ** (self.arity - 1), math.factorial(self.arity - 1))

    @abstractmethod
    def label(self, x: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The answers of one sequence, (N,)."""

    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        return {"x": rng.integers(0, self.residues, (count, self.tokens))}

    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        return {"x": np.stack([balanced_sequence(self, rng) for _ in range(count)])}

    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        x = rng.integers(0, self.residues, (count, self.tokens))
        for row in x:
            fixed = np.zeros(self.tokens, dtype=bool)  # tokens of tuples that are planted already
            planted = 0
            for token in rng.permutation(self.tokens):
                if fixed[token] or planted >= max(1, self.tokens // self.arity):
                    continue
                miss = (0, 1, 1, -1)[int(rng.integers(0, 4))]
                places = self.places(rng, int(token))
                row[token] = (miss - row[places[1:]].sum()) % self.residues
                fixed[places] = True
                planted += 1
        return {"x": x}

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (x,) = self._named(inputs)
        return {"x": self._symbols("x", x, self.residues)}

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
        return np.stack([self.label(row) for row in inputs["x"]]).astype(np.int8)


@dataclass(frozen=True)
class MatchS(Matching):
    """MatchS: 1 iff x_i + x_j2 + ... + x_js = 0 mod M for some j_2..j_s (Sanford et al. 2023 for s = 2, 3).

    The j's may repeat and may be i; with ``distinct`` they and i must all differ.

    >>> print(MatchS(tokens=5, modulus=50, order=4).draw(x=[1, 2, 3, 44, 20]))  # 1 + 2 + 3 + 44 = 0 mod 50
    x       1  2  3  44  20
    target  1  1  1  1   0
    """

    name: ClassVar[str] = "match-s"
    summary: ClassVar[str] = "1 iff the token and order-1 others sum to 0 mod M"

    order: int = ORDER.field(3, least=2, most=ORDER_LIMIT)
    distinct: bool = DISTINCT.field(False)

    @property
    def arity(self) -> int:
        """s."""
        return self.order

    def label(self, x: NDArray[np.int64]) -> NDArray[np.bool_]:
        """O(M log M + N) for each of the s - 2 convolutions, or all pairs if that is cheaper."""
        return tuples_to_zero(x, self.residues, self.order, self.distinct)

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
        """Solve many short sequences at once if possible, else one by one."""
        x = inputs["x"]
        short = max(x.shape[1] ** 2, self.residues) <= ROWS_LIMIT
        if self.order == 3 and not self.distinct and len(x) > 1 and short:
            return triples_to_zero(x, self.residues).astype(np.int8)
        return super()._solve(inputs)


@dataclass(frozen=True)
class Match2(MatchS):
    """Match2: 1 iff x_i + x_j = 0 mod M for some j (j = i allowed unless ``distinct``).

    >>> print(Match2(tokens=4, modulus=10).draw(x=[1, 2, 9, 4]))  # 1 + 9 = 0 mod 10
    x       1  2  9  4
    target  1  0  1  0
    """

    name: ClassVar[str] = "match2"
    summary: ClassVar[str] = "1 iff x_i + x_j = 0 mod M for some j"

    order: int = ORDER.field(2, least=2, most=ORDER_LIMIT)

    def __post_init__(self) -> None:
        _fixed_order(self, 2)
        super().__post_init__()


@dataclass(frozen=True)
class Match3(MatchS):
    """Match3: 1 iff x_i + x_j + x_k = 0 mod M for some j, k (repeats allowed unless ``distinct``).

    >>> print(Match3(tokens=5, modulus=20).draw(x=[1, 2, 17, 11, 4]))  # 1 + 2 + 17 = 0 mod 20
    x       1  2  17  11  4
    target  1  1  1   0   0
    """

    name: ClassVar[str] = "match3"
    summary: ClassVar[str] = "1 iff x_i + x_j + x_k = 0 mod M for some j, k"

    order: int = ORDER.field(3, least=2, most=ORDER_LIMIT)

    def __post_init__(self) -> None:
        _fixed_order(self, 3)
        super().__post_init__()


def modulus_for(tuples: int, orders: int = 1) -> int:
    """M = (tuples / orders) / ln 2, rounded, between 1 and ``SIZE_LIMIT``.

    >>> modulus_for(64**2, 2), modulus_for(10**400) == SIZE_LIMIT
    (2955, True)
    """
    if tuples >= SIZE_LIMIT * orders:  # the quotient might not be a float64
        return SIZE_LIMIT
    return min(SIZE_LIMIT, max(1, round(tuples / orders / math.log(2))))


def _fixed_order(task: MatchS, order: int) -> None:
    if task.order != order:
        raise HeadcountError(
            f"the order of {task.name} is {order}, not {task.order}",
            fix="leave --order out, or use match-s",
        )
