"""Set-disjointness instances encoded as task inputs for two-party protocols.

Two parties hold subsets a, b of n elements. Deciding whether the sets intersect takes n bits: the 2^n pairs (a
set, its complement) are a fooling set. Each function here encodes (a, b) as one input of a task in which
every token belongs to one party (or to both: the public query token), such that the answer at token 0
decides disjointness.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.pbit.layer import Tokens

FIRST, SECOND, PUBLIC = 0, 1, 2
"""The party that knows a token."""


@dataclass(frozen=True)
class Instance:
    """One input of a task, split between two parties."""

    tokens: Tokens
    owner: NDArray[np.int64]
    """FIRST, SECOND or PUBLIC for each token."""
    meet: bool
    """Whether the two sets have an element in common."""

    def rows(self, *owners: int) -> Tokens:
        """The tokens that belong to these owners."""
        mask = np.isin(self.owner, owners)
        return {name: column[mask] for name, column in self.tokens.items()}


def set_pairs(
    rng: np.random.Generator, elements: int, count: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Hard pairs of sets as Boolean rows: alternately disjoint and intersecting in exactly one element.

    Each element is in the first set, the second set or neither, with equal probability; for an intersecting pair,
    one element is then added to both.
    """
    for k in range(count):
        where = rng.integers(0, 3, elements)
        first, second = where == 0, where == 1
        if k % 2:
            common = rng.integers(elements)
            first[common] = second[common] = True
        yield first, second


def match3_sets(tokens: int) -> int:
    """Number of set elements in a Match3 input with one public token and one token per element and party."""
    return (tokens - 1) // 2


def match3_instance(
    first: NDArray[np.bool_], second: NDArray[np.bool_], modulus: int, tokens: int | None = None
) -> Instance:
    """A Match3 input that is positive at token 0 exactly if the sets intersect, for every M >= 2n + 2.

    Token 0 is 1, and so is every token for an element outside the set. Element k is u_k = 0, 2, 3, ..., n in the
    first party's tokens and M - 1 - u_k in the second's. So 1 + u_k + (M - 1 - u_k) = 0 mod M. No other
    pair completes a triple with 1: the partner of u is M - 1 - u; u_k < M - 1 - u_k keeps the
    two families disjoint; the partner of 1 is M - 2, which is in neither family (u = 1 is excluded), and
    1 + 1 + 1 is not 0.
    """
    n = len(first)
    tokens = 2 * n + 1 if tokens is None else tokens
    if match3_sets(tokens) != n:
        raise HeadcountError(
            f"{tokens} tokens hold sets of {match3_sets(tokens)} elements, not {n}",
            fix=f"give {2 * n + 1} tokens",
        )
    if modulus < 2 * n + 2:
        raise HeadcountError(
            f"modulus {modulus} is too small for {tokens} tokens", fix=f"choose M of at least {2 * n + 2}"
        )
    code = np.arange(1, n + 1)
    code[0:1] = 0
    x = np.ones(tokens, dtype=np.int64)
    x[1 : n + 1] = np.where(first, code, 1)
    x[n + 1 : 2 * n + 1] = np.where(second, modulus - 1 - code, 1)
    owner = np.full(tokens, SECOND)
    owner[0], owner[1 : n + 1] = PUBLIC, FIRST
    return Instance({"x": x, "position": np.arange(tokens)}, owner, bool((first & second).any()))


def qsa_instance(
    first: NDArray[np.bool_], second: NDArray[np.bool_], tokens: int | None = None, dim: int = 1
) -> Instance:
    """A qSA input with q = n: token 0's target is |a and b|/q * e1; the first party has only token 0.

    Token 0 queries tokens 1 + 2k + a_k, k = 0..q-1. Token 2 + 2k has the value b_k e1 and all others 0, so
    the average counts the k with a_k = b_k = 1: an output within 1/(2q) of the target determines whether there
    are any.
    """
    q = len(first)
    tokens = 2 * q + 1 if tokens is None else tokens
    if tokens < 2 * q + 1:
        raise HeadcountError(f"{tokens} tokens are too few for q = {q}", fix=f"give at least {2 * q + 1} tokens")
    z = np.zeros((tokens, dim), dtype=np.float64)
    z[2 : 2 * q + 2 : 2, 0] = second
    y = np.tile(np.arange(q), (tokens, 1))
    y[0] = 1 + 2 * np.arange(q) + first
    owner = np.full(tokens, SECOND)
    owner[0] = FIRST
    return Instance({"z": z, "y": y, "position": np.arange(tokens)}, owner, bool((first & second).any()))
