"""Match2 and MatchS: one attention unit of order s and dimension s + 1, for every input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headcount import tasks
from headcount.constructions.attention import AttentionUnit
from headcount.constructions.base import Construction, ConstructionModule, check_epsilon
from headcount.constructions.certificate import Certificate
from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.pbit.simulate import TokenMap

ORDERS = (2, 3, 4)
TUPLE_LIMIT = 2**25
"""Maximum number of logits of one token: (N+1)^(s-1)."""


@dataclass(frozen=True)
class Levels:
    """The logit levels of a match, of the nearest miss and of the blanks (0).

    With J real tuples, B tuples that contain a blank (logit 0, value 0), and the required margin r: a match
    has logit ``above`` = ln B + r or more, so that one match alone outweighs the blanks e^r to 1; a miss has
    logit at most -``below`` = -(ln J - ln B + r), so that the blanks outweigh all misses e^r to 1. The
    output, the attention mass on real tuples, is then off by at most 1 / (1 + e^r). With the gap g between cosines
    this requires the scale c = (above + below) / g = (ln J + 2 r) / g.
    """

    above: float
    scale: float
    margin: float

    @classmethod
    def of(cls, real: float, blanks: float, gap: float, epsilon: float) -> Levels:
        """Levels for J = ``real``, B = ``blanks``.

        r = ln(2/epsilon), and at least 2 ln J + 2: rounding errors of the logits grow with c, and c / r falls
        with r, so a wide margin justifies its larger scale (a margin beyond a few ln J gains nothing).
        """
        margin = max(math.log(2) - math.log(epsilon), 2 * math.log(real) + 2)
        return cls(math.log(blanks) + margin, (math.log(real) + 2 * margin) / gap, margin)


def nearest_miss(modulus: int) -> float:
    """g = 1 - cos(2 pi / M), without cancellation."""
    return 2 * math.sin(math.pi / modulus) ** 2


class Angles(TokenMap):
    """phi(x) = (cos(2 pi x/M - pi k/s) for k < s, 1): (batch, N) residues to (batch, N, s+1)."""

    def __init__(self, modulus: int, order: int) -> None:
        super().__init__()
        self.modulus, self.order = modulus, order

    def map(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The cosines."""
        (x,) = inputs
        angle = x.double() * (2 * math.pi / self.modulus)
        shifts = torch.arange(self.order, dtype=torch.float64, device=x.device) * (math.pi / self.order)
        cosines = torch.cos(angle[..., None] - shifts)
        return (torch.cat([cosines, torch.ones_like(cosines[..., :1])], dim=-1),)


class MatchModule(ConstructionModule):
    """x (batch, N) residues to (batch, N): close to 1 if the token completes a tuple, else close to 0."""

    input_names: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, modulus: int, order: int, unit: AttentionUnit) -> None:
        super().__init__()
        self.settings = {"modulus": modulus, "order": order}
        self.angles, self.unit = Angles(modulus, order), unit

    @classmethod
    def restore(cls, settings: JsonObject, tensors: dict[str, Tensor]) -> MatchModule:
        """From the saved numbers."""
        return cls(**settings, unit=AttentionUnit.restore(tensors, "unit."))

    def forward(self, x: Tensor) -> Tensor:
        """Append one blank token (all zeros: logit 0, value 0) to the attended tokens."""
        (phi,) = self.angles(x)
        phi = phi.to(self.unit.w_q.dtype)
        tokens = torch.cat([phi, phi.new_zeros(len(phi), 1, phi.shape[-1])], dim=1)
        answers: Tensor = self.unit(phi, tokens)[..., 0]
        return answers


