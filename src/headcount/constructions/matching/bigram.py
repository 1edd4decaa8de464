"""Match3Bigram: two layers of ordinary attention, for every input."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from headcount import tasks
from headcount.constructions.attention import AttentionUnit
from headcount.constructions.base import Construction, ConstructionModule, check_epsilon
from headcount.constructions.certificate import Certificate
from headcount.constructions.matching.any_order import Levels, check_tuples, nearest_miss
from headcount.core.payload import JsonObject
from headcount.pbit.simulate import TokenMap


class PlacedResidues(TokenMap):
    """phi(x, i) = (cos 2 pi i/(N+1), sin 2 pi i/(N+1), cos 2 pi x/M, sin 2 pi x/M); a blank token at position N."""

    def __init__(self, tokens: int, modulus: int) -> None:
        super().__init__()
        self.tokens, self.modulus = tokens, modulus

    def map(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """x (batch, N) to (batch, N+1, 4); the last token, the blank, has no residue."""
        (x,) = inputs
        place = torch.arange(self.tokens + 1, device=x.device).double() * (2 * math.pi / (self.tokens + 1))
        angle = x.double() * (2 * math.pi / self.modulus)
        residue = torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)
        residue = torch.cat([residue, residue.new_zeros(len(x), 1, 2)], dim=1)
        where = torch.stack([torch.cos(place), torch.sin(place)], dim=-1).expand(len(x), -1, -1)
        return (torch.cat([where, residue], dim=-1),)


class SumsOfNeighbours(TokenMap):
    """Map the fetched (cos b, sin b, cos a, sin a) of the next and the current residue to the input of layer 2.

    Both are decoded to the nearest residue, so the error of layer 1 does not propagate. A next residue of norm
    below 1/2 counts as missing. Result: (cos a, sin a, v cos(a+b), v sin(a+b), v, 1), v = 1 if there is a next one.
    """

    def __init__(self, modulus: int) -> None:
        super().__init__()
        self.modulus = modulus

    def map(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(batch, N, 4) to (batch, N, 6)."""
        (fetched,) = inputs
        fetched = fetched.double()
        step = 2 * math.pi / self.modulus
        following, current = (torch.round(torch.atan2(fetched[..., at + 1], fetched[..., at]) / step) for at in (0, 2))
        there = (fetched[..., :2].norm(dim=-1) > 0.5).double()
        total = (current + following) % self.modulus
        current_angle, sum_angle = current * step, total * step
        parts = [
            torch.cos(current_angle),
            torch.sin(current_angle),
            there * torch.cos(sum_angle),
            there * torch.sin(sum_angle),
            there,
            torch.ones_like(there),
        ]
        return (torch.stack(parts, dim=-1),)


class BigramModule(ConstructionModule):
    """x (batch, N) residues to (batch, N): close to 1 if some pair of neighbours completes the token, else 0."""

    input_names: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, tokens: int, modulus: int, fetch: AttentionUnit, match: AttentionUnit) -> None:
        super().__init__()
        self.settings = {"tokens": tokens, "modulus": modulus}
        self.embed, self.combine = PlacedResidues(tokens, modulus), SumsOfNeighbours(modulus)
        self.fetch, self.match = fetch, match

    @classmethod
    def restore(cls, settings: JsonObject, tensors: dict[str, Tensor]) -> BigramModule:
        """From the saved numbers."""
        units = (AttentionUnit.restore(tensors, prefix) for prefix in ("fetch.", "match."))
        return cls(settings["tokens"], settings["modulus"], *units)

    def forward(self, x: Tensor) -> Tensor:
        """Layer 1 attends to the tokens and the trailing blank, layer 2 to the tokens."""
        dtype = self.fetch.w_q.dtype
        (phi,) = self.embed(x)
        phi = phi.to(dtype)
        (sums,) = self.combine(self.fetch(phi[:, :-1], phi))
        sums = sums.to(dtype)
        answers: Tensor = self.match(sums, sums)[..., 0]
        return answers


