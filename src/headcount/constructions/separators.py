"""Queries that single out a set of keys: equal to 1 on the set, below 1 - gap on every other key."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 512  # sets that are worked on at once
_ROUNDS = 24
_VIOLATORS = 16  # keys that are newly held in one round, at most
EXACT = 1e-9  # how well the equations on the set must be met, in gaps; dependent keys may contradict them
LEAST = 1e-6  # gaps below this are taken for none: equal keys have one of the size of rounding errors
ENOUGH = 0.8  # a set is done at this share of the wanted gap: the last bit takes the most rounds


def separate(keys: Tensor, sets: Tensor, on: Tensor, gap: float) -> tuple[Tensor, Tensor]:
    """For each set y a vector w with <w, u_j> = on_j for j in y and <w, u_j> well below on elsewhere.

    The vector of least norm among those with <w, u_j> <= min(on) - gap off the set, by an active-set method:
    solve for the set's equations alone, w = U_y (U_y' U_y)^{-1} on; hold the keys that come too close at the
    limit by further equations, let go of those whose multiplier says that they would stay below by
    themselves, and solve again. It needs far fewer dimensions than the plain solution (a third at q = 16,
    N = 4096), since it pays only for the keys that come close. Where the wanted gap cannot be had, smaller
    ones are tried.

    Shapes: ``keys`` (N, k) of entries +-1, ``sets`` (rows, q), ``on`` (rows, q) or (q,). Returns w (rows, k)
    and the gap that each row has: its smallest ``on`` minus its largest <w, u_j> off the set. A gap that is
    not positive says that no separation was found (minus infinity, with w = 0: none that meets the equations
    and exceeds ``LEAST``); infinity, that there is no other key.
    """
    on = on.expand(sets.shape)
    w = keys.new_zeros(len(sets), keys.shape[1])
    found = keys.new_full((len(sets),), -torch.inf)
    left = torch.arange(len(sets), device=sets.device)
    for wanted in (gap, gap / 2, gap / 4, gap / 8, gap / 32):
        for rows in left.split(_ROWS):
            tried, now = _Block(keys, sets[rows], on[rows], wanted).solve()
            better = now > found[rows]
            w[rows[better]], found[rows[better]] = tried[better], now[better]
        left = torch.nonzero(found < ENOUGH * wanted)[:, 0]
    return w, found


class _Block:
    """The active-set method on a block of sets at once.

    The rounds run in float32: products of signs are exact there, so the Gram matrices are, and the rest only
    decides which keys to hold. The answer is computed in float64.
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
            # A held key stays while its multiplier pushes it down (is negative).
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
            # Refine the equations on the set, which the ridge leaves open by 1e-12, and by more where held keys
            # are nearly dependent: then one step leaves 1e-14, two leave rounding errors.
            for _ in range(2):
                rest = self.on[rows] - (chosen @ solution[..., None])[..., 0]
                solution += (chosen.mT @ torch.linalg.solve(gram, rest[..., None]))[..., 0]
            w[rows] = solution
        values = w @ self.keys.T
        missed = (values.gather(1, self.sets) - self.on).abs().amax(1)
        gaps = self.on.amin(1) - values.scatter_(1, self.sets, -torch.inf).amax(1)
        # An error on the set counts as many times as the gap is scaled up to the depth.
        rounding = (gaps > 0) & ((gaps < LEAST) | (missed > EXACT * gaps.clamp(max=1)))
        return w, torch.where(rounding | (missed > EXACT), -torch.inf, gaps)

    def _least_norm(self, rows: Tensor, held: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Multipliers (rows, q + held) of the w of least norm with A w = (on, limit), and w in float32."""
        q = self.sets.shape[1]
        chosen = self.signs[torch.cat([self.sets[rows], held], dim=1)]
        chosen[:, q:] *= active[..., None]
        gram = (chosen @ chosen.mT).double()
        # An equation that is off becomes 1 * multiplier = 0. The ridge keeps a singular system solvable.
        gram.diagonal(dim1=-2, dim2=-1)[:, q:].add_((~active).double())
        gram.diagonal(dim1=-2, dim2=-1).add_(1e-12 * self.keys.shape[1])
        limit = self.limit[rows].expand(-1, held.shape[1])
        wanted = torch.cat([self.on[rows], torch.where(active, limit, 0.0)], dim=1)
        multipliers = torch.linalg.solve(gram, wanted[..., None])
        return multipliers[..., 0], (chosen.mT @ multipliers.float())[..., 0]


def _compact(held: Tensor, active: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Active columns first, in their order, and no more columns than the fullest row needs."""
    width = min(room, int(active.sum(1).max()))
    order = active.byte().argsort(dim=1, descending=True, stable=True)[:, :width]
    return held.gather(1, order), active.gather(1, order)


def coherence(keys: Tensor) -> float:
    """mu: the largest |<u_i, u_j>| / k of two different keys, for keys of entries +-1."""
    largest = 0.0
    for start in range(0, len(keys), _ROWS):
        products = (keys[start : start + _ROWS] @ keys.T).abs_()
        rows = torch.arange(len(products), device=keys.device)
        products[rows, start + rows] = 0
        largest = max(largest, float(products.max()))
    return largest / keys.shape[1]


def coherence_gap(mu: float, sparsity: int) -> float:
    """The gap of the plain solution for every set at once: 1 - q mu / (1 - (q-1) mu).

    With U_y' U_y = k (I + E), |E| <= mu entrywise, the row sums of (I + E)^{-1} are at most 1/(1 - (q-1) mu),
    and a key off the set has |u_j' U_y| / k <= mu in each of q entries. Not positive: nothing is said.
    """
    rest = 1 - (sparsity - 1) * mu
    return 1 - sparsity * mu / rest if rest > 0 else -float("inf")
