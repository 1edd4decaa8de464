"""Match3 with restricted tuples: inside a window, or with the other two tokens adjacent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from headcount.tasks.match import Matching, modulus_for
from headcount.tasks.residues import Residues
from headcount.tasks.sizes import DISTINCT, WINDOW


@dataclass(frozen=True)
class Match3Local(Matching):
    """Match3Local(K): 1 iff x_i + x_j + x_k = 0 mod M for some j, k with abs(i-j), abs(i-k) <= K.

    Source: Sanford et al. 2023, the assumption under which one attention layer suffices. With ``distinct``
    the three positions must differ.

    >>> print(Match3Local(tokens=5, modulus=20, window=1).draw(x=[1, 2, 17, 12, 13]))  # token 1 alone sees 1, 2 and 17
    x       1  2  17  12  13
    target  0  1  0   0   0
    """

    name: ClassVar[str] = "match3-local"
    summary: ClassVar[str] = "match3 with j and k at most window tokens away from i"

    window: int = WINDOW.field(4)
    distinct: bool = DISTINCT.field(False)

    @property
    def natural_modulus(self) -> int:
        """As for Match3, with the window's 2K+1 tokens instead of all N."""
        seen = min(self.tokens, 2 * self.window + 1)
        return modulus_for(seen**2, 2)

    def places(self, rng: np.random.Generator, token: int) -> NDArray[np.int64]:
        """i and two other positions inside its window."""
        inside = np.arange(max(0, token - self.window), min(self.tokens, token + self.window + 1))
        others = rng.permutation(inside[inside != token])[:2]
        return np.append(token, np.resize(others if len(others) else token, 2))

    def label(self, x: NDArray[np.int64]) -> NDArray[np.bool_]:
        """O(N K log N): for each offset j - i, is the missing residue inside the window of i?

        The pairs (residue, position) are sorted once, so that the occurrences of a residue inside a window
        form a slice, located by two binary searches.
        """
        n, modulus = len(x), self.residues
        support, rank = np.unique(x, return_inverse=True)
        occurrences = np.sort(rank * n + np.arange(n))
        matches = np.zeros(n, dtype=bool)
        for offset in range(-min(self.window, n - 1), min(self.window, n - 1) + 1):
            if self.distinct and offset == 0:
                continue
            i = np.arange(max(0, -offset), min(n, n - offset))
            missing = -(x[i] + x[i + offset]) % modulus
            place = np.searchsorted(support, missing)
            place[place == len(support)] = 0
            first = np.maximum(i - self.window, 0)
            last = np.minimum(i + self.window, n - 1)
            count = np.searchsorted(occurrences, place * n + last, side="right")
            count -= np.searchsorted(occurrences, place * n + first)
            if self.distinct:
                count -= (x[i] == missing).astype(np.int64) + (x[i + offset] == missing)
            matches[i] |= (support[place] == missing) & (count > 0)
        return matches


@dataclass(frozen=True)
class Match3Bigram(Matching):
    """Match3Bigram: 1 iff x_i + x_j + x_{j+1} = 0 mod M for some j (Sanford et al. 2023).

    With ``distinct``, i must be neither j nor j+1.

    >>> print(Match3Bigram(tokens=5, modulus=20).draw(x=[1, 12, 7, 12, 2]))  # 1 + 12 + 7 = 7 + 1 + 12 = 0 mod 20
    x       1  12  7  12  2
    target  1  0   1  0   0
    """

    name: ClassVar[str] = "match3-bigram"
    summary: ClassVar[str] = "1 iff x_i + x_j + x_(j+1) = 0 mod M for some j"

    distinct: bool = DISTINCT.field(False)

    @property
    def natural_modulus(self) -> int:
        """N - 1 pairs are tried, so M = (N - 1) / ln 2."""
        return modulus_for(self.tokens - 1)

    def places(self, rng: np.random.Generator, token: int) -> NDArray[np.int64]:
        """i, j, j+1 with i outside the pair if possible."""
        starts = np.arange(self.tokens - 1)
        free = starts[(starts != token) & (starts + 1 != token)]
        pool = free if len(free) else starts
        j = int(rng.choice(pool)) if len(pool) else token
        return np.array([token, j, min(j + 1, self.tokens - 1)])

    def label(self, x: NDArray[np.int64]) -> NDArray[np.bool_]:
        """O(N log N): is -x_i among the sums of neighbours?"""
        if len(x) < 2:
            return np.zeros(len(x), dtype=bool)
        sums = (x[:-1] + x[1:]) % self.residues
        missing = -x % self.residues
        count = Residues.of(sums, self.residues).at(missing)
        if self.distinct:
            count[:-1] -= sums == missing[:-1]
            count[1:] -= sums == missing[1:]
        return count > 0
