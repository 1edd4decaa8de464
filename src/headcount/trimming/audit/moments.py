"""Second moments of keys, values and their gradients, summed in float64.

For one *side* of a layer, all KV heads of a token stacked into one vector x of width D = n_kv_heads * dim,
with g the gradient of the loss (or of another output, see ``passes``) at x:

    m = E[x],   C = E[x x'],   G = E[g g'] (its trace only),
    C_g = E[|g|^2 x x'] / E[|g|^2],   m_g = E[|g|^2 x] / E[|g|^2],   G_x = E[|x|^2 g g'] / E[|x|^2].

The cost of a map x -> x - D x is, to second order, 1/2 E[<g, D x>^2] = 1/2 E[tr(D' (g g') D (x x'))]. Replacing
g g' and x x' by G and C assumes that the magnitude of x and the sensitivity g are independent. They are not: the
first token of a text often receives most of the attention (a large g) and has a value near zero (a small x). G_x and
C_g are one step, from the identity, of the alternating iteration whose fixed point is the Kronecker product nearest
to E[g g' (x) x x'] (Van Loan and Pitsianis 1993). A second step is worse, see LOG.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from headcount.pretrained.running.capture import AttentionCall, rotation_gain, unrotate

SIDES = ("keys", "rotated_keys", "values")
"""``keys`` before the rotary embedding, ``rotated_keys`` after it, ``values``."""

STRIP = 96
"""Columns per strip of ``gram``: wide enough for matrix products at full speed."""

_FIELDS = ("count", "weight", "mean", "weighted_mean", "C", "weighted_C", "weighted_G")


@dataclass
class SideMoments:
    """Sums over tokens for one side of one layer; every tensor float64, on the CPU; D is ``width``."""

    width: int
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {
            "count": (),
            "weight": (),
            "mean": (self.width,),
            "weighted_mean": (self.width,),
            "C": (self.width, self.width),
            "weighted_C": (self.width, self.width),
            "weighted_G": (self.width, self.width),
        }
        if not self.sums:
            self.sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def add(self, x: torch.Tensor, g: torch.Tensor | None) -> None:
        """Add rows: x and g (tokens, D), any float dtype, any device."""
        x = x.to(torch.float64, copy=True)  # scaled in place below: allocating memory costs as much as the products
        self._add("count", torch.tensor(float(len(x)), dtype=torch.float64))
        self._add("mean", x.sum(0))
        self._add("C", gram(x))
        if g is None:
            return
        g = g.to(torch.float64, copy=True)
        x_length, g_length = (torch.linalg.vector_norm(rows, dim=1) for rows in (x, g))
        w = g_length.square()
        self._add("weight", w.sum())
        self._add("weighted_mean", w @ x)
        self._add("weighted_C", gram(x.mul_(g_length[:, None])))
        self._add("weighted_G", gram(g.mul_(x_length[:, None])))

    def _add(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] += value.cpu()

    @property
    def tokens(self) -> float:
        """The number of rows added."""
        return float(self.sums["count"])


def gram(x: torch.Tensor) -> torch.Tensor:
    """X' X for X (rows, D). The product is symmetric, so only blocks on and right of the diagonal are computed."""
    product = x.new_empty(x.shape[1], x.shape[1])
    for start in range(0, x.shape[1], STRIP):
        strip = x[:, start : start + STRIP].T @ x[:, start:]
        product[start : start + STRIP, start:] = strip
        product[start + STRIP :, start : start + STRIP] = strip[:, STRIP:].T
    return product


def stack_heads(x: torch.Tensor) -> torch.Tensor:
    """(batch, n_kv_heads, tokens, dim) -> (batch * tokens, n_kv_heads * dim), heads side by side."""
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], -1)


class LayerMoments:
    """The moments of each side of one layer. Without a rotary embedding, both kinds of keys are the same."""

    def __init__(self, k_width: int, v_width: int, rotary: bool) -> None:
        names = SIDES if rotary else ("keys", "values")
        self.sides = {name: SideMoments(v_width if name == "values" else k_width) for name in names}

    def add(self, call: AttentionCall, k_grad: torch.Tensor | None, v_grad: torch.Tensor | None) -> None:
        """Add one batch of one layer: the keys and values of the attention call, and their gradients."""
        k, v = call.k.detach(), call.v.detach()
        self.sides["values"].add(stack_heads(v), None if v_grad is None else stack_heads(v_grad))
        plain = unrotate(k, call.rotation) / rotation_gain(call.rotation)
        plain_grad = None if k_grad is None else stack_heads(unrotate(k_grad, call.rotation))
        self.sides["keys"].add(stack_heads(plain), plain_grad)
        if "rotated_keys" in self.sides:
            self.sides["rotated_keys"].add(stack_heads(k), None if k_grad is None else stack_heads(k_grad))

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """All sums by name, to be saved."""
        return {
            f"{prefix}.{side}.{name}": tensor
            for side, moments in self.sides.items()
            for name, tensor in moments.sums.items()
        }

    def restore(self, prefix: str, saved: dict[str, torch.Tensor]) -> None:
        """Restore the sums from the output of ``tensors``."""
        for side, moments in self.sides.items():
            moments.sums = {name: saved[f"{prefix}.{side}.{name}"] for name in _FIELDS}
