"""qSA with random sign keys: about 2 q ln N dimensions, every set checked."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from headcount import tasks
from headcount.constructions.base import Construction, check_epsilon
from headcount.constructions.certificate import Certificate, Guarantee
from headcount.constructions.qsa.unit import QSAModule, QueryMap, check_size, depth_for, sufficient_bits
from headcount.constructions.separators import ENOUGH, coherence, coherence_gap, separate
from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent
from headcount.core.seeds import numpy_generator
from headcount.tasks.subsets import random_subsets

SEARCHED_GAP = 0.25
ASKED_GAP = 0.125
"""The search requires twice the gap that is required of each set later, so that sets outside the trial also pass."""
TRIED_SETS = 1024
ENUMERATED_SETS = 20_000
"""If there are at most this many subsets, all are checked and the certificate covers all inputs."""
_SEEDS, _SEEDED_TOKENS = 3, 256
"""Random draws of the keys at each size; with more tokens the draws hardly differ, so one is used."""
COHERENT_GAP = 0.5


class SignKeys(QueryMap):
    """Keys with entries +-1; queries computed by ``separate``."""

    def __init__(self, keys: Tensor, depth: float, gap: float) -> None:
        super().__init__(depth)
        self.register_buffer("keys", keys)
        self.gap = gap

    def separators(self, sets: Tensor) -> tuple[Tensor, Tensor]:
        """Computed in the type of the keys' buffer as float64."""
        keys = self.keys.double()
        w, gaps = separate(keys, sets, keys.new_ones(sets.shape[1]), self.gap)
        return w, gaps.clamp(max=1.0)  # infinite if the set contains every token


class CertificateModule(QSAModule):
    """qSA with sign keys."""

    def __init__(self, dim: int, depth: float, gap: float, keys: Tensor) -> None:
        super().__init__(dim, SignKeys(keys, depth, gap))
        self.settings = {"dim": dim, "depth": depth, "gap": gap}

    @classmethod
    def restore(cls, settings: JsonObject, tensors: dict[str, Tensor]) -> CertificateModule:
        """From the saved numbers."""
        return cls(**settings, keys=tensors["queries.keys"])


def sign_keys(seed: int, tokens: int, key_dim: int, trial: int = 0) -> Tensor:
    """Random keys (N, k) of entries +-1."""
    rng = numpy_generator(seed, "qsa-certificate keys", tokens, key_dim, trial)
    return torch.from_numpy(2.0 * rng.integers(0, 2, (tokens, key_dim)) - 1)


