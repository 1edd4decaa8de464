"""Queries that separate a set of keys from the rest: equal to 1 on the set, below 1 - gap on every other key."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 512  # sets processed at once
_ROUNDS = 24
_VIOLATORS = 16  # maximum number of constraints added in one round
EXACT = 1e-9  # tolerance for the equations on the set, in gaps; dependent keys may make them inconsistent
LEAST = 1e-6  # smaller gaps count as zero: equal keys have a gap on the order of rounding errors
ENOUGH = 0.8  # a set is done at this fraction of the target gap: the last bit takes the most rounds


def separate(keys: Tensor, sets: Tensor, on: Tensor, gap: float) -> tuple[Tensor, Tensor]:
    """For each set y a vector w with <w, u_j> = on_j for j in y and <w, u_j> well below on elsewhere.

    The vector of least norm among those with <w, u_j> <= min(on) - gap off the set, by an active-set method:
    solve the equations on the set alone, w = U_y (U_y' U_y)^{-1} on; fix the keys that exceed the limit at the
    limit with additional equations, release those whose multiplier shows that they would stay below it
    anyway, and solve again. It needs far fewer dimensions than the plain solution (a third at q = 16,
    N = 4096), since only the keys near the limit add equations. If the target gap is not achievable, smaller
    ones are tried.

    Shapes: ``keys`` (N, k) of entries +-1, ``sets`` (rows, q), ``on`` (rows, q) or (q,). Returns w (rows, k)
    and the gap of each row: its smallest ``on`` minus its largest <w, u_j> off the set. A gap that is
    not positive means that no separation was found (minus infinity, with w = 0: no solution satisfies the equations
    and exceeds ``LEAST``); infinity means that there is no other key.
    """
    on = on.expand(sets.shape)
    w = keys.new_zeros(len(sets), keys.shape[1])
    gaps = keys.new_full((len(sets),), -torch.inf)
    left = torch.arange(len(sets), device=sets.device)
    for target_gap in (gap, gap / 2, gap / 4, gap / 8, gap / 32):
        for rows in left.split(_ROWS):
            tried, now = _Block(keys, sets[rows], on[rows], target_gap).solve()
            better = now > gaps[rows]
            w[rows[better]], gaps[rows[better]] = tried[better], now[better]
        left = torch.nonzero(gaps < ENOUGH * target_gap)[:, 0]
    return w, gaps


class _Block:
    """The active-set method on a block of sets.

    The rounds run in float32: products of signs are exact in float32, so the Gram matrices are exact, and all other
    results only determine which keys to constrain. The answer is computed in float64.
    """

    def __init__(self, keys: Tensor, sets: Tensor, on: Tensor, gap: float) -> None:
        self.keys, self.sets, self.on, self.gap = keys, sets, on, gap
        self.signs = keys.float()
        self.limit = on.amin(1, keepdim=True) - gap
        room = min(len(keys), int(0.9 * keys.shape[1])) - sets.shape[1]
        self.room, self.new = room, max(1, min(_VIOLATORS, keys.shape[1] // 8))

    def solve(self) -> tuple[Tensor, Tensor]:
        """w and gap for each row."""
        rows = torch.arange(len(self.sets), device=self.sets.device)
        held = self.sets[:, :0]
        active = torch.ones_like(held, dtype=torch.bool)
        best: list[tuple[Tensor, Tensor, Tensor]] = []
        closest = torch.full_like(self.limit[:, 0], torch.inf)  # largest value off the set so far, per row
        for _ in range(_ROUNDS):
            multipliers, w = self._least_norm(rows, held, active)
            off = (w @ self.signs.T).scatter_(1, self.sets[rows], -torch.inf)
            top = off.topk(min(self.new, off.shape[1]), dim=1)
            better = top.values[:, 0] < closest[rows]
            closest[rows[better]] = top.values[better, 0].double()
            best.append((rows[better], held[better], active[better]))
            low = top.values[:, 0] <= self.limit[rows, 0] + (1 - ENOUGH) * self.gap
            go_on = ~low
            if self.room < 1 or not go_on.any():
                break
            # A constrained key stays active while its multiplier is negative.
            stays = active[go_on] & (multipliers[go_on, self.sets.shape[1] :] < 0)
            fresh = top.values[go_on] > self.limit[rows[go_on]] + 1e-4 * self.gap
            rows = rows[go_on]
            held, active = _compact(
                torch.cat([held[go_on], top.indices[go_on]], dim=1),
                torch.cat([stays, fresh], dim=1),
                self.room,
            )
        return self._finish(best)

    def _finish(self, best: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The answers in float64; later entries of ``best`` replace earlier ones."""
        w = self.keys.new_empty(len(self.sets), self.keys.shape[1])
        done = torch.zeros(len(self.sets), dtype=torch.bool, device=w.device)
        for rows, held, active in reversed(best):
            last = ~done[rows]
            done[rows] = True
            rows = rows[last]
            multipliers = self._least_norm(rows, held[last], active[last])[0]
            chosen = self.keys[self.sets[rows]]
            solution = (chosen.mT @ multipliers[:, : chosen.shape[1], None])[..., 0]
            if held.shape[1]:
                pushed = torch.where(active[last], multipliers[:, chosen.shape[1] :], 0.0)
                solution += (self.keys[held[last]].mT @ pushed[..., None])[..., 0]
            gram = chosen @ chosen.mT
            gram.diagonal(dim1=-2, dim2=-1).add_(1e-12 * gram.shape[-1])
            # Refine the equations on the set: the ridge leaves a residual of 1e-12, or more if constrained keys are
            # nearly dependent. One step then leaves 1e-14, two steps leave rounding errors.
            for _ in range(2):
                rest = self.on[rows] - (chosen @ solution[..., None])[..., 0]
                solution += (chosen.mT @ torch.linalg.solve(gram, rest[..., None]))[..., 0]
            w[rows] = solution
        values = w @ self.keys.T
        missed = (values.gather(1, self.sets) - self.on).abs().amax(1)
        gaps = self.on.amin(1) - values.scatter_(1, self.sets, -torch.inf).amax(1)
        # An error on the set is amplified by the factor that scales the gap to the depth.
        rounding = (gaps > 0) & ((gaps < LEAST) | (missed > EXACT * gaps.clamp(max=1)))
        return w, torch.where(rounding | (missed > EXACT), -torch.inf, gaps)

    def _least_norm(self, rows: Tensor, held: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Multipliers (rows, q + held) of the w of least norm with A w = (on, limit), and w in float32."""
        q = self.sets.shape[1]
        chosen = self.signs[torch.cat([self.sets[rows], held], dim=1)]
        chosen[:, q:] *= active[..., None]
        gram = (chosen @ chosen.mT).double()
        # An inactive equation becomes 1 * multiplier = 0. The ridge keeps a singular system solvable.
        gram.diagonal(dim1=-2, dim2=-1)[:, q:].add_((~active).double())
        gram.diagonal(dim1=-2, dim2=-1).add_(1e-12 * self.keys.shape[1])
        limit = self.limit[rows].expand(-1, held.shape[1])
        right_side = torch.cat([self.on[rows], torch.where(active, limit, 0.0)], dim=1)
        multipliers = torch.linalg.solve(gram, right_side[..., None])
        return multipliers[..., 0], (chosen.mT @ multipliers.float())[..., 0]


def _compact(held: Tensor, active: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Move active columns to the front, in order, and keep only as many columns as the fullest row needs."""
    width = min(room, int(active.sum(1).max()))
    order = active.byte().argsort(dim=1, descending=True, stable=True)[:, :width]
    return held.gather(1, order), active.gather(1, order)


def coherence(keys: Tensor) -> float:
    """mu: the largest |<u_i, u_j>| / k over pairs of different keys with entries +-1."""
    largest = 0.0
    for start in range(0, len(keys), _ROWS):
        products = (keys[start : start + _ROWS] @ keys.T).abs_()
        rows = torch.arange(len(products), device=keys.device)
        products[rows, start + rows] = 0
        largest = max(largest, float(products.max()))
    return largest / keys.shape[1]


def coherence_gap(mu: float, sparsity: int) -> float:
    """A lower bound on the gap of the plain solution for every set: 1 - q mu / (1 - (q-1) mu).

    With U_y' U_y = k (I + E), |E| <= mu entrywise, the row sums of (I + E)^{-1} are at most 1/(1 - (q-1) mu),
    and a key off the set has |u_j' U_y| / k <= mu in each of q entries. If it is not positive, it says nothing.
    """
    rest = 1 - (sparsity - 1) * mu
    return 1 - sparsity * mu / rest if rest > 0 else -float("inf")
