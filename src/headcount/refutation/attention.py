"""Refute a p-bit attention layer: on qSA by equal embeddings of two query sets, on Match3 by equal outputs.

qSA (``qsa_bits``): the embeddings of (0; y; i) over the q-subsets y are compared. All subsets are tried if
there are at most ``limit``, otherwise ``limit`` random ones: more than 2^(mp) subsets must collide, and about
sqrt(2^(mp)) of them are likely to.

Match3 (``match3``): set-disjointness instances with the same output at token 0 and different
labels. Two sets of the first party that differ in one element are queried for that element; their sums
differ in one token out of N, so an output of few bits often stays the same.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headcount.bounds.base import Sizes
from headcount.bounds.statements.qsa_bits import EMBEDDING_BITS, least_bits
from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.pbit.layer import SUM_BITS, PBitAttention, SetEmbedding, SymbolEmbedding, Tokens
from headcount.protocols.disjointness import match3_instance, match3_sets
from headcount.protocols.two_party import match3_bits
from headcount.refutation.witness import Comparison, Inputs, Refutation, Run, measure
from headcount.tasks.match import Match3
from headcount.tasks.qsa import QSA
from headcount.tasks.subsets import random_subsets

TRANSMITTED = "transmitted bits"
_CHUNK = 2**12  # subsets embedded at once
_CANDIDATES = 256  # collisions from which those with the most different sets are chosen
_RUNS = 8  # collisions that are run through the unit


@runtime_checkable
class EmbeddedUnit(Protocol):
    """An attention unit (of any kind and internal precision) that reads tokens through p-bit embeddings.

    ``PBitAttention`` is one. ``tokens`` are the columns ``z`` (n, d'), ``y`` (n, q) and ``position`` (n,).
    """

    @property
    def embedding_dim(self) -> int:
        """m."""

    @property
    def precision_bits(self) -> int:
        """p."""

    def embed(self, tokens: Tokens) -> NDArray[Any]:
        """phi of each token, (n, m); each entry has at most 2^p possible values."""

    def outputs(self, tokens: Tokens) -> NDArray[np.float64]:
        """The outputs of a whole sequence, (N, d')."""


def make_run(unit: EmbeddedUnit, tokens: int) -> Run:
    """The function that runs the unit on batches of inputs, with outputs (count, N, d)."""

    def run(inputs: Inputs) -> NDArray[np.float64]:
        count = len(next(iter(inputs.values())))
        rows = [{name: array[k] for name, array in inputs.items()} for k in range(count)]
        return np.stack([unit.outputs({**row, "position": np.arange(tokens)}) for row in rows])

    return run


def reads_tokens_through_codes(unit: object) -> bool:
    """Whether the type of ``unit`` guarantees that outputs depend on tokens only through p-bit embeddings.

    True for a ``PBitAttention`` with an embedding of ``headcount.pbit``, false for subclasses of these.
    """
    if type(unit) is not PBitAttention or type(unit.embedding) not in (SetEmbedding, SymbolEmbedding):
        return False
    return bool(getattr(unit.embedding, "precision_bits", SUM_BITS) <= unit.precision_bits)


def refute_embedding(unit: EmbeddedUnit, task: QSA, seed: int = 0, limit: int = 2**16) -> Refutation:
    """Two subsets of token 0 with the same embedding, and inputs whose targets differ.

    The bound does not apply (``does not apply``) to a unit in which tokens bypass the embedding, or whose embedding
    has more than m p bits: pairs with equal embeddings then give different outputs, or there are
    more than 2^(m p) embeddings.
    """
    n, q, dim = task.tokens, task.sparsity, task.dim
    needed = least_bits(Sizes(tokens=n, sparsity=q)).value
    has = unit.embedding_dim * unit.precision_bits
    compared = Comparison(task, "qsa-bits", needed, has, EMBEDDING_BITS)
    if has >= needed:
        return compared.allowed()
    subsets = _subsets(n, q, limit, seed)
    codes = np.vstack(
        [
            unit.embed({"z": np.zeros((len(y), dim)), "y": y, "position": np.zeros(len(y), dtype=np.int64)})
            for y in np.array_split(subsets, math.ceil(len(subsets) / _CHUNK))
        ]
    )
    excess = _more_than_declared(unit, codes)
    if excess:
        return compared.fails("have p bits", excess)
    _, place = np.unique(codes, axis=0, return_inverse=True)
    order = np.argsort(place.ravel(), kind="stable")
    same = np.flatnonzero(np.diff(place.ravel()[order]) == 0)[:_CANDIDATES]
    if not len(same):
        searched = f"{len(subsets)} subsets were tried"
        return compared.by_counting(searched) if reads_tokens_through_codes(unit) else compared.undecided(searched)
    pairs = sorted(
        ((subsets[order[k]], subsets[order[k + 1]]) for k in same), key=lambda pair: len(np.intersect1d(*pair))
    )
    run, differing = make_run(unit, n), None
    for one, two in pairs[:_RUNS]:
        z = np.zeros((n, dim))
        z[np.setdiff1d(one, two), 0], z[np.setdiff1d(two, one), 0] = 1, -1
        y = np.tile(np.arange(q), (n, 1))
        first, second = y.copy(), y.copy()
        first[0], second[0] = one, two
        witness = measure(task, run, {"z": z, "y": first}, {"z": z, "y": second}, 0)
        if witness.holds:
            reason = (
                f"{has} bits of embedding are below {needed} for the subsets of {q}: token 0 is embedded alike for "
                f"{one.tolist()} and {two.tolist()}"
            )
            return compared.refuted(witness, reason)
        differing = differing or witness
    assert differing is not None
    if not np.isfinite(differing.output_distance):
        return compared.undecided("the outputs on the constructed inputs are not finite")
    return compared.fails(
        "through phi only",
        f"token 0 is embedded alike for {pairs[0][0].tolist()} and {pairs[0][1].tolist()}, yet its outputs are "
        f"{differing.output_distance:.2g} apart",
    )


def _more_than_declared(unit: EmbeddedUnit, codes: NDArray[Any]) -> str:
    """A description of how the observed embeddings exceed m numbers of p bits; empty if they do not."""
    m, p = unit.embedding_dim, unit.precision_bits
    if codes.shape[1] != m:
        return f"the embedding has {codes.shape[1]} numbers, not m = {m}"
    for k in range(m):
        values = len(np.unique(codes[:, k]))
        if values > 2**p:
            return f"number {k} of the embedding took {values} values, more than 2^p = {2**p}"
    return ""


def _subsets(n: int, q: int, limit: int, seed: int) -> NDArray[np.int64]:
    """q-subsets of tokens 1..n-1: all of them if there are at most ``limit``, otherwise distinct random ones."""
    if math.comb(n - 1, q) <= limit:
        return np.array(list(itertools.combinations(range(1, n), q)), dtype=np.int64).reshape(-1, q)
    rng = numpy_generator(seed, "bounds", "embedding search")
    return np.unique(1 + random_subsets(rng, limit, n - 1, q), axis=0)


def refute_match3(layer: PBitAttention, task: Match3, seed: int = 0, limit: int = 2**10) -> Refutation:
    """Two inputs with the same output at token 0, where only one of them is a match.

    The bound counts the layer's value width and heads (``two_party.match3_bits``), not its embedding width.
    """
    n, modulus = match3_sets(task.tokens), task.residues
    if n < 1 or modulus < 2 * n + 2 or task.distinct:
        raise HeadcountError(
            f"tokens {task.tokens}, modulus {modulus}, distinct {task.distinct}: no instance fits",
            fix="choose at least 3 tokens, M >= N + 1 and distinct=False",
        )
    has = match3_bits(layer, n)
    compared = Comparison(task, "match3-protocol", n, has, TRANSMITTED)
    if has >= n:
        return compared.allowed()
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
            if not witness.holds:
                return compared.fails("exact sums", "its outputs differ on two inputs that give the layer equal codes")
            reason = (
                f"{has} transmitted bits for sets of {n} elements: adding element {element} turns token 0 "
                f"into a match and leaves its output as it was"
            )
            return compared.refuted(witness, reason)
    searched = f"{limit} pairs were tried"
    return compared.by_counting(searched) if reads_tokens_through_codes(layer) else compared.undecided(searched)