def build_match3_bigram(tokens: int = 64, modulus: int | None = None, epsilon: float = 1e-3) -> Construction:
    """Weights for Match3Bigram: two layers, m = 4 with two heads, then m = 6 with one (Sanford et al. 2023).

    Symbols: a_i = 2 pi x_i / M; N = ``tokens``.

    1. Layer 1 fetches x_{i+1}. Positions lie on a circle of N + 1 points, the last one empty (a blank token of
       value 0). The query of head 1 is its position rotated by one step, so its logit c cos(2 pi (i + 1 - j)/(N+1))
       is largest at j = i + 1, by the gap g_1 = 1 - cos(2 pi/(N+1)). Head 2 omits the rotation and fetches
       the token itself (there is no residual connection). With c = ln(16 N / sin(pi/M)) / g_1 the mass
       elsewhere is at most sin(pi/M)/16, each output vector is off by twice that, and neighbouring residues
       are 2 sin(pi/M) apart.
    2. The token map between the layers decodes both residues and returns the angle of their sum.
    3. Layer 2 is Match2 between x_i and x_j + x_{j+1}: logit c' cos(a_i + a_j + a_{j+1}) - (c' - h), and
       0 for the last token, which has no pair and acts as the blank (value 0). J = N - 1 pairs,
       one blank (``Levels``).

    Rounding, with unit roundoff u: layer 1 decodes correctly if its logits are off by delta_1 <= ln(2)/2
    (which doubles the mass elsewhere to sin(pi/M)/8: 2/8 off) and values and sums add at most sin(pi/M)/4;
    its logits carry at most 8 roundings on terms that sum to 2 c. Layer 2: 7 roundings on 3 terms that sum to
    at most 3 c', against the margin r - 1, as in ``build_match_s``.
    """
    task = tasks.get("match3-bigram", tokens=tokens, modulus=modulus)
    assert isinstance(task, tasks.Matching)
    check_epsilon(epsilon)
    check_tuples(tokens, 2)
    m = task.residues
    turn = 2 * math.pi / (tokens + 1)
    place_gap = 2 * math.sin(turn / 2) ** 2
    c = math.log(16 * tokens / math.sin(math.pi / m)) / place_gap
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    place = torch.eye(4, 2, dtype=torch.float64)  # picks the first two coordinates
    residue = torch.eye(4, dtype=torch.float64)[:, 2:]
    none = torch.zeros_like(residue)
    fetch = AttentionUnit(
        torch.stack([c * place @ rotation, c * place]),
        torch.stack([place, place])[:, None],
        torch.stack([torch.cat([residue, none], dim=1), torch.cat([none, residue], dim=1)])[:, None],
    )
    gap = nearest_miss(m)
    levels = Levels.of(max(1, tokens - 1), 1, gap, epsilon)
    query = torch.zeros(6, 3, dtype=torch.float64)
    query[0, 0], query[1, 1], query[5, 2] = levels.scale, -levels.scale, levels.above - levels.scale
    key = torch.eye(6, dtype=torch.float64)[:, 2:5]
    match = AttentionUnit(query[None], key[None, None], key[None, None, :, 2:])
    first = 8 * 2 * c / (math.log(2) / 2)
    values = (2 * math.ceil(math.log2(tokens + 1)) + 6) * math.sqrt(2) / (math.sin(math.pi / m) / 4)
    second = 7 * 3 * levels.scale / (levels.margin - 1)
    certificate = Certificate(
        name="match3-bigram",
        embedding_dim=6,
        single_map_dim=6,
        heads=2,
        layers=2,
        order=2,
        guarantee="all inputs",
        gap=min(gap, place_gap),
        scale=max(c, levels.scale),
        epsilon=epsilon,
        bits=math.ceil(math.log2(max(first, values, second))),
    )
    return Construction(task, BigramModule(tokens, m, fetch, match), certificate)
