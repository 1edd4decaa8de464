"""Best margin by which one query separates a subset of keys from the others: batched, with two-sided bounds.

For keys k_j and a subset S the best margin of a query of norm 1 is

    g(S) = max over |u| <= 1 of ( min_{i in S} <u, k_i> - max_{j not in S} <u, k_j> ),

half of which is the margin of a linear classifier with a threshold; a query of norm rho with scaling c has
the margin c rho g(S). It is positive exactly if a hyperplane separates S from the rest. By duality g(S) is the distance
between the two convex hulls,

    g(S) = min over weights a on S and b off S, both summing to 1, of | sum_i a_i k_i - sum_j b_j k_j |.

Both bounds follow from one problem, the support-vector machine with squared hinge, y_j = 1 on S and -1 off it:

    min over (w, t) of |w|^2 / 2 + C / 2 sum_j max(0, 1 - y_j (<w, k_j> + t))^2

by Newton's method, which terminates after finitely many steps (Keerthi and DeCoste, 2005). Any w bounds g from below by
its margin divided by |w|; the hinges C max(0, ...), normalised to sum 1 on each side, are weights a and b whose
distance bounds g from above. C increases until the bounds meet or the largest C is reached: a margin far below a
thousandth of the keys' spread may be missed, so that its subset counts as not separable, but not vice versa.

Letters: B subsets solved at once, N keys, d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

PENALTIES = (1e1, 1e3, 1e5, 1e7)
"""Values of C for keys scaled to unit mean squared distance from their mean; each warm-starts the next."""
STEPS = 40
HALVINGS = 12
RIDGE = 1e-12
"""Added to the curvature of the threshold, which is not regularised."""
GAP = 0.02
"""Relative gap below which the two bounds count as equal."""


@dataclass(frozen=True)
class Margins:
    """lower <= g <= upper, and the queries that attain the lower bound; (B,), (B,), (B, d), float64.

    ``lower`` is zero or negative if no separating query was found; ``query`` always has norm 1.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    query: torch.Tensor


def best_margins(keys: torch.Tensor, subsets: torch.Tensor) -> Margins:
    """Bounds on g for each subset. keys (N, d); subsets (B, N), boolean, neither empty nor full.

    >>> line = torch.tensor([[0.0], [1.0], [2.0]])
    >>> found = best_margins(line, torch.tensor([[False, False, True], [False, True, False]]))
    >>> [round(float(x), 3) for x in found.upper]
    [1.0, 0.0]
    """
    keys = keys.double()
    centred = keys - keys.mean(0)
    scale = float(centred.square().sum(1).mean().sqrt())
    if scale == 0.0:
        zero = torch.zeros(len(subsets), dtype=torch.float64)
        return Margins(zero, zero.clone(), torch.zeros(len(subsets), keys.shape[1], dtype=torch.float64))
    x = torch.cat([centred / scale, torch.ones(len(keys), 1, dtype=torch.float64)], 1)
    signs = torch.where(subsets, 1.0, -1.0).double()
    count, width = len(subsets), x.shape[1]
    w = torch.zeros(count, width, dtype=torch.float64)
    lower = torch.full((count,), -torch.inf, dtype=torch.float64)
    upper = torch.full((count,), torch.inf, dtype=torch.float64)
    query = torch.zeros(count, width - 1, dtype=torch.float64)
    todo = torch.arange(count)
    for penalty in PENALTIES:
        w[todo] = _newton(x, signs[todo], w[todo], penalty)
        low, high, direction = _bounds(x[:, :-1], subsets[todo], signs[todo], w[todo], x)
        better = low > lower[todo]
        lower[todo] = torch.where(better, low, lower[todo])
        query[todo] = torch.where(better[:, None], direction, query[todo])
        upper[todo] = torch.minimum(upper[todo], high)
        todo = todo[(upper - lower.clamp_min(0.0))[todo] > GAP * upper[todo]]
        if len(todo) == 0:
            break
    return Margins(lower * scale, upper * scale, query)


