"""n-gram of white noise: each of the last n tokens times its own matrix, summed; the task of an early layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.tasks.base import Answer, Batch, Task
from headcount.tasks.sizes import DIM, NONLINEAR, ORDER

DECAY = 2**-0.5
"""Ratio of consecutive singular values of A_k: the power halves with each dimension."""
GRID, CONTENT_GRID = 2**10, 2**16
"""Tokens are multiples of 1/GRID and matrices of 1/CONTENT_GRID: float64 then sums them exactly, in any order."""
STEEP = 2.0
"""The nonlinearity is tanh(STEEP y / s), s the standard deviation of a coordinate with an equal share of power."""
_POINTS = 80


@dataclass(frozen=True)
class NGram(Task):
    """n-gram: y_t = sum_{k < n} A_k z_{t-k}, with n = ``order`` and z = 0 before the sequence (lags 0..n-1).

    The target of Yu et al. 2025 (arXiv 2510.03784, section 3) with the last n tokens as its lags, including the
    current token: the input of a model that predicts the next token from an n-gram. z is white noise,
    standard normal in R^d' (``dim``), rounded to a grid. The A_k belong to the task: U_k diag(sigma) W_k' with random
    orthogonal U_k and W_k, sigma_i decaying by the factor ``DECAY``, and ||A_k||_F^2 = 1/n, so that a full target has
    power 1.

    ``nonlinear``: the target is tanh(2 sqrt(d') y_t) / sqrt(d'), coordinatewise.

    Inputs: ``z`` (count, N, d'). Targets: (count, N, d') float64, the linear ones exact for sampled z.

    - uniform: independent draws.
    - balanced: over the batch: sequences come in pairs z, -z, and targets are odd. Positive: first coordinate above 0.
    - adversarial: sequences 2k, 2k+1 differ in the sign of one token, the oldest that affects the last target.

    >>> task = NGram(tokens=5, order=2, dim=3)
    >>> z = np.zeros((5, 3)); z[1] = [1.0, 0.0, 0.0]  # an impulse comes back once through each matrix
    >>> found = task.batch(z=z).targets[0]
    >>> [bool((found[1 + k] == task.content[k][:, 0]).all()) for k in range(2)], float(abs(found[[0, 3, 4]]).max())
    ([True, True], 0.0)

    >>> print(NGram(tokens=4, order=2, dim=1).draw(z=[[1.0], [0.0], [0.0], [2.0]]))  # A_0 = A_1 = 0.707
    z       1      0      0  2
    target  0.707  0.707  0  1.41
    """

    name: ClassVar[str] = "ngram"
    answer: ClassVar[Answer] = "vector"
    summary: ClassVar[str] = "a matrix for each of the last order tokens, summed, of white noise"
    input_names: ClassVar[tuple[str, ...]] = ("z",)

    order: int = ORDER.field(4)
    dim: int = DIM.field(16)
    nonlinear: bool = NONLINEAR.field(False)

    @property
    def content(self) -> NDArray[np.float64]:
        """The matrices A_0..A_{n-1}, (n, d', d')."""
        return _content(self.order, self.dim)

    @property
    def spectra(self) -> list[list[float]]:
        """The singular values of each A_k, largest first."""
        return [np.linalg.svd(matrix, compute_uv=False).tolist() for matrix in self.content]

    @property
    def power(self) -> float:
        """E ||y_t||^2 averaged over the tokens: the mean squared error of always answering 0.

        Exact for Gaussian z: coordinate i of the sum at token t is normal with variance sum_{k <= t} ||row i of
        A_k||^2, and E tanh^2 is a Gauss-Hermite sum (to 1e-6 of itself).
        """
        rows = (self.content**2).sum(axis=2)  # (n, d'): contribution of lag k to the variance of each coordinate
        seen = np.cumsum(rows, axis=0)[np.minimum(np.arange(self.tokens), self.order - 1)]
        if not self.nonlinear:
            return float(seen.sum() / self.tokens)
        points, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
        squares = _bend(np.sqrt(seen)[..., None] * points, self.dim) ** 2
        return float((squares @ (weights / weights.sum())).sum() / self.tokens)

    def model_input(self, batch: Batch) -> NDArray[Any]:
        """z as float32."""
        return batch.inputs["z"].astype(np.float32, copy=False)

    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        z = rng.standard_normal((count, self.tokens, self.dim), dtype=np.float32)
        return {"z": np.rint(z * np.float32(GRID)) / np.float32(GRID)}

    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        half = self._uniform(rng, (count + 1) // 2)["z"]
        return {"z": np.stack([half, -half], axis=1).reshape(-1, self.tokens, self.dim)[:count]}

    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        z = np.repeat(self._uniform(rng, (count + 1) // 2)["z"], 2, axis=0)
        z[1::2, -min(self.order, self.tokens)] *= -1
        return {"z": z[:count]}

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (z,) = self._named(inputs)
        z = z[None] if z.ndim == 2 else z
        if z.ndim != 3 or z.shape[1:] != (self.tokens, self.dim):
            raise HeadcountError(
                f"z has shape {z.shape}, not (count, {self.tokens}, {self.dim})", fix="give one row a token"
            )
        if z.dtype.kind not in "fiu" or not np.isfinite(z).all():
            raise HeadcountError("z holds entries that are no finite numbers", fix="give real vectors")
        return {"z": z}

    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """O(N n d'^2)."""
        z = inputs["z"].astype(np.float64)
        targets = np.zeros(z.shape)
        for lag, matrix in enumerate(self.content[: self.tokens]):
            targets[:, lag:] += z[:, : self.tokens - lag] @ matrix.T
        return _bend(targets, self.dim) if self.nonlinear else targets


def _bend(sums: NDArray[np.float64], dim: int) -> NDArray[np.float64]:
    bent: NDArray[np.float64] = np.tanh(STEEP * np.sqrt(dim) * sums) / np.sqrt(dim)
    return bent


@lru_cache(maxsize=64)
def _content(order: int, dim: int) -> NDArray[np.float64]:
    """The matrices of a task; up to scale, a shorter n-gram has the first matrices of a longer one."""
    sigma = DECAY ** np.arange(dim)
    sigma /= np.sqrt(order * (sigma**2).sum())
    matrices = np.empty((order, dim, dim))
    for lag in range(order):
        generator = numpy_generator(0, "task", "ngram", dim, lag)
        left, right = (np.linalg.qr(generator.normal(size=(dim, dim)))[0] for _ in range(2))
        matrices[lag] = np.rint((left * sigma) @ right.T * CONTENT_GRID) / CONTENT_GRID
    matrices.setflags(write=False)
    return matrices
