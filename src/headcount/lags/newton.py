"""Optimisation of softmax kernels by Newton's method on a smoothed error.

With parameters g, coefficients c, residuals r = sum_h c_h a_h - spike and a smoothing mu that goes to 0,

    sum_s (r_s^2 + mu^2)^(1/2) + mu barrier(g) - mu log(C - sum_h (c_h^2 + mu^2)^(1/2))

is smooth. Two techniques make Newton's method converge where first-order methods and linear programmes stall (the
slow rotary frequencies make the problem ill-conditioned):

- The curvature (1 - w r / d) / d of the square roots uses separate multipliers w in place of r / d, with
  d = (r^2 + mu^2)^(1/2) (the primal-dual form of Andersen, Christiansen, Conn and Overton 2000, SIAM J. Sci.
  Comput. 22).
- Negative curvature is replaced by its absolute value, with damping until the error decreases as predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from headcount.lags.kernels import LIMIT, Fit, best_coefficients, spike
from headcount.lags.schemes import Array, Softmax

COARSE = 10.0 ** -np.arange(1.0, 3.1, 0.5)
"""The smoothings of a coarse optimisation."""
LATE = COARSE[2:]
"""Smoothings for a late start: with larger ones, if few heads gain little, zero coefficients are optimal."""
FINE = 10.0 ** -np.arange(3.5, 7.1, 0.5)
"""The final smoothings: with 64 residuals and one barrier per head they leave at most 1e-5, mostly removed by the
linear programme."""
_STEPS, _WORTH, _STIFFEST = 60, 1e-3, 1e12
_FLATTEST = 1e-10
_ROUNDING = 10.0
"""Smoothing of norms in the barrier, in units of mu: roughly the distance of norms from their limit."""


@dataclass(frozen=True)
class _Point:
    """The smoothed error at one point, with intermediate results for its derivatives."""

    value: float
    kernels: Array
    residuals: Array
    rounded: Array
    sizes: Array
    left: float
    slopes: Array
    curvature: Array


class Smooth:
    """The smoothed error of ``heads`` kernels for one lag; a point is all parameters followed by all coefficients."""

    def __init__(self, scheme: Softmax, heads: int, lag: int, limit: float) -> None:
        self.scheme, self.heads, self.limit = scheme, heads, limit
        self.features, self.spike = scheme.features, spike(scheme.context, lag)
        self.split = heads * self.features.shape[1]

    def at(self, point: Array, mu: float) -> _Point | None:
        """The smoothed error at a point; ``None`` outside the limits."""
        numbers, coefficients = point[: self.split].reshape(self.heads, -1), point[self.split :]
        sizes = np.sqrt(coefficients**2 + mu**2)
        left = self.limit - float(sizes.sum())
        wall, slopes, curvature = self.scheme.barrier(numbers, _ROUNDING * mu)
        if left <= 0 or not np.isfinite(wall):
            return None
        logits = numbers @ self.features.T
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        kernels = powers / powers.sum(axis=1, keepdims=True)
        residuals = coefficients @ kernels - self.spike
        rounded = np.sqrt(residuals**2 + mu**2)
        value = float(rounded.sum()) + mu * (wall - np.log(left))
        return _Point(value, kernels, residuals, rounded, sizes, left, slopes, curvature)

    def model(self, point: Array, current: _Point, mu: float, multipliers: Array) -> tuple[Array, Array, Array, Array]:
        """Gradient and Hessian, the Jacobian of the residuals, and the curvature of their square roots."""
        coefficients = point[self.split :]
        width, lags = self.features.shape[1], len(self.spike)
        signs = current.residuals / current.rounded
        bent = (1 - multipliers * signs) / current.rounded
        apart = self.features[None] - (current.kernels @ self.features)[:, None]
        turned = current.kernels[:, :, None] * apart
        jacobian = np.hstack(
            [(coefficients[:, None, None] * turned).transpose(1, 0, 2).reshape(lags, self.split), current.kernels.T]
        )
        shares = coefficients / current.sizes
        gradient = jacobian.T @ signs
        gradient[: self.split] += mu * current.slopes.ravel()
        gradient[self.split :] += mu * shares / current.left
        hessian = jacobian.T @ (bent[:, None] * jacobian)
        for head in range(self.heads):
            rows, at = slice(head * width, (head + 1) * width), self.split + head
            uneven = current.kernels[head] * (signs - current.kernels[head] @ signs)
            hessian[rows, rows] += coefficients[head] * (apart[head].T @ (uneven[:, None] * apart[head]))
            hessian[rows, rows] += mu * current.curvature[head]
            mixed = turned[head].T @ signs
            hessian[rows, at] += mixed
            hessian[at, rows] += mixed
        tail = slice(self.split, None)
        hessian[tail, tail] += mu / current.left**2 * np.outer(shares, shares)
        hessian[tail, tail] += mu / current.left * np.diag(mu**2 / current.sizes**3)
        return gradient, hessian, jacobian, bent


def settle(
    scheme: Softmax, numbers: Array, coefficients: Array, lag: int, limit: float = LIMIT, smoothings: Array = COARSE
) -> tuple[Array, Array]:
    """Follow the minimum over ``smoothings`` from a feasible point; returns parameters and coefficients."""
    smooth = Smooth(scheme, len(numbers), lag, limit)
    point = np.concatenate([numbers.ravel(), coefficients])
    multipliers, damping = np.zeros(scheme.context), 1e-2
    for mu in smoothings:
        current = smooth.at(point, mu)
        if current is None:
            raise ValueError("the start is not inside the limits")
        for _ in range(_STEPS):
            gradient, hessian, jacobian, bent = smooth.model(point, current, mu, multipliers)
            values, basis = _eigen(hessian)
            values, along = np.maximum(np.abs(values), _FLATTEST), basis.T @ gradient
            while damping < _STIFFEST:
                step = -along / (values + damping)
                promised = -float(along @ step + 0.5 * step**2 @ values)
                if promised < _WORTH * mu:
                    damping = _STIFFEST
                    break
                moved = basis @ step
                tried = smooth.at(point + moved, mu)
                gain = -np.inf if tried is None else (current.value - tried.value) / promised
                if tried is not None and gain > 0.1:
                    signs = current.residuals / current.rounded
                    multipliers = np.clip(signs + bent * (jacobian @ moved), -0.99999, 0.99999)
                    point, current = point + moved, tried
                    damping = damping / 6 if gain > 0.7 else damping
                    break
                damping *= 4
            if damping >= _STIFFEST:
                break
        damping = min(damping, 1e-2) if damping < _STIFFEST else 1e-6
    return point[: smooth.split].reshape(len(numbers), -1), point[smooth.split :]


def _eigen(hessian: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors; by QR if LAPACK's divide and conquer (the method of numpy) does not converge."""
    try:
        values, basis = np.linalg.eigh(hessian)
    except np.linalg.LinAlgError:
        values, basis = eigh(hessian, driver="ev")
    return values, basis


