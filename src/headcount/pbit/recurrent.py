"""A recurrent net with a state of a fixed number of bits: torch cells, rounded after every step."""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from headcount.core.errors import HeadcountError


@runtime_checkable
class RecurrentNet(Protocol):
    """The interface that a refutation requires of a recurrent net with a quantised state."""

    @property
    def state_bits(self) -> int:
        """Bits of the state."""

    def initial_state(self, count: int) -> Tensor:
        """The state before the first token, (count, width)."""

    def step(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The state after one more token, with tokens (count, features); it has at most 2^state_bits values."""

    def read(self, state: Tensor) -> Tensor:
        """The output from the state, (count, d')."""


class QuantisedRNN(nn.Module):
    """An RNN or GRU cell whose state is rounded to ``bits`` bits per unit after every step.

    State entries lie in [-1, 1] and are rounded to the grid of 2^bits equally spaced values including both ends.
    ``tokens`` scales the sets and positions in the input (z; y; i) down to [0, 1).

    x: (count, N, d' + q + 1) as returned by ``QSA.model_input``; output (count, N, d').
    """

    def __init__(self, cell: nn.RNNCell | nn.GRUCell, readout: nn.Module, bits: int, tokens: int, dim: int) -> None:
        super().__init__()
        if getattr(cell, "nonlinearity", "tanh") != "tanh":
            raise HeadcountError("the cell's state is not in [-1, 1]", fix="give a tanh RNN cell or a GRU cell")
        if bits < 1:
            raise HeadcountError(f"{bits} bits a unit is too few", fix="choose at least 1")
        self.cell, self.readout = cell, readout
        self.bits, self.tokens, self.dim = bits, tokens, dim

    @property
    def state_bits(self) -> int:
        """Units times bits."""
        return self.cell.hidden_size * self.bits

    def _round(self, state: Tensor) -> Tensor:
        steps: int = 2**self.bits - 1
        return ((state + 1) * (steps / 2)).round() * (2 / steps) - 1

    def initial_state(self, count: int) -> Tensor:
        """Zero, rounded to the grid."""
        weight = self.cell.weight_hh
        return self._round(weight.new_zeros(count, self.cell.hidden_size))

    def step(self, state: Tensor, tokens: Tensor) -> Tensor:
        """One step of the cell, rounded."""
        if tokens.shape[1] != self.cell.input_size:
            raise HeadcountError(
                f"the cell takes {self.cell.input_size} numbers a token, the task has {tokens.shape[1]}",
                fix="build it for d' + q + 1 inputs",
            )
        scaled = torch.cat([tokens[:, : self.dim], tokens[:, self.dim :] / self.tokens], dim=1)
        return self._round(self.cell(scaled.to(state.dtype), state))

    def read(self, state: Tensor) -> Tensor:
        """The readout of the state."""
        return cast(Tensor, self.readout(state))

    def forward(self, x: Tensor) -> Tensor:
        """The output after each token."""
        state, outputs = self.initial_state(len(x)), []
        for token in x.unbind(1):
            state = self.step(state, token)
            outputs.append(self.read(state))
        return torch.stack(outputs, 1)


def random_rnn(
    tokens: int, sparsity: int, dim: int, units: int, bits: int, cell: str = "rnn", seed: int = 0
) -> QuantisedRNN:
    """A float64 net with normal weights of standard deviation 1/sqrt(units) on states and 1 on inputs."""
    kinds: dict[str, type[nn.RNNCell] | type[nn.GRUCell]] = {"rnn": nn.RNNCell, "gru": nn.GRUCell}
    if cell not in kinds:
        raise HeadcountError(f"there is no cell {cell!r}", fix=f"choose one of {', '.join(kinds)}")
    if units < 1:
        raise HeadcountError(f"{units} units is too few", fix="choose at least 1")
    from headcount.core.seeds import torch_generator

    generator = torch_generator(seed, "bounds", "random rnn")
    net = QuantisedRNN(
        nn.utils.skip_init(kinds[cell], dim + sparsity + 1, units, dtype=torch.float64),
        nn.utils.skip_init(nn.Linear, units, dim, dtype=torch.float64),
        bits,
        tokens,
        dim,
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            scale = units**-0.5 if name.endswith("weight_hh") or name.startswith("readout") else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return net
