"""Position schemes: families of kernels over lags that one attention head can realise.

A *kernel* a(s) is the attention weight of the token s positions back if logits depend only on positions:
a = softmax over the lags s = 0..L-1 of a *context* of L tokens, so every kernel is a probability vector. A scheme
is a map from P parameters to a kernel, with its Jacobian for the optimiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scheme(ABC):
    """A family of kernels on ``context`` lags, each defined by ``width`` parameters."""

    context: int = 64

    def __post_init__(self) -> None:
        if self.context < 2:
            raise HeadcountError(f"a context of {self.context} tokens has no lags to choose from", fix="use 2 or more")

    @property
    @abstractmethod
    def width(self) -> int:
        """P: the number of parameters of one kernel."""

    @abstractmethod
    def kernels(self, numbers: Array) -> Array:
        """Kernels (H, L) for parameters (H, P)."""

    @abstractmethod
    def jacobian(self, numbers: Array) -> Array:
        """Derivatives of the kernels (H, L, P)."""

    @abstractmethod
    def inside(self, numbers: Array) -> Array:
        """Make parameters feasible: projection onto a box, or rescaling to the norm limit."""

    @abstractmethod
    def random(self, generator: np.random.Generator, heads: int, lag: int) -> Array:
        """Random initial parameters (H, P) for an optimisation at ``lag``."""


@dataclass(frozen=True)
class Linear(Scheme):
    """ALiBi: logits -m s with a slope m >= 0, a(s) = x^s / sum_t x^t with x = exp(-m) in [0, 1].

    x = 0 (an infinite slope) attends to the query token, x = 1 to all lags equally. Slopes are arbitrary; a model
    with the geometric slopes of ALiBi has fewer kernels (Press et al. 2021, arXiv 2108.12409).

    >>> Linear(4).kernels(np.array([[0.0], [0.5], [1.0]])).round(3).tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.533, 0.267, 0.133, 0.067], [0.25, 0.25, 0.25, 0.25]]
    """

    @property
    def width(self) -> int:
        """See ``Scheme.width``."""
        return 1

    def kernels(self, numbers: Array) -> Array:
        """See ``Scheme.kernels``."""
        powers = numbers ** np.arange(self.context)
        kernels: Array = powers / powers.sum(axis=1, keepdims=True)
        return kernels

    def jacobian(self, numbers: Array) -> Array:
        """See ``Scheme.jacobian``."""
        lags = np.arange(self.context)
        powers = numbers**lags
        slopes = lags * numbers ** np.maximum(lags - 1, 0)
        total = powers.sum(axis=1, keepdims=True)
        derivatives: Array = (slopes / total - powers * slopes.sum(axis=1, keepdims=True) / total**2)[:, :, None]
        return derivatives

    def inside(self, numbers: Array) -> Array:
        """See ``Scheme.inside``."""
        return np.clip(numbers, 0.0, 1.0)

    def random(self, generator: np.random.Generator, heads: int, lag: int) -> Array:
        """See ``Scheme.random``."""
        return generator.uniform(size=(heads, 1)) ** 0.5


@dataclass(frozen=True)
class Softmax(Scheme):
    """Kernels softmax(F g) with a fixed feature matrix F (L, P) and parameters g of bounded norm."""

    budget: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budget > 0:
            raise HeadcountError(
                f"a logit budget of {self.budget} leaves attention uniform", fix="use a number above 0"
            )

    @property
    @abstractmethod
    def features(self) -> Array:
        """F, of shape (L, P)."""

    @property
    def width(self) -> int:
        """See ``Scheme.width``."""
        return int(self.features.shape[1])

    def kernels(self, numbers: Array) -> Array:
        """See ``Scheme.kernels``."""
        logits = numbers @ self.features.T
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        kernels: Array = powers / powers.sum(axis=1, keepdims=True)
        return kernels

    def jacobian(self, numbers: Array) -> Array:
        """See ``Scheme.jacobian``."""
        kernels = self.kernels(numbers)
        centre = kernels @ self.features
        return kernels[:, :, None] * (self.features[None] - centre[:, None, :])

    @abstractmethod
    def barrier(self, numbers: Array, width: float) -> tuple[float, Array, Array]:
        """-log of the distance of parameters from their limits: value, gradients (H, P) and Hessians (H, P, P).

        Smooth and convex; infinite at the limits. Norms are smoothed over ``width``.
        """


@dataclass(frozen=True)
class Rope(Softmax):
    """Rotary embedding: logits sum_i rho_i cos(theta_i s + phi_i), theta_i = base^(-2i/d), with sum_i rho_i <= budget.

    These are exactly the logits q' R(s) k of vectors with ||q|| ||k|| <= budget: the i-th pair of dimensions gives
    rho_i = ||q_i|| ||k_i||, and sum_i rho_i <= ||q|| ||k|| (Cauchy-Schwarz), with equality possible. The parameters are
    (rho_i cos phi_i, -rho_i sin phi_i). A scale 1/sqrt(d) is part of the budget (Su et al. 2021, arXiv 2104.09864).
    """

    dim: int = 16
    base: float = 10_000.0
    pairs: int | None = None
    """The number of pairs (of dim/2) that are used, in order of decreasing frequency; ``None``: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim < 2 or self.dim % 2:
            raise HeadcountError(f"a rotary dimension of {self.dim} has no pairs", fix="use an even number above 0")
        if self.pairs is not None and not 1 <= self.pairs <= self.dim // 2:
            raise HeadcountError(f"{self.pairs} pairs of {self.dim} dimensions", fix=f"use 1 to {self.dim // 2}")

    @property
    def frequencies(self) -> Array:
        """theta_i of the pairs that are used."""
        return self.base ** (-2.0 * np.arange(self.pairs or self.dim // 2) / self.dim)

    @property
    def features(self) -> Array:
        """See ``Softmax.features``."""
        angles = np.outer(np.arange(self.context), self.frequencies)
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    def _norms(self, numbers: Array) -> Array:
        norms: Array = np.hypot(*np.split(numbers, 2, axis=1)).sum(axis=1, keepdims=True)
        return norms

    def inside(self, numbers: Array) -> Array:
        """See ``Scheme.inside``."""
        return numbers * np.minimum(1.0, self.budget / np.maximum(self._norms(numbers), 1e-300))

    def barrier(self, numbers: Array, width: float) -> tuple[float, Array, Array]:
        """-log(budget - sum_i (rho_i^2 + width^2)^(1/2)); see ``Softmax.barrier``."""
        pairs = numbers.reshape(len(numbers), 2, -1)
        norms = np.sqrt((pairs**2).sum(axis=1) + min(width, self.budget / (4 * self.dim)) ** 2)
        left = self.budget - norms.sum(axis=1)
        if (left <= 0).any():
            return np.inf, np.zeros(0), np.zeros(0)
        units = pairs / norms[:, None]
        flat = units.reshape(numbers.shape)
        # Within pair i: (1 - u u') / norm; the two parameters of a pair are half a row apart.
        within_pair = (np.eye(2)[None, :, :, None] - units[:, :, None] * units[:, None]) / norms[:, None, None]
        blocks = within_pair[..., None] * np.eye(norms.shape[1])
        curved = blocks.transpose(0, 1, 3, 2, 4).reshape(len(numbers), *2 * numbers.shape[1:])
        share = 1.0 / left[:, None, None]
        return (
            float(-np.log(left).sum()),
            flat / left[:, None],
            curved * share + flat[:, :, None] * flat[:, None] * share**2,
        )

    def random(self, generator: np.random.Generator, heads: int, lag: int) -> Array:
        """See ``Scheme.random``."""
        amplitudes = generator.dirichlet(np.ones(len(self.frequencies)), size=heads) * self.budget
        signs = generator.choice([-1.0, 1.0], size=(heads, 1)) * generator.uniform(size=(heads, 1))
        signs[0] = 1.0  # at least one head uses the whole budget for the lag
        angles = lag * self.frequencies
        return np.concatenate([amplitudes * np.cos(angles), amplitudes * np.sin(angles)], axis=1) * signs


@dataclass(frozen=True)
class Learned(Softmax):
    """One learned bias for each lag, within [-budget/2, budget/2]: a logit range of ``budget`` and no other limit.

    The most general scheme that depends only on the lag; learned absolute positions, whose logits <q_i, k_j> have
    limited rank, are not more general.
    """

    @property
    def features(self) -> Array:
        """See ``Softmax.features``."""
        return np.eye(self.context)

    def inside(self, numbers: Array) -> Array:
        """See ``Scheme.inside``."""
        return np.clip(numbers, -self.budget / 2, self.budget / 2)

    def barrier(self, numbers: Array, width: float) -> tuple[float, Array, Array]:
        """-sum log(budget/2 - g) + log(budget/2 + g); see ``Softmax.barrier``."""
        below, above = self.budget / 2 + numbers, self.budget / 2 - numbers
        if (below <= 0).any() or (above <= 0).any():
            return np.inf, np.zeros(0), np.zeros(0)
        curved = (1 / above**2 + 1 / below**2)[:, :, None] * np.eye(numbers.shape[1])
        return float(-np.log(below * above).sum()), 1 / above - 1 / below, curved

    def random(self, generator: np.random.Generator, heads: int, lag: int) -> Array:
        """See ``Scheme.random``."""
        return generator.uniform(-0.5, 0.5, size=(heads, self.width)) * self.budget


@dataclass(frozen=True)
class Buckets(Learned):
    """T5: one learned bias for each bucket of lags, within [-budget/2, budget/2].

    Half of the ``buckets`` contain one lag each, the others grow geometrically up to ``reach`` and the last one
    contains all larger lags (Raffel et al. 2020, section 2.1; causal).

    >>> Buckets(128).bucket_of()[[0, 15, 16, 18, 19, 127]].tolist()
    [0, 15, 16, 16, 17, 31]
    """

    buckets: int = 32
    reach: int = 128

    def bucket_of(self) -> Array:
        """The bucket of each lag (L)."""
        exact = self.buckets // 2
        lags = np.arange(self.context)
        # The smallest lag of bucket b, in float64: exact * (reach / exact)^(j / (buckets - exact)).
        share = np.log(np.maximum(lags, exact) / exact) / np.log(self.reach / exact)
        far = exact + np.minimum((share * (self.buckets - exact)).astype(int), self.buckets - exact - 1)
        return np.where(lags < exact, lags, far)

    @property
    def features(self) -> Array:
        """See ``Softmax.features``."""
        bucket_of_lag = self.bucket_of()
        indicators: Array = (bucket_of_lag[:, None] == np.arange(bucket_of_lag.max() + 1)[None]).astype(float)
        return indicators