def best_single(scheme: Softmax, lag: int) -> Array:
    """The parameters (P,) of the kernel with the most weight on the lag: a convex problem.

    (1 - a) / a = sum_{s != lag} e^(l_s - l_lag) is the error of one head if it is below 1 (``floor.rotary_floor``).
    Its logarithm is convex in the parameters and is minimised with a barrier whose weight decreases to 0.
    """
    apart = np.delete(scheme.features, lag, axis=0) - scheme.features[lag]
    point = np.zeros(scheme.width)

    def at(numbers: Array, mu: float) -> tuple[float, Array, Array]:
        wall, slopes, curvature = scheme.barrier(numbers[None], _ROUNDING * mu)
        if not np.isfinite(wall):
            return np.inf, slopes, curvature
        logits = apart @ numbers
        powers = np.exp(logits - logits.max())
        weights = powers / powers.sum()
        slope = weights @ apart
        bent = apart.T @ (weights[:, None] * apart) - np.outer(slope, slope)
        value = float(logits.max() + np.log(powers.sum())) + mu * wall
        return value, slope + mu * slopes[0], bent + mu * curvature[0]

    for mu in np.concatenate([COARSE, FINE]):
        value, slope, bent = at(point, mu)
        for _ in range(_STEPS):
            step = -np.linalg.solve(bent + _FLATTEST * np.eye(len(point)), slope)
            promised = -float(slope @ step)
            if promised < _WORTH * mu:
                break
            size = 1.0
            while size > 1e-10 and at(point + size * step, mu)[0] > value - 0.1 * size * promised:
                size /= 2
            point = point + size * step
            value, slope, bent = at(point, mu)
    return point


def finish(scheme: Softmax, numbers: Array, lag: int, limit: float = LIMIT) -> Fit:
    """The exact fit for feasible parameters obtained from ``numbers``, with the best coefficients."""
    return best_coefficients(scheme, scheme.inside(numbers), lag, limit)
