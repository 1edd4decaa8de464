"""Function composition: two tables and an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.tasks.base import NO_ANSWER, Answer, Task
from headcount.tasks.sizes import TOKENS


@dataclass(frozen=True)
class Composition(Task):
    """Composition: g(f(a)) at the last token, for f, g: [n] -> [n] (Peng et al. 2024, arXiv 2402.08164).

    The sequence is f(0)..f(n-1), g(0)..g(n-1), a, so N = 2n + 1. Inputs: ``x`` (count, N) symbols below n.
    Targets: (count, N), ``NO_ANSWER`` before the last token.

    - uniform: f, g and a uniform.
    - balanced: over the batch, since each sequence has one answer: half of the answers are at least n/2, which
      counts as positive here.
    - adversarial: sequences 2k, 2k+1 differ in one table entry, either f at a or g at f(a), and in their
      answers.

    >>> print(Composition(tokens=7).draw(x=[1, 2, 0, 2, 0, 1, 0]))  # f = 1 2 0, g = 2 0 1, a = 0: f(0) = 1, g(1) = 0
    x       1  2  0  2  0  1  0
    target  .  .  .  .  .  .  0
    """

    name: ClassVar[str] = "composition"
    answer: ClassVar[Answer] = "class"
    summary: ClassVar[str] = "g(f(a)) at the last token, from the tables of f and g and the argument a"

    tokens: int = TOKENS.field(65, least=3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens % 2 == 0:
            raise HeadcountError(
                f"tokens {self.tokens} is even, but two tables of n entries and an argument make 2n + 1",
                fix=f"choose {self.tokens + 1}",
            )

    @property
    def domain(self) -> int:
        """n."""
        return self.tokens // 2

    @property
    def vocabulary(self) -> int | None:
        """n."""
        return self.domain

    @property
    def classes(self) -> int | None:
        """n."""
        return self.domain

    def positive(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """Answers of at least n/2."""
        return np.asarray(2 * targets >= self.domain)

    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        return {"x": rng.integers(0, self.domain, (count, self.tokens))}

    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        n = self.domain
        self._two_answers()
        x = self._uniform(rng, count)["x"]
        rows, middle = np.arange(count), (n + 1) // 2
        high = rng.permutation(rows % 2 == 0)
        answer = np.where(high, rng.integers(middle, n, count), rng.integers(0, middle, count))
        x[rows, n + x[rows, x[:, -1]]] = answer
        return {"x": x}

    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        n = self.domain
        self._two_answers()
        x = np.repeat(self._uniform(rng, (count + 1) // 2)["x"], 2, axis=0)
        rows = np.arange(1, len(x), 2)
        argument = x[rows, -1]
        inner = x[rows, argument]
        outer = x[rows, n + inner]
        # Change either the inner value, with a different entry of g in both sequences, or the outer value.
        other = (inner + rng.integers(1, n, len(rows))) % n
        different = (outer + rng.integers(1, n, len(rows))) % n
        through_f = rng.integers(0, 2, len(rows)) == 1
        for offset in (0, 1):
            x[rows - offset, n + other] = np.where(through_f, different, x[rows - offset, n + other])
        x[rows, argument] = np.where(through_f, other, inner)
        x[rows, n + inner] = np.where(through_f, outer, different)
        return {"x": x[:count]}

    def _two_answers(self) -> None:
        if self.domain < 2:
            raise HeadcountError("with 3 tokens there is only one answer", fix="choose 5 tokens or more")

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (x,) = self._named(inputs)
        return {"x": self._symbols("x", x, self.domain)}

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        x = inputs["x"]
        rows = np.arange(len(x))
        targets = np.full(x.shape, NO_ANSWER, dtype=np.int64)
        targets[:, -1] = x[rows, self.domain + x[rows, x[:, -1]]]
        return targets
