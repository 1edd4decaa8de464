"""Cells of the shipped rotary table, found again by another method that shares no code with the search.

The table's search is Newton's method with analytic derivatives and a barrier. Here torch differentiates the error,
L-BFGS follows it from random starts with limits that hold by scaling, and a linear programme written out below gives
the exact error of the kernels that come out. Both methods give upper bounds of one minimum, so each checks the other:
the table must not be beaten, and must be reached.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from headcount.lags.table import CONTEXT, LIMIT, LOGITS, shipped


def features(dim: int) -> torch.Tensor:
    """cos(theta_i s) and sin(theta_i s), of shape (lags, pairs, 2)."""
    lags, pairs = np.arange(CONTEXT), range(dim // 2)
    angles = np.array([[lag * 10_000.0 ** (-2 * i / dim) for i in pairs] for lag in lags])
    return torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=-1))


def within(vectors: torch.Tensor, sizes: torch.Tensor, limit: float) -> torch.Tensor:
    """``vectors`` scaled down where ``sizes`` (one for each) exceed ``limit``."""
    scale = limit / torch.clamp(sizes, min=limit)
    return vectors * scale.reshape(-1, *[1] * (vectors.ndim - 1))


def kernels(numbers: torch.Tensor, waves: torch.Tensor) -> torch.Tensor:
    """Attention over lags of heads with pairs (rho cos phi, -rho sin phi) (heads, pairs, 2), sum of rho at most 8."""
    norms = (numbers.square().sum(dim=2) + 1e-10).sqrt().sum(dim=1)
    return torch.softmax(torch.einsum("lpi,hpi->hl", waves, within(numbers, norms, LOGITS)), dim=1)


def exact_error(attention: np.ndarray, lag: int) -> float:
    """min over c, ||c||_1 <= 64, of sum_s |sum_h c_h a_h(s) - [s = lag]|: c = plus - minus, t_s at least both signs."""
    heads, spike, eye = len(attention), np.eye(CONTEXT)[lag], np.eye(CONTEXT)
    mixture = np.hstack([attention.T, -attention.T])
    limits = np.vstack([np.hstack([mixture, -eye]), np.hstack([-mixture, -eye]), [[1.0] * 2 * heads + [0.0] * CONTEXT]])
    cost = np.concatenate([np.zeros(2 * heads), np.ones(CONTEXT)])
    solved = linprog(cost, A_ub=limits, b_ub=[*spike, *-spike, LIMIT], bounds=(0, None), method="highs")
    return float(solved.fun)


def recomputed(dim: int, lag: int, heads: int, starts: int) -> float:
    """The least exact error of ``starts`` random starts."""
    generator = np.random.default_rng(dim * 100 + lag)
    waves, spike, split = features(dim), torch.eye(CONTEXT, dtype=torch.float64)[lag], heads * dim
    turns = lag * 10_000.0 ** (-2 * np.arange(dim // 2) / dim)

    def smoothed(flat: np.ndarray, mu: float) -> tuple[float, np.ndarray]:
        point = torch.tensor(flat, requires_grad=True)
        coefficients = within(point[split:], point[split:].abs().sum(), LIMIT)
        missed = coefficients @ kernels(point[:split].reshape(heads, -1, 2), waves) - spike
        error = (missed.square() + mu**2).sqrt().sum()
        error.backward()  # type: ignore[no-untyped-call]
        assert point.grad is not None
        return float(error.detach()), point.grad.numpy()

    best = np.inf
    for _ in range(starts):
        sizes = generator.dirichlet(np.ones(dim // 2), size=heads) * LOGITS
        phases = turns + generator.normal(size=sizes.shape) * generator.choice([0.0, 0.5, 2.0])
        numbers = np.stack([sizes * np.cos(phases), sizes * np.sin(phases)], axis=-1)
        flat = np.concatenate([numbers.ravel(), generator.normal(size=heads)])
        for mu in (1e-1, 1e-2, 1e-3, 1e-4):
            flat = minimize(smoothed, flat, args=(mu,), jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
        ended = kernels(torch.tensor(flat[:split]).reshape(heads, -1, 2), waves).numpy()
        best = min(best, exact_error(ended, lag))
    return best


def meets(dim: int, lag: int, heads: int, starts: int, above: float) -> None:
    """The table's cell is not beaten, and the other method comes within a fraction ``above`` of it: what it misses."""
    cell = shipped("rope").row(lag, dim).errors[heads - 1]
    again = recomputed(dim, lag, heads, starts)
    # The search resolves 1e-6. From three heads on it may end in a local minimum, 2% above the best one known here.
    assert cell * (1 - (0.02 if heads > 2 else 0)) - 1e-6 <= again <= cell * (1 + above)


# L-BFGS stalls before the kinks of the absolute values, the more so with slow frequencies and more heads.
@pytest.mark.parametrize(
    ("dim", "lag", "heads", "starts", "above"),
    [(2, 5, 1, 1, 1e-6), (6, 2, 1, 2, 1e-3), (16, 3, 1, 2, 1e-3), (6, 2, 2, 2, 5e-3)],
)
def test_cells_are_found_by_another_method(dim: int, lag: int, heads: int, starts: int, above: float) -> None:
    meets(dim, lag, heads, starts, above)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "lag", "heads", "starts", "above"),
    [(10, 1, 2, 4, 5e-3), (8, 3, 2, 20, 5e-3), (8, 1, 3, 8, 3e-2), (16, 3, 2, 15, 5e-2), (64, 8, 1, 2, 5e-3),
     (128, 32, 1, 2, 5e-3), (4, 0, 4, 10, 2e-2)],
)  # fmt: skip
def test_more_cells_are_found_by_another_method(dim: int, lag: int, heads: int, starts: int, above: float) -> None:
    meets(dim, lag, heads, starts, above)
