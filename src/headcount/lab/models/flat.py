"""Fully connected networks: on the flattened sequence, and on each token separately as a control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headcount.core.errors import HeadcountError
from headcount.lab.models.base import ModelConfig
from headcount.lab.models.reading import Reading


@dataclass(frozen=True)
class FlatConfig(ModelConfig):
    """Embedding of each token (linear, to ``embed``), flattened; ``width`` and ``inner`` hidden units; all answers.

    The shared embedding is linear, so the first hidden layer is still a linear map of vec(X), as in Theorem 10
    of Sanford et al. 2023, but with fewer parameters.
    """

    name: ClassVar[str] = "mlp"
    summary: ClassVar[str] = "fully connected net on the flattened sequence"

    embed: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.causal:
            raise HeadcountError("an mlp on the flattened sequence is not causal", fix="leave out --causal")

    def body(self, features: int, reading: Reading) -> nn.Module:
        """The net."""
        return Flat(self, features, reading.tokens, reading.answers)

    def stretches(self, reading: Reading) -> bool:
        """The first layer accepts only one length."""
        return False


class Flat(nn.Module):
    """Two hidden layers on all tokens at once."""

    def __init__(self, config: FlatConfig, features: int, tokens: int, answers: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.embed = nn.Linear(features, config.embed, bias=False)
        self.layers = nn.Sequential(
            nn.Linear(tokens * config.embed, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.finer),
            nn.GELU(),
            nn.Linear(config.finer, tokens * answers),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(batch, tokens, features) -> (batch, tokens, answers)."""
        answers: Tensor = self.layers(self.embed(features).flatten(1)).unflatten(1, (self.tokens, -1))
        return answers


@dataclass(frozen=True)
class TokenwiseConfig(ModelConfig):
    """Two hidden layers, ``width`` and ``inner`` units, applied to each token separately."""

    name: ClassVar[str] = "mlp-tokenwise"
    summary: ClassVar[str] = "fully connected net on each token by itself (control)"
    always_causal: ClassVar[bool] = True

    def body(self, features: int, reading: Reading) -> nn.Module:
        """The net."""
        return nn.Sequential(
            nn.Linear(features, self.width),
            nn.GELU(),
            nn.Linear(self.width, self.finer),
            nn.GELU(),
            nn.Linear(self.finer, reading.answers),
        )
