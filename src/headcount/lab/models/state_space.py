"""A state-space model: Mamba-2 layers in their dual form, with products of small matrices instead of a scan.

transformers has the same layer, but its CPU path, which uses Python loops and five-dimensional intermediates, is about
fifty times as slow as an LSTM at the sizes of the learning lab. Parameters have the same names as in transformers, and
the tests compare this layer with transformers' layer with the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu, softplus

from headcount.lab.models.base import DEPTH, HEADS, ModelConfig
from headcount.lab.models.reading import Reading

CONV = 4
"""Kernel size in tokens of the convolution before the recurrence."""
TIME_STEPS = (1e-3, 1e-1)
"""Range of the initial step sizes, log-uniform (Gu and Dao 2023)."""


@dataclass(frozen=True)
class StateSpaceConfig(ModelConfig):
    """Embedding (linear, to ``width``), ``depth`` Mamba-2 layers (Dao and Gu 2024), a linear output layer.

    The state of a layer is 2 ``width`` channels of ``inner`` numbers, split into ``heads`` heads with one decay rate
    each, and the last inputs of a convolution over 4 tokens. If not causal, there is one stack per direction.
    """

    name: ClassVar[str] = "ssm"
    summary: ClassVar[str] = "state-space model (Mamba-2), from both sides unless causal"

    depth: int = DEPTH.field(1)
    heads: int = HEADS.field(2)

    @property
    def step(self) -> int:
        """The heads share 2 ``width`` channels."""
        return self.heads // math.gcd(2, self.heads)

    def default_inner(self, width: int) -> int:
        """State numbers per channel, as in Mamba."""
        return 16

    def body(self, features: int, reading: Reading) -> nn.Module:
        """The stack, or one stack per direction."""
        return StateSpace(self, features, reading.answers)


class StateSpace(nn.Module):
    """Embedding, Mamba-2 in one or both directions, and output layer."""

    def __init__(self, config: StateSpaceConfig, features: int, answers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, config.width)
        self.sides = nn.ModuleList(
            nn.Sequential(*(MambaBlock(config.width, config.finer, config.heads) for _ in range(config.depth)))
            for _ in range(1 if config.causal else 2)
        )
        self.answer = nn.Linear(len(self.sides) * config.width, answers)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, tokens, features) -> (batch, tokens, answers)."""
        stream = self.embed(features)
        streams = [self.sides[0](stream)]
        if len(self.sides) == 2:
            streams.append(self.sides[1](stream.flip(1)).flip(1))
        answers: Tensor = self.answer(torch.cat(streams, dim=-1))
        return answers


class MambaBlock(nn.Module):
    """A norm and the mixer, with a residual."""

    def __init__(self, width: int, states: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.mixer = Mamba2(width, states, heads)

    def forward(self, stream: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        added: Tensor = stream + self.mixer(self.norm(stream))
        return added


class Mamba2(nn.Module):
    """One Mamba-2 layer, causal.

    For each head, with step sizes d_t > 0, rate a < 0, and x_t, B_t, C_t read off the convolved input:
    h_t = exp(a d_t) h_{t-1} + d_t x_t B_t', y_t = h_t C_t + D x_t. Unrolled (Dao and Gu 2024, section 5),
    y_t = sum_{s <= t} exp(a (d_{s+1} + ... + d_t)) <C_t, B_s> d_s x_s + D x_t: attention without a softmax,
    O(N^2) for sequences of N tokens.
    """

    def __init__(self, width: int, states: int, heads: int) -> None:
        super().__init__()
        self.channels, self.states, self.heads = 2 * width, states, heads
        mixed = self.channels + 2 * states
        self.in_proj = nn.Linear(width, self.channels + mixed + heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, CONV, groups=mixed, padding=CONV - 1)
        self.dt_bias = nn.Parameter(_inverse_softplus(_log_uniform(heads, *TIME_STEPS)))
        self.A_log = nn.Parameter(torch.arange(1, heads + 1, dtype=torch.float32).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(self.channels, eps=1e-5)
        self.out_proj = nn.Linear(self.channels, width, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        mixed = self.channels + 2 * self.states
        gate, mixture, dt = self.in_proj(stream).split([self.channels, mixed, self.heads], dim=-1)
        mixture = silu(self._convolved(mixture))
        x, B, C = mixture.split([self.channels, self.states, self.states], dim=-1)
        dt = softplus(dt + self.dt_bias).mT  # (batch, heads, tokens)
        x = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, channels of a head)
        weights = (C @ B.mT)[:, None] * decays(-self.A_log.exp()[:, None] * dt)
        y = weights @ (x * dt[..., None]) + self.D[:, None, None] * x
        projected: Tensor = self.out_proj(self.norm(y.transpose(1, 2).flatten(2) * silu(gate)))
        return projected

    def _convolved(self, mixture: Tensor) -> Tensor:
        """Convolve each channel over the last ``CONV`` tokens; the backward pass of PyTorch's convolution is slow."""
        padded = pad(mixture, (0, 0, CONV - 1, 0))
        taps, tokens = self.conv1d.weight[:, 0], mixture.shape[1]
        assert self.conv1d.bias is not None
        convolved = self.conv1d.bias + padded[:, :tokens] * taps[:, 0]
        for k in range(1, CONV):
            convolved = convolved + padded[:, k : k + tokens] * taps[:, k]
        return convolved


def decays(logs: Tensor) -> Tensor:
    """exp(logs_{s+1} + ... + logs_t) at (t, s) for s <= t, 0 above; (..., N) -> (..., N, N)."""
    total = logs.cumsum(-1)
    below = torch.ones(logs.shape[-1], logs.shape[-1], dtype=torch.bool, device=logs.device).tril()
    # Above the diagonal the difference is positive and may overflow, so it is masked before the exponential.
    return (total[..., :, None] - total[..., None, :]).masked_fill(~below, -torch.inf).exp()


def _log_uniform(count: int, low: float, high: float) -> Tensor:
    return torch.exp(torch.rand(count) * math.log(high / low) + math.log(low))


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