def build_qsa_certificate(
    tokens: int = 64,
    sparsity: int = 4,
    dim: int = 8,
    epsilon: float = 1e-3,
    guarantee: Guarantee = "the subsets given",
    key_dim: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Construction:
    """Weights for qSA with m = d' + k, k found by search: about 2 q ln N (Sanford et al. 2023, Theorem 2).

    Keys u_1..u_N are random vectors of signs in R^k. The query of a set y is a separator w: <w, u_j> = 1 on y
    and at most 1 - gap elsewhere (``separate``), scaled by depth / gap, so that the mass off y is at most
    (N-q)/q exp(-depth) (``depth_for``). On y all logits are equal, so the output is the mean.

    The dimension is the smallest that passes the check: ``TRIED_SETS`` random sets (all sets if there are at most
    ``ENUMERATED_SETS``) must have a gap of ``SEARCHED_GAP``; doubling, then bisection, several draws of keys
    at each size. Every set in an input is checked again by its gap. With ``guarantee="all inputs"``
    beyond the sizes that can be enumerated, the mutual coherence of the keys must give every set a gap of 1/2
    (``coherence_gap``): that takes k of order q^2 log N. ``key_dim`` sets k and skips the search.

    Rounding: ``sufficient_bits``, with the largest query over the sets tried that have a positive gap.
    """
    task = tasks.get("qsa", tokens=tokens, sparsity=sparsity, dim=dim)
    check_epsilon(epsilon)
    if key_dim is not None and key_dim < 1:
        raise HeadcountError(f"key_dim {key_dim} is below 1", fix="choose one, or leave it to the search")
    check_size(tokens, sparsity, dim, key_dim or 1)
    search = _Search(tokens, sparsity, dim, seed, guarantee, progress)
    keys = search.smallest() if key_dim is None else sign_keys(seed, tokens, key_dim)
    depth = depth_for(tokens, sparsity, epsilon)
    module = CertificateModule(dim, depth, ASKED_GAP, keys)
    w, gaps = module.queries.separators(search.sets)
    gap = float(gaps.min())
    accepted = gaps > 0
    terms = float((w.abs().sum(1) * depth / gaps)[accepted].max()) if accepted.any() else 0.0
    k = keys.shape[1]
    certificate = Certificate(
        name="qsa-certificate",
        embedding_dim=dim + k,
        single_map_dim=dim + 2 * k,
        heads=1,
        layers=1,
        order=2,
        guarantee="all inputs" if gap > 0 and search.covers_all(keys) else "the subsets given",
        gap=gap,
        scale=depth / gap if gap > 0 else math.inf,
        epsilon=epsilon,
        bits=sufficient_bits(math.log2(terms) if terms else -math.inf, k, tokens, depth, epsilon),
    )
    return Construction(task, module, certificate)


class _Search:
    """Search for the smallest number of dimensions whose keys pass the check."""

    def __init__(
        self, tokens: int, sparsity: int, dim: int, seed: int, guarantee: Guarantee, progress: Progress
    ) -> None:
        self.tokens, self.sparsity, self.dim, self.seed, self.progress = tokens, sparsity, dim, seed, progress
        self.enumerated = math.comb(tokens, sparsity) <= ENUMERATED_SETS
        self.by_coherence = guarantee == "all inputs" and not self.enumerated
        if self.enumerated:
            chosen = np.array(list(itertools.combinations(range(tokens), sparsity)))
        else:
            rng = numpy_generator(seed, "qsa-certificate sets", tokens, sparsity)
            chosen = random_subsets(rng, TRIED_SETS, tokens, sparsity)
        self.sets = torch.from_numpy(chosen.astype(np.int64))

    def smallest(self) -> Tensor:
        """Keys of the smallest dimension that passed."""
        guess = max(2, math.ceil(self.sparsity * math.log(self.tokens))) if self.tokens > 1 else 1
        low, high = 0, guess  # low: none passed (or nothing is below)
        steps = 0
        while (keys := self._passing(high)) is None:
            low, high = high, 2 * high
            steps += 1
            self.progress("search", steps, steps + 8)
        while high - low > max(1, high // 64):  # one step in 64 is finer than one draw differs from another
            middle = (low + high) // 2
            tried = self._passing(middle)
            if tried is None:
                low = middle
            else:
                high, keys = middle, tried
            steps += 1
            self.progress("search", steps, steps + max(0, (high - low).bit_length() - 1))
        return keys

    def _passing(self, key_dim: int) -> Tensor | None:
        check_size(self.tokens, self.sparsity, self.dim, key_dim)
        for trial in range(_SEEDS if self.tokens <= _SEEDED_TOKENS else 1):
            keys = sign_keys(self.seed, self.tokens, key_dim, trial)
            if self.by_coherence:
                passed = coherence_gap(coherence(keys), self.sparsity) >= COHERENT_GAP
            else:
                passed = self._separated(keys)
            if passed:
                return keys
        return None

    def _separated(self, keys: Tensor) -> bool:
        """Whether all trial sets have the required gap; stops at the first block that fails."""
        on = keys.new_ones(self.sparsity)
        for block in (self.sets[:64], self.sets[64:]):  # most failures occur in the first few sets
            if len(block) == 0:
                break
            if float(separate(keys, block, on, SEARCHED_GAP)[1].min()) < ENOUGH * SEARCHED_GAP:
                return False
        return True

    def covers_all(self, keys: Tensor) -> bool:
        """Whether the gap is known for every set."""
        return self.enumerated or coherence_gap(coherence(keys), self.sparsity) > 0