def build_match_s(
    tokens: int = 64,
    modulus: int | None = None,
    order: int = 3,
    epsilon: float = 1e-3,
    name: str = "match-s",
) -> Construction:
    """Weights for MatchS: m = s + 1 dimensions, one layer, one head of order s; guaranteed for all inputs.

    Symbols: a_j = 2 pi x_j / M, g = 1 - cos(2 pi/M), N = ``tokens``. Source: Sanford et al. 2023, Theorem 6,
    for s = 2; for higher orders derived here:

    1. A product of cosines is linear in the embeddings of each of its tokens, and (checked in the tests)

           cos(a_1 + ... + a_s) = (2^(s-1)/s) sum_{k<s} (-1)^k prod_j cos(a_j - pi k/s).

       So with phi_k(x) = cos(a - pi k/s), W_Q = diag of c (2^(s-1)/s) (-1)^k and W_K = I, a unit of order s
       has logit c cos(a_i + a_j2 + ... + a_js): c at a match, at most c (1 - g) elsewhere.
    2. One more coordinate is 1 at tokens and 0 at the blank token, so its product distinguishes tuples of
       tokens from tuples with a blank. Its weight -(c - h) puts a match at h, a miss at h - c g or less, and a tuple
       with a blank at 0. Its value is 1 for tuples of tokens, else 0: the output is the attention mass on the former.
    3. Levels: J = N^(s-1) tuples of tokens, B = (N+1)^(s-1) - N^(s-1) with a blank (``Levels``).

    THEORY.md gives c = (s ln(N+1) + ln 8)/g with the blank half a gap below the match. That fails for s = 4:
    the blanks' 3N^2 + 3N + 1 tuples then outweigh a single match, e^(c g/2) = sqrt(8) (N+1)^2 (test
    ``test_blank_at_half_the_gap_fails_for_order_4``). Counting the blanks fixes it.

    Rounding: with unit roundoff u, one term of a logit carries at most 2s + 1 roundings (s embeddings, the
    weight, the query, s - 1 products) and ceil(log2(s+1)) of the sum's tree, so a logit is off by at most
    u (2s + 1 + ceil(log2(s+1))) (c 2^(s-1) + c). The logits of tuples with blanks stay exactly 0. The answer is read
    correctly if the error is below r - 1 (the 1 covers the softmax, whose relative errors are a few u log2 J).
    """
    task = tasks.get(name, tokens=tokens, modulus=modulus, order=order)
    assert isinstance(task, tasks.Matching)
    if order not in ORDERS:
        raise HeadcountError(f"order {order} has no construction", fix="choose 2, 3 or 4")
    check_tuples(tokens, order)
    check_epsilon(epsilon)
    real = float(tokens ** (order - 1))
    blanks = float((tokens + 1) ** (order - 1)) - real
    gap = nearest_miss(task.residues)
    levels = Levels.of(real, blanks, gap, epsilon)
    c = levels.scale
    signs = torch.tensor([(-1.0) ** k for k in range(order)], dtype=torch.float64)
    query = torch.cat([c * 2 ** (order - 1) / order * signs, signs.new_tensor([levels.above - c])])
    identity = torch.eye(order + 1, dtype=torch.float64)
    unit = AttentionUnit(
        torch.diag(query)[None],
        identity.repeat(1, order - 1, 1, 1),
        identity[:, -1:].repeat(1, order - 1, 1, 1),
    )
    roundings = 2 * order + 1 + math.ceil(math.log2(order + 1))
    bits = math.ceil(math.log2(roundings * c * (2 ** (order - 1) + 1) / (levels.margin - 1)))
    certificate = Certificate(
        name=name,
        embedding_dim=order + 1,
        single_map_dim=order + 1,
        heads=1,
        layers=1,
        order=order,
        guarantee="all inputs",
        gap=gap,
        scale=c,
        epsilon=epsilon,
        bits=bits,
    )
    return Construction(task, MatchModule(task.residues, order, unit), certificate)


def build_match2(tokens: int = 64, modulus: int | None = None, epsilon: float = 1e-3) -> Construction:
    """Weights for Match2: m = 3, one layer, one head (Sanford et al. 2023, Theorem 6); ``build_match_s``."""
    return build_match_s(tokens, modulus, 2, epsilon, "match2")


def check_tuples(tokens: int, order: int) -> None:
    """Raise if one token would have more than ``TUPLE_LIMIT`` logits."""
    if (tokens + 1) ** (order - 1) > TUPLE_LIMIT:
        raise HeadcountError(
            f"{tokens} tokens have more than {TUPLE_LIMIT:,} tuples of order {order}",
            fix=f"use at most {int(TUPLE_LIMIT ** (1 / (order - 1))) - 1} tokens",
        )