def _newton(x: torch.Tensor, signs: torch.Tensor, w: torch.Tensor, penalty: float) -> torch.Tensor:
    """Minimise the objective for a batch of w (B, d + 1). Converged problems leave the batch."""
    w = w.clone()
    regular = torch.ones(x.shape[1], dtype=torch.float64)
    regular[-1] = 0.0
    ridge = torch.diag(regular + RIDGE)
    sizes = torch.cat([torch.zeros(1, dtype=torch.float64), 0.5 ** torch.arange(HALVINGS, dtype=torch.float64)])
    todo = torch.arange(len(w))
    for _ in range(STEPS):
        current, y = w[todo], signs[todo]
        scores = current @ x.T
        slack = (1.0 - y * scores).clamp_min(0.0)
        gradient = current * regular - penalty * (y * slack) @ x
        active = (slack > 0).double()
        hessian = ridge + penalty * (active[:, :, None] * x).transpose(1, 2) @ x
        step = -torch.linalg.solve(hessian, gradient)
        moved = step @ x.T
        values = torch.stack(
            [
                ((current + size * step) * regular).square().sum(1)
                + penalty * (1.0 - y * (scores + size * moved)).clamp_min(0.0).square().sum(1)
                for size in sizes
            ]
        )
        best = values.argmin(0)
        w[todo] = current + sizes[best][:, None] * step
        gained = values[0] - values.gather(0, best[None])[0]
        # Converged: a full step with an unchanged active set, or a step without improvement.
        settled = (gained <= 1e-12 * values[0]) | (
            (best == 1) & (((1.0 - y * (w[todo] @ x.T)) > 0).double() == active).all(1)
        )
        todo = todo[~settled]
        if len(todo) == 0:
            break
    return w


def _bounds(
    k: torch.Tensor, subsets: torch.Tensor, signs: torch.Tensor, w: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(lower, upper, query) of a batch from its classifiers w, in units of the scaled keys."""
    direction = w[:, :-1] / w[:, :-1].norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    scores = direction @ k.T
    inside = scores.masked_fill(~subsets, torch.inf).amin(1)
    outside = scores.masked_fill(subsets, -torch.inf).amax(1)
    slack = (1.0 - signs * (w @ x.T)).clamp_min(0.0)
    upper = torch.full((len(w),), torch.inf, dtype=torch.float64)
    a, b = slack * subsets, slack * ~subsets
    known = (a.sum(1) > 0) & (b.sum(1) > 0)
    if bool(known.any()):
        hulls = a[known] / a[known].sum(1, keepdim=True) - b[known] / b[known].sum(1, keepdim=True)
        upper[known] = (hulls @ k).norm(dim=1)
    return inside - outside, upper, direction


def separable_exactly(keys: torch.Tensor, subset: torch.Tensor) -> bool:
    """Whether a hyperplane separates the subset from the rest, by linear programming (HiGHS): the slow reference.

    maximise s subject to y_j (<w, k_j> + t) >= s, |w_i| <= 1, |t| bounded, for keys scaled to unit spread; separable
    if s exceeds the feasibility tolerance of the solver, 1e-7.
    """
    import numpy as np
    from scipy.optimize import linprog

    points = keys.double().numpy()
    points = (points - points.mean(0)) / max(float(np.abs(points - points.mean(0)).max()), np.finfo(float).tiny)
    y = np.where(subset.numpy(), 1.0, -1.0)
    d = points.shape[1]
    rows = np.concatenate([-y[:, None] * points, -y[:, None], np.ones((len(points), 1))], 1)
    limits = [(-1.0, 1.0)] * d + [(-2.0 * d, 2.0 * d), (None, 1.0)]
    solution = linprog(np.eye(d + 2)[-1] * -1.0, A_ub=rows, b_ub=np.zeros(len(points)), bounds=limits, method="highs")
    return bool(solution.status == 0 and -solution.fun > 1e-7)
