"""A state-space model: Mamba layers of the transformers library, which run on a CPU without compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headcount.models.base import ModelConfig
from headcount.models.reading import Reading


@dataclass(frozen=True)
class StateSpaceConfig(ModelConfig):
    """Embedding (linear, to ``width``), ``depth`` Mamba layers (Gu and Dao 2023), a linear answer.

    Each layer keeps 2 ``width`` channels of ``inner`` state numbers, and the last inputs of a convolution over
    ``conv`` tokens. Not causal: one stack from each side.
    """

    name: ClassVar[str] = "ssm"
    summary: ClassVar[str] = "state-space model (Mamba), from both sides unless causal"

    depth: int = 1
    conv: int = 4

    def default_inner(self, width: int) -> int:
        """Mamba's own choice."""
        return 16

    def body(self, features: int, reading: Reading) -> nn.Module:
        """The stack, or one for each side."""
        return StateSpace(self, features, reading.answers)


class StateSpace(nn.Module):
    """Embedding, Mamba from one or both sides, answer."""

    def __init__(self, config: StateSpaceConfig, features: int, answers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, config.width)
        self.sides = nn.ModuleList(_mamba(config) for _ in range(1 if config.causal else 2))
        self.answer = nn.Linear(len(self.sides) * config.width, answers)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, tokens, features) -> (batch, tokens, answers)."""
        stream = self.embed(features)
        found = [self.sides[0](inputs_embeds=stream, use_cache=False).last_hidden_state]
        if len(self.sides) == 2:
            back = self.sides[1](inputs_embeds=stream.flip(1), use_cache=False).last_hidden_state
            found.append(back.flip(1))
        return self.answer(torch.cat(found, dim=-1))


def _mamba(config: StateSpaceConfig) -> nn.Module:
    from transformers import MambaConfig, MambaModel

    model = MambaModel(
        MambaConfig(
            vocab_size=1,
            hidden_size=config.width,
            state_size=config.finer,
            num_hidden_layers=config.depth,
            conv_kernel=config.conv,
        )
    )
    model.set_input_embeddings(nn.Identity())  # tokens come embedded; the table would count as parameters
    return model
