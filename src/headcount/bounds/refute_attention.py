"""Refute a p-bit attention layer: on qSA by one embedding of two query sets, on Match3 by equal outputs.

qSA (``qsa_bits``): the embeddings of (0; y; i) over the q-subsets y are compared. All subsets are tried where
they are few, ``limit`` random ones elsewhere: more than 2^(mp) subsets must collide, and sqrt(2^(mp)) of them
are likely to.

Match3 (``match3_protocol``): set-disjointness instances with the same output at token 0 and different
labels. Two sets of the first party that differ in one element are asked about that element; their sums
differ in one token out of N, so an output of few bits often does not change.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headcount.bounds.base import Sizes
from headcount.bounds.disjointness import Tokens, match3_instance, match3_sets
from headcount.bounds.pbit import PBitAttention
from headcount.bounds.protocol import match3_bits
from headcount.bounds.qsa_bits import EMBEDDING_BITS, least_bits
from headcount.bounds.witness import Inputs, Refutation, Run, measure, no_witness
from headcount.errors import HeadcountError
from headcount.seeds import numpy_generator
from headcount.tasks.match import Match3
from headcount.tasks.qsa import QSA
from headcount.tasks.subsets import random_subsets

TRANSMITTED = "transmitted bits"
_CHUNK = 2**12  # subsets embedded at once
_CANDIDATES = 256  # collisions among which the one with the most different sets is taken


@runtime_checkable
class EmbeddedUnit(Protocol):
    """An attention unit (of any kind and precision inside) that reads tokens through p-bit embeddings.

    ``PBitAttention`` is one. ``tokens`` are the columns ``z`` (n, d'), ``y`` (n, q) and ``position`` (n,).
    """

    @property
    def embedding_dim(self) -> int:
        """m."""

    @property
    def precision_bits(self) -> int:
        """p."""

    def embed(self, tokens: Tokens) -> NDArray[Any]:
        """phi of each token, (n, m); an entry takes at most 2^p values."""

    def outputs(self, tokens: Tokens) -> NDArray[np.float64]:
        """The outputs of a whole sequence, (N, d')."""


def make_run(unit: EmbeddedUnit, tokens: int) -> Run:
    """The unit on batches of inputs, (count, N, d)."""

    def run(inputs: Inputs) -> NDArray[np.float64]:
        count = len(next(iter(inputs.values())))
        rows = [{name: array[k] for name, array in inputs.items()} for k in range(count)]
        return np.stack([unit.outputs({**row, "position": np.arange(tokens)}) for row in rows])

    return run


def refute_embedding(unit: EmbeddedUnit, task: QSA, seed: int = 0, limit: int = 2**16) -> Refutation:
    """Two subsets of token 0 that have the same embedding, and inputs that tell them apart."""
    n, q, dim = task.tokens, task.sparsity, task.dim
    bound, has = "qsa-bits", unit.embedding_dim * unit.precision_bits
    needed = least_bits(Sizes(tokens=n, sparsity=q)).value
    if has >= needed:
        return no_witness(task, bound, needed, has, EMBEDDING_BITS)
    subsets = _subsets(n, q, limit, seed)
    codes = np.vstack(
        [
            unit.embed({"z": np.zeros((len(y), dim)), "y": y, "position": np.zeros(len(y), dtype=np.int64)})
            for y in np.array_split(subsets, math.ceil(len(subsets) / _CHUNK))
        ]
    )
    _, place = np.unique(codes, axis=0, return_inverse=True)
    order = np.argsort(place.ravel(), kind="stable")
    same = np.flatnonzero(np.diff(place.ravel()[order]) == 0)[:_CANDIDATES]
    if not len(same):
        return no_witness(task, bound, needed, has, EMBEDDING_BITS, f"{len(subsets)} subsets were tried")
    pairs = [(subsets[order[k]], subsets[order[k + 1]]) for k in same]
    one, two = min(pairs, key=lambda pair: len(np.intersect1d(*pair)))
    z = np.zeros((n, dim))
    z[np.setdiff1d(one, two), 0], z[np.setdiff1d(two, one), 0] = 1, -1
    y = np.tile(np.arange(q), (n, 1))
    first, second = y.copy(), y.copy()
    first[0], second[0] = one, two
    witness = measure(task, make_run(unit, n), {"z": z, "y": first}, {"z": z, "y": second}, 0)
    if not witness.holds:
        return no_witness(task, bound, needed, has, EMBEDDING_BITS, "tokens go around the embedding")
    reason = (
        f"{has} bits of embedding are below {needed} for the subsets of {q}: token 0 is embedded alike for "
        f"{one.tolist()} and {two.tolist()}"
    )
    return Refutation(task, bound, needed, has, EMBEDDING_BITS, reason, witness)


def _subsets(n: int, q: int, limit: int, seed: int) -> NDArray[np.int64]:
    """q-subsets of tokens 1..n-1: all of them if they are at most ``limit``, else random distinct ones."""
    if math.comb(n - 1, q) <= limit:
        return np.array(list(itertools.combinations(range(1, n), q)), dtype=np.int64).reshape(-1, q)
    rng = numpy_generator(seed, "bounds", "embedding search")
    return np.unique(1 + random_subsets(rng, limit, n - 1, q), axis=0)


def refute_match3(layer: PBitAttention, task: Match3, seed: int = 0, limit: int = 2**10) -> Refutation:
    """Two inputs with one output at token 0, of which only one is a match there."""
    n, modulus = match3_sets(task.tokens), task.residues
    bound = "match3-protocol"
    if n < 1 or modulus < 2 * n + 2 or task.distinct:
        raise HeadcountError(
            f"tokens {task.tokens}, modulus {modulus}, distinct {task.distinct}: no instance fits",
            fix="choose at least 3 tokens, M >= N + 1 and distinct=False",
        )
    has = match3_bits(layer, n)
    if has >= n:
        return no_witness(task, bound, n, has, TRANSMITTED)
    rng = numpy_generator(seed, "bounds", "match3 search")
    run, public = make_run(layer, task.tokens), slice(0, 1)
    position = np.arange(task.tokens)
    for _ in range(limit):
        without, element = rng.integers(0, 2, n).astype(bool), int(rng.integers(n))
        without[element] = False
        asked = np.arange(n) == element
        x = [
            match3_instance(without | extra, asked, modulus, task.tokens).tokens["x"]
            for extra in (np.zeros(n, dtype=bool), asked)
        ]
        outputs = [layer({"x": row, "position": position}, public) for row in x]
        if (outputs[0] == outputs[1]).all():
            witness = measure(task, run, {"x": x[0]}, {"x": x[1]}, 0)
            reason = (
                f"{has} transmitted bits for sets of {n} elements: adding element {element} turns token 0 "
                f"into a match and leaves its output as it was"
            )
            return Refutation(task, bound, n, has, TRANSMITTED, reason, witness)
    return no_witness(task, bound, n, has, TRANSMITTED, f"{limit} pairs were tried")
