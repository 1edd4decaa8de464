"""Label-balanced sequences for the matching tasks, for any N and M: 40 to 60% of the tokens match.

Uniform residues almost always match if M is small relative to N and almost never if it is large. Therefore:

- M large: start from uniform residues and complete random tuples until enough tokens match;
- M small: first draw a *palette*, a set of residues small enough that about half of them match within it. A
  residue of the palette that does not match within it cannot match in any sequence over the palette, for any order,
  window or multiplicity; so the sequence is filled with matching and non-matching residues as needed.

Both run in a loop of draw, label, repair. If the loop does not succeed (very few tokens, a window of one), the
fallback is a sequence of 0 and one unit v: 0 matches itself, and v, 2v, ..., sv are not 0 for M > s. For M <= s no
such residue exists, and the unrestricted tasks cannot be balanced at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.tasks.residues import tuples_to_zero

Integers = NDArray[np.int64]

LOW, HIGH = 0.4, 0.6
_ATTEMPTS = 4
_REPAIRS = 40


class MatchingTask(Protocol):
    """The interface that a task needs for balancing its sequences."""

    @property
    def name(self) -> str:
        """The name used in error messages."""

    @property
    def tokens(self) -> int:
        """N."""

    @property
    def residues(self) -> int:
        """M."""

    @property
    def arity(self) -> int:
        """s."""

    @property
    def natural_modulus(self) -> int:
        """The M at which about half of the tokens of uniform sequences match."""

    def places(self, rng: np.random.Generator, token: int) -> Integers:
        """Positions of a tuple that can match at ``token``."""

    def label(self, x: Integers) -> NDArray[np.bool_]:
        """The answers of one sequence."""


@dataclass(frozen=True)
class _Palette:
    """Residues of a palette, split by whether they match within it."""

    matching: Integers
    others: Integers
    modulus: int

    def tuple_of(self, rng: np.random.Generator, order: int) -> Integers:
        """A tuple over the palette that sums to 0; its first element is drawn at random."""
        first = int(rng.choice(self.matching))
        rest = _complete(rng, self.matching, -first % self.modulus, order - 1, self.modulus)
        assert rest is not None  # all residues of a matching tuple are matching residues
        return np.array([first, *rest])


def balanced_sequence(task: MatchingTask, rng: np.random.Generator) -> Integers:
    """One sequence of ``task`` in which 40 to 60% of the tokens match, (N,)."""
    n, modulus, order = task.tokens, task.residues, task.arity
    low, high = math.ceil(LOW * n), math.floor(HIGH * n)
    if low > high:
        raise HeadcountError(
            f"of {n} tokens no number is 40 to 60%", fix="choose 2, 4 or more tokens for balanced labels"
        )
    saturated = modulus < 0.75 * task.natural_modulus
    for _ in range(_ATTEMPTS):
        palette = None
        if saturated:
            palette = _palette(rng, modulus, order)
            if palette is None:
                break
            x = rng.permutation(np.concatenate([palette.matching, palette.others]))
            x = x[rng.integers(0, len(x), n)]
        else:
            x = rng.integers(0, modulus, n)
        if _repair(task, rng, x, palette, low, high):
            return x
    if modulus > order:
        for zeros in sorted(range(max(low, 1), high + 1), key=lambda k: abs(2 * k - n)):
            x = _two_residues(rng, n, modulus, zeros)
            if low <= task.label(x).sum() <= high:
                return x
        raise HeadcountError(
            f"no balanced sequence of {n} tokens was found for {task.name} mod {modulus}",
            fix=f"use {4 * order} tokens or more",
        )
    raise HeadcountError(
        f"{task.name} mod {modulus} cannot be balanced: {order} equal residues sum to 0 or nothing does",
        fix=f"choose a modulus of {order + 1} or more",
    )


def _repair(
    task: MatchingTask, rng: np.random.Generator, x: Integers, palette: _Palette | None, low: int, high: int
) -> bool:
    """Change tokens of ``x`` in place until the number of matches is in [low, high]; return whether that succeeded."""
    modulus, middle = task.residues, len(x) // 2
    for _ in range(_REPAIRS):
        matches = task.label(x)
        count = int(matches.sum())
        if low <= count <= high:
            return True
        if count > high:
            places = rng.choice(np.flatnonzero(matches), count - middle, replace=False)
            x[places] = (
                rng.integers(0, modulus, len(places))
                if palette is None
                else palette.others[rng.integers(0, len(palette.others), len(places))]
            )
            continue
        free = rng.permutation(np.flatnonzero(~matches))
        for token in free[: max(1, (middle - count) // task.arity)]:
            places = task.places(rng, int(token))
            if palette is None:
                x[token] = -x[places[1:]].sum() % modulus
            else:
                x[places] = palette.tuple_of(rng, task.arity)
    return False


def _palette(rng: np.random.Generator, modulus: int, order: int) -> _Palette | None:
    """A random palette with both matching and other residues; ``None`` if no attempt gives one."""
    # u values have u^(s-1)/(s-1)! sums of s-1: about half of the values match if that is M ln 2.
    size = (math.factorial(order - 1) * math.log(2) * modulus) ** (1 / (order - 1))
    for _ in range(40):
        values = np.unique(rng.integers(0, modulus, max(1, round(size * rng.uniform(0.7, 1.2)))))
        matches = tuples_to_zero(values, modulus, order)
        if not matches.any():  # complete one tuple
            picks = rng.choice(values, order - 1)
            values = np.unique(np.append(values, -picks.sum() % modulus))
            matches = tuples_to_zero(values, modulus, order)
        if matches.all():
            size *= 0.9
        elif matches.any():
            return _Palette(values[matches], values[~matches], modulus)
    return None


def _complete(rng: np.random.Generator, values: Integers, target: int, length: int, modulus: int) -> list[int] | None:
    """``length`` elements of ``values`` (repeats allowed) that sum to ``target`` mod M."""
    if length == 1:
        return [target] if target in values else None
    shuffled = rng.permutation(values)
    if length == 2:
        hits = np.flatnonzero(np.isin((target - shuffled) % modulus, values))
        return None if len(hits) == 0 else [int(shuffled[hits[0]]), int((target - shuffled[hits[0]]) % modulus)]
    for value in shuffled:
        rest = _complete(rng, values, int((target - value) % modulus), length - 1, modulus)
        if rest is not None:
            return [int(value), *rest]
    return None


def _two_residues(rng: np.random.Generator, n: int, modulus: int, zeros: int) -> Integers:
    """``zeros`` zeros, two of them adjacent, among copies of one unit mod M."""
    unit = 1
    for _ in range(64):
        drawn = int(rng.integers(1, modulus))
        if math.gcd(drawn, modulus) == 1:
            unit = drawn
            break
    x = np.full(n, unit, dtype=np.int64)
    first = int(rng.integers(0, max(1, n - 1)))
    x[first] = 0
    if zeros > 1:
        x[first + 1] = 0
        others = np.flatnonzero(x)
        x[rng.permutation(others)[: zeros - 2]] = 0
    return x
