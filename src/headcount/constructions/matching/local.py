"""Match3Local: one layer of ordinary attention whose output contains the whole window, for every input."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from headcount import tasks
from headcount.constructions.attention import AttentionUnit
from headcount.constructions.base import Construction, ConstructionModule, check_epsilon
from headcount.constructions.certificate import Certificate
from headcount.constructions.qsa.certified import sign_keys
from headcount.constructions.separators import ENOUGH, separate
from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent
from headcount.pbit.simulate import TokenMap

GAP = 0.25


class Slots(TokenMap):
    """Map residues to vectors with cos and sin of 2 pi x/M in slot t mod (2K+1), t the padded position.

    The N tokens are preceded and followed by K blank positions without a residue.
    """

    def __init__(self, modulus: int, window: int) -> None:
        super().__init__()
        self.modulus, self.window = modulus, window

    def map(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """x (batch, N) to (batch, N + 2K, 2(2K+1))."""
        (x,) = inputs
        width, pad = 2 * self.window + 1, self.window
        angle = x.double() * (2 * math.pi / self.modulus)
        slot = torch.arange(pad, pad + x.shape[1], device=x.device) % width
        values = torch.zeros(*x.shape, width, 2, dtype=torch.float64, device=x.device)
        tokens = torch.arange(x.shape[1], device=x.device)
        values[:, tokens, slot] = torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)
        blank = values.new_zeros(len(x), pad, width, 2)
        return (torch.cat([blank, values, blank], dim=1).flatten(2),)


class WindowAnswer(TokenMap):
    """The output map from the slots of the window to the answer.

    The longest slot belongs to the token itself, which has twice the weight; slots shorter than half a weight are
    blank. The residues are decoded and all pairs in the window are tested.
    """

    def __init__(self, modulus: int, window: int) -> None:
        super().__init__()
        self.modulus, self.window = modulus, window

    def map(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(batch, N, 2(2K+1)) to (batch, N) of 0 and 1 (NaN if the input is not finite)."""
        (slots,) = inputs
        slots = slots.double().unflatten(-1, (2 * self.window + 1, 2)) * (2 * self.window + 2)
        length = slots.norm(dim=-1)
        step = 2 * math.pi / self.modulus
        x = torch.round(torch.atan2(slots[..., 1], slots[..., 0]) / step).nan_to_num().long() % self.modulus
        token_residue = x.gather(-1, length.argmax(-1, keepdim=True))
        there = length > 0.5
        matched = torch.zeros(token_residue.shape[:-1], dtype=torch.bool, device=slots.device)
        for other in range(x.shape[-1]):
            missing = (-token_residue - x[..., other : other + 1]) % self.modulus
            matched |= there[..., other] & (there & (x == missing)).any(-1)
        return (torch.where(slots.isfinite().flatten(-2).all(-1), matched.double(), torch.nan),)


class LocalModule(ConstructionModule):
    """x (batch, N) residues to (batch, N) answers, 0 or 1."""

    input_names: ClassVar[tuple[str, ...]] = ("x",)
    keys: Tensor
    queries: Tensor

    def __init__(self, modulus: int, window: int, keys: Tensor, queries: Tensor) -> None:
        super().__init__()
        self.settings = {"modulus": modulus, "window": window}
        self.slots, self.answer = Slots(modulus, window), WindowAnswer(modulus, window)
        self.register_buffer("keys", keys)
        self.register_buffer("queries", queries)
        width = 2 * (2 * window + 1)
        eye = torch.eye(width + keys.shape[1], dtype=torch.float64)
        self.unit = AttentionUnit(eye[None, :, width:], eye[None, None, :, width:], eye[None, None, :, :width])

    @classmethod
    def restore(cls, settings: JsonObject, tensors: dict[str, Tensor]) -> LocalModule:
        """From the saved numbers."""
        return cls(**settings, keys=tensors["keys"], queries=tensors["queries"])

    def forward(self, x: Tensor) -> Tensor:
        """Apply one layer to the padded sequence, then the output map."""
        dtype = self.unit.w_q.dtype
        (values,) = self.slots(x)
        values = values.to(dtype)
        rows = slice(self.slots.window, self.slots.window + x.shape[1])
        phi = torch.cat([torch.zeros_like(values[:, rows]), self.queries.expand(len(x), -1, -1)], dim=-1)
        psi = torch.cat([values, self.keys.expand(len(x), -1, -1)], dim=-1)
        answers: Tensor = self.answer(self.unit(phi, psi))[0]
        return answers


