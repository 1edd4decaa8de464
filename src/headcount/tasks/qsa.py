"""q-sparse averaging: token i holds a vector z_i and a set y_i, and must output the mean of z over y_i."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.tasks.base import Answer, Batch, Task
from headcount.tasks.sizes import DIM, SPARSITY
from headcount.tasks.subsets import random_subsets

_TOGETHER = 2**15  # numbers processed together, so that they fit into the CPU cache
GRID = 2**15
"""Sampled vectors are multiples of 1/GRID: exact in float32, and summed exactly in float64 in any order."""


@dataclass(frozen=True)
class QSA(Task):
    """qSA: target_i = (1/q) sum of z_j over j in y_i, with y_i a q-subset of {0..N-1} (Sanford et al. 2023).

    Inputs: ``z`` (count, N, d'), norms at most 1; ``y`` (count, N, q), each row sorted and without repeats.
    Targets: (count, N, d') float64, exact up to the one division by q.

    - uniform: z uniform on the grid points of [-1, 1]^d' / sqrt(d'), y uniform.
    - balanced: the targets come in pairs +t, -t (z in antipodal pairs, each set beside its mirror image), so
      half of the tokens are positive in every coordinate. Positive means: first coordinate above 0.
    - adversarial: z_j = +-e_1, and tokens 2k, 2k+1 hold sets that differ in one element whose vectors are
      opposite: targets 2/q apart, the least that two sets can differ by in the argument of the bound
      ``qsa-bits``. In half of the pairs (if q <= N/2) all other elements have z = -e_1: these are the
      set-disjointness instances of Theorem 4, an empty intersection versus one common element.

    >>> print(QSA(tokens=3, sparsity=2, dim=1).draw(z=[[1.0], [0.5], [-1.0]], y=[[0, 1], [0, 2], [1, 2]]))
    z       1      0.5    -1
    y       {0,1}  {0,2}  {1,2}
    target  0.75   0      -0.25
    """

    name: ClassVar[str] = "qsa"
    answer: ClassVar[Answer] = "vector"
    summary: ClassVar[str] = "the mean of the vectors z_j over the token's own set y_i of q tokens"
    input_names: ClassVar[tuple[str, ...]] = ("z", "y")

    sparsity: int = SPARSITY.field(4)
    dim: int = DIM.field(8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity > self.tokens:
            raise HeadcountError(
                f"sparsity {self.sparsity} is larger than the number of tokens {self.tokens}",
                fix=f"choose a sparsity up to {self.tokens}",
            )

    def model_input(self, batch: Batch) -> NDArray[Any]:
        """Tokens (z_i; y_i; i) as float32, (count, N, d' + q + 1)."""
        z, y = batch.inputs["z"], batch.inputs["y"]
        tokens = np.empty((*z.shape[:2], self.dim + self.sparsity + 1), dtype=np.float32)
        for k in range(self.dim):  # rows are short: copying column by column is three times as fast as concatenating
            tokens[..., k] = z[..., k]
        for k in range(self.sparsity):
            tokens[..., self.dim + k] = y[..., k]
        tokens[..., -1] = np.arange(self.tokens)
        return tokens

    def vectors(self, rng: np.random.Generator, count: int, tokens: int) -> NDArray[np.float32]:
        """Uniform grid points of the cube [-1, 1]^d' / sqrt(d') inside the unit ball, (count, tokens, d')."""
        half_width = int(GRID / np.sqrt(self.dim))
        steps = rng.integers(-half_width, half_width + 1, (count, tokens, self.dim), dtype=np.int32)
        return steps.astype(np.float32) / np.float32(GRID)

    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        z = self.vectors(rng, count, self.tokens)
        y = random_subsets(rng, count * self.tokens, self.tokens, self.sparsity)
        return {"z": z, "y": y.reshape(count, self.tokens, self.sparsity)}

    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        n, q, half = self.tokens, self.sparsity, self.tokens // 2
        if q == n or n < 2:
            raise HeadcountError(
                f"with sparsity {q} of {n} tokens all targets are equal and cannot be balanced",
                fix=f"choose a sparsity below {n}" if n > 1 else "choose 2 tokens or more",
            )
        # Vectors 2k and 2k+1 are antipodal (an unpaired last one is 0); tokens are shuffled at the end.
        z = np.zeros((count, n, self.dim), dtype=np.float32)
        z[:, 0 : 2 * half : 2] = self.vectors(rng, count, half)
        z[:, 1 : 2 * half : 2] = -z[:, 0 : 2 * half : 2]
        # A set contains at most one vector of each antipodal pair, so that no target cancels to 0. A large set is
        # the complement of such a small set: all vectors sum to 0, so its mean has the opposite direction.
        small = q if q <= half else n - q
        rows = count * ((n + 1) // 2)
        pairs = random_subsets(rng, rows, half, small)
        chosen = 2 * pairs + rng.integers(0, 2, pairs.shape)
        mirror = chosen ^ 1
        if small != q:
            chosen, mirror = _complement(chosen, n), _complement(mirror, n)
        y = np.stack([chosen, mirror], axis=1).reshape(count, -1, q)[:, :n]
        # One permutation of the token indices, and one that assigns the sets to the tokens.
        place = rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)
        owner = rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)
        shuffled = np.empty_like(z)
        np.put_along_axis(shuffled, place[..., None], z, axis=1)
        y = np.take_along_axis(place[:, None, :], y, axis=2)
        y = np.take_along_axis(y, owner[..., None], axis=1)
        y.sort(axis=2)
        return {"z": shuffled, "y": y}

    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        n, q, half = self.tokens, self.sparsity, self.tokens // 2
        if q == n:
            raise HeadcountError(
                f"with sparsity {q} of {n} tokens there is only one set, so none is a near miss",
                fix=f"choose a sparsity below {n}" if n > 1 else "choose 2 tokens or more",
            )
        # Before the shuffle tokens 0..half-1 have z = +e_1 and the others -e_1.
        pairs = (n + 1) // 2
        rows = count * pairs
        plus = rng.integers(0, half, rows)
        minus = rng.integers(half, n, rows)
        rest = random_subsets(rng, rows, n - 2, q - 1)
        disjoint = np.arange(rows) % 2 == 1
        if q - 1 <= n - half - 1:
            rest[disjoint] = half - 1 + random_subsets(rng, int(disjoint.sum()), n - half - 1, q - 1)
        rest += rest >= plus[:, None]
        rest += rest >= minus[:, None]
        y = np.stack([np.c_[plus, rest], np.c_[minus, rest]], axis=1).reshape(count, 2 * pairs, q)[:, :n]
        place = rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)
        z = np.zeros((count, n, self.dim), dtype=np.float32)
        z[..., 0] = -1
        np.put_along_axis(z[..., 0], place[:, :half], 1, axis=1)
        y = np.take_along_axis(place[:, None, :], y, axis=2)
        y.sort(axis=2)
        return {"z": z, "y": y}

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        z, y = self._named(inputs)
        z, y = (array[None] if array.ndim == 2 else array for array in (z, y))
        n = self.tokens
        for name, array, last in (("z", z, self.dim), ("y", y, self.sparsity)):
            if array.ndim != 3 or array.shape[1:] != (n, last) or len(array) != len(z):
                raise HeadcountError(
                    f"{name} has shape {array.shape}, not (count, {n}, {last})", fix="give one row a token"
                )
        if z.dtype.kind not in "fiu" or not np.isfinite(z).all():
            raise HeadcountError("z holds entries that are no finite numbers", fix="give real vectors")
        norms = np.sqrt(np.square(z.astype(np.float64)).sum(-1))
        if (norms > 1 + 1e-6).any():  # a unit vector rounded to float32 may be longer by 1e-7
            raise HeadcountError(
                f"a vector z has norm {norms.max():.6g}, above 1", fix="scale the vectors into the unit ball"
            )
        if y.dtype.kind not in "iu":
            raise HeadcountError(f"y holds {y.dtype} numbers", fix="give token numbers")
        if (y < 0).any() or (y >= n).any():
            bad = y[(y < 0) | (y >= n)][0]
            raise HeadcountError(f"a set holds token {bad}, outside [0, {n})", fix="count tokens from 0")
        y = np.sort(y.astype(np.int64), axis=2)
        repeated = (y[..., 1:] == y[..., :-1]).any(axis=2)
        if repeated.any():
            row, token = np.argwhere(repeated)[0]
            raise HeadcountError(
                f"the set of token {token} in sequence {row} has a repeated element",
                fix="give sets of distinct tokens",
            )
        return {"z": z, "y": y}

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """O(N q d') additions; exact before the division for vectors on the grid."""
        z = inputs["z"]
        # Sums of up to 2^9 multiples of 2^-15 of magnitude up to 1 have 24 bits: float32 is exact.
        small = z.dtype == np.float32 and self.sparsity <= 512 and bool((z * GRID == np.rint(z * GRID)).all())
        z = z if small else z.astype(np.float64)
        targets = np.empty(z.shape, dtype=np.float64)
        together = _TOGETHER // (self.tokens * self.dim)
        if together > 1:  # many short sequences at once, as in training
            for start in range(0, len(z), together):
                group, members = z[start : start + together], inputs["y"][start : start + together]
                vectors = group.reshape(-1, self.dim)
                first = self.tokens * np.arange(len(group))[:, None]
                sums = vectors.take(members[:, :, 0] + first, axis=0)
                for k in range(1, self.sparsity):
                    sums += vectors.take(members[:, :, k] + first, axis=0)
                np.divide(sums, self.sparsity, out=targets[start : start + together], dtype=np.float64)
            return targets
        total = np.empty(z.shape[1:], dtype=z.dtype)
        term = np.empty_like(total)
        for target, vectors, sets in zip(targets, z, inputs["y"], strict=True):
            columns = np.ascontiguousarray(sets.T)
            # Elements were checked before; mode "clip" only avoids the output buffer of take.
            vectors.take(columns[0], axis=0, out=total, mode="clip")
            for column in columns[1:]:
                vectors.take(column, axis=0, out=term, mode="clip")
                total += term
            np.divide(total, self.sparsity, out=target, dtype=np.float64)
        return targets


def _complement(sets: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The other elements of {0..n-1}, row by row."""
    inside = np.zeros((len(sets), n), dtype=bool)
    np.put_along_axis(inside, sets, True, axis=1)
    return np.nonzero(~inside)[1].reshape(len(sets), n - sets.shape[1])
