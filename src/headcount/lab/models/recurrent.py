"""Recurrent networks: LSTM, GRU and plain RNN, unidirectional or bidirectional."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headcount.lab.models.base import DEPTH, ModelConfig, embedding
from headcount.lab.models.reading import Reading

Cells = nn.LSTM | nn.GRU | nn.RNN


@dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """Embedding (linear, to ``inner``), ``depth`` recurrent layers of ``width`` units, a linear output layer.

    If not causal, the layers are bidirectional with ``width`` units per direction, which tasks that ask about later
    tokens require.
    """

    cell: ClassVar[type[Cells]]

    depth: int = DEPTH.field(1)

    def body(self, features: int, reading: Reading) -> nn.Module:
        """The net."""
        return Recurrent(self, features, reading.answers)


@dataclass(frozen=True)
class LSTMConfig(RecurrentConfig):
    """Long short-term memory; its state is 2 ``width`` numbers."""

    name: ClassVar[str] = "lstm"
    summary: ClassVar[str] = "LSTM, from both sides unless causal"
    cell: ClassVar[type[Cells]] = nn.LSTM


@dataclass(frozen=True)
class GRUConfig(RecurrentConfig):
    """Gated recurrent units; its state is ``width`` numbers."""

    name: ClassVar[str] = "gru"
    summary: ClassVar[str] = "GRU, from both sides unless causal"
    cell: ClassVar[type[Cells]] = nn.GRU


@dataclass(frozen=True)
class RNNConfig(RecurrentConfig):
    """The plain tanh network; its state is ``width`` numbers."""

    name: ClassVar[str] = "rnn"
    summary: ClassVar[str] = "plain recurrent net, from both sides unless causal"
    cell: ClassVar[type[Cells]] = nn.RNN


class Recurrent(nn.Module):
    """Embedding, recurrent layers and output layer."""

    def __init__(self, config: RecurrentConfig, features: int, answers: int) -> None:
        super().__init__()
        sides = 1 if config.causal else 2
        self.embed = embedding(features, config.finer)
        self.cells = config.cell(
            config.finer, config.width, num_layers=config.depth, batch_first=True, bidirectional=sides == 2
        )
        self.answer = nn.Linear(sides * config.width, answers)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, tokens, features) -> (batch, tokens, answers)."""
        answers: Tensor = self.answer(self.cells(self.embed(features))[0])
        return answers