def build_match3_local(
    tokens: int = 64,
    modulus: int | None = None,
    window: int = 4,
    epsilon: float = 1e-3,
    seed: int = 0,
    progress: Progress = silent,
) -> Construction:
    """Weights for Match3Local: one layer, one head, m = k + 2(2K+1), k of order K log N (Sanford et al.).

    With W = 2K + 1 and K blank positions on either side, every window has W positions with distinct slots t mod W.
    The window is averaged as in ``build_qsa_certificate``: random sign keys and a query per
    position with <w, u_t> = 1 on the window and at most 1 - gap off it, scaled by depth/gap. Two additions:

    - the logit of the token itself is ln 2 higher (<w, u> = 1 + ln(2) gap/depth), so its weight is 2/(W+1) and
      the weight of each other token is 1/(W+1): the longest slot identifies the residue of the token itself;
    - values are (cos, sin) of the residue in its slot, so an empty slot is a blank.

    The task fixes the N windows and all of them are checked, so every input is covered. A slot times W + 1 is
    decoded correctly if it is off by less than sin(pi/M), and depth leaves a quarter of that: the mass
    off the window is rho <= N/(W+1) exp(-depth) = sin(pi/M) / (4 (W+1)). The answers are then exact, so
    ``epsilon`` has no effect.

    Rounding (``_sufficient_bits``): each token of a window has a separate slot, so an error in its weight scales
    the slot without rotating it. Logits, exponentials, quotients and the sum of the weights may therefore
    change the weights by factors up to e^(+-x), x = ln(2)/8: times W + 1, the token's slot then has a length of at
    least 1.834, the others 0.917 to 1.091, and e^x rho at most 0.273 sin(pi/M). Values, their products with
    weights and the sums over positions rotate the slot; they may add sin(pi/M)/16 of its length:

        own - off >= 1.834 (15/16) - 0.273 > 1.091 (17/16) + 0.273 >= other + off   (the longest slot is the token's),
        blank <= 0.273 < 1/2 < 0.917 (15/16) - 0.273 <= other - off                 (blanks are recognised),
        (0.273 + 1.091/16) / 0.917 < 1                                              (residues are decoded).
    """
    task = tasks.get("match3-local", tokens=tokens, modulus=modulus, window=window)
    assert isinstance(task, tasks.Match3Local)
    check_epsilon(epsilon)
    window = min(window, tokens - 1)  # no window extends further
    width = 2 * window + 1
    if (tokens + 2 * window) * width > 2**24:
        raise HeadcountError(
            f"{tokens} windows of {width} tokens are too many", fix="use fewer tokens or a smaller window"
        )
    turn = math.sin(math.pi / task.residues)
    depth = math.log(4 * tokens / turn)
    keys, queries, gap = _windows(tokens, window, depth, seed, progress)
    k = keys.shape[1]
    terms = float(queries.abs().sum(1).max())
    module = LocalModule(task.residues, window, keys, queries)
    certificate = Certificate(
        name="match3-local",
        embedding_dim=k + 2 * width,
        single_map_dim=2 * k + 2 * width,
        heads=1,
        layers=1,
        order=2,
        guarantee="all inputs",
        gap=gap,
        scale=depth / gap,
        epsilon=epsilon,
        bits=_sufficient_bits(terms, k, tokens + 2 * window, depth, turn),
    )
    return Construction(task, module, certificate)


def _sufficient_bits(terms: float, key_dim: int, places: int, depth: float, turn: float) -> int:
    """Significand bits for which the docstring of ``build_match3_local`` holds, with u = 2^-bits.

    A logit is off by delta <= u ((3 + ceil(log2 k)) terms + depth), as in ``headcount.constructions.qsa.unit``, and a
    weight by a factor e^(2 delta) of that and 3 + ceil(log2 T) roundings (exponential, the sum over the T
    places, quotient). Values, products and the tree of the sum are 3 + ceil(log2 T) roundings, too.
    """
    tree = 3 + math.ceil(math.log2(places))
    stretch = 2 * ((3 + math.ceil(math.log2(max(2, key_dim)))) * terms + depth) + tree
    return math.ceil(math.log2(max(stretch / (math.log(2) / 8), tree * 16 / turn)))


def _windows(tokens: int, window: int, depth: float, seed: int, progress: Progress) -> tuple[Tensor, Tensor, float]:
    """Keys (N+2K, k) and scaled queries (N, k) for the smallest k that separates every window."""
    width, places = 2 * window + 1, tokens + 2 * window
    sets = torch.arange(tokens)[:, None] + torch.arange(width)
    on = torch.ones(width, dtype=torch.float64)
    least = ENOUGH * GAP
    scale = depth / least
    on[window] += math.log(2) / scale

    def attempt(key_dim: int) -> tuple[Tensor, Tensor] | None:
        keys = sign_keys(seed, places, key_dim)
        w, gaps = separate(keys, sets, on, GAP)
        return (keys, w) if float(gaps.min()) >= least else None

    low, high, steps = 0, max(2, math.ceil(width * math.log(places))), 0
    while (best := attempt(high)) is None:
        low, high, steps = high, 2 * high, steps + 1
        progress("search", steps, steps + 8)
    while high - low > max(1, high // 64):
        middle = (low + high) // 2
        tried = attempt(middle)
        if tried is None:
            low = middle
        else:
            high, best = middle, tried
        steps += 1
        progress("search", steps, steps + (high - low).bit_length())
    keys, w = best
    return keys, w * scale, least
