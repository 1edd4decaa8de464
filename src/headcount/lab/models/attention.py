"""Attention of order two and three: the bare unit of the theory, or a stack of Transformer blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headcount.attention import SelfAttention
from headcount.core.errors import HeadcountError
from headcount.core.options import Option
from headcount.lab.models.base import DEPTH, HEADS, MLP, ModelConfig, embedding
from headcount.lab.models.reading import Reading

RESIDUAL = Option("residual", "Around attention and MLP.", kind=bool)
NORM = Option("norm", "Layer norms.", kind=bool)
BLANK = Option("blank", "A learned token in front.", kind=bool)
GAIN = Option("gain", "Factor on the initial logits.", kind=float)


@dataclass(frozen=True)
class AttentionConfig(ModelConfig):
    """Embedding (linear, to ``width``), ``depth`` layers of attention, a linear answer.

    width: the embedding dimension m. inner: hidden units of each MLP; without MLP, the value dimension of a
    head. residual, mlp: switched off, one layer is the unit of Sanford et al. 2023, softmax(Phi Q K' Phi')
    Phi V, and its lower bounds apply (a residual carries the token around the bottleneck of m numbers).
    norm: layer norms before attention and MLP. blank: a learned token in front that belongs to no input, as
    the matching constructions need it to tell a good best match from a bad one. gain: factor on the initial
    queries, so on the initial logits.
    """

    name: ClassVar[str] = "attention"
    summary: ClassVar[str] = "pairwise softmax attention"
    kind: ClassVar[str] = "pairwise"

    depth: int = DEPTH.field(1)
    heads: int = HEADS.field(1)
    residual: bool = RESIDUAL.field(True)
    mlp: bool = MLP.field(True)
    norm: bool = NORM.field(False)
    blank: bool = BLANK.field(True)
    gain: float = GAIN.field(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise HeadcountError(
                f"width {self.width} does not divide into {self.heads} heads", fix="choose a multiple of the heads"
            )
        if not self.gain > 0:
            raise HeadcountError(f"gain must be positive, not {self.gain}", fix="choose a factor such as 1")

    @property
    def step(self) -> int:
        """Heads share the width."""
        return self.heads

    def default_inner(self, width: int) -> int:
        """MLPs are twice as wide as the stream; values share the width among the heads."""
        return 2 * width if self.mlp else max(1, width // self.heads)

    def body(self, features: int, reading: Reading) -> nn.Module:
        """The stack."""
        return Stack(self, features, reading.answers)


@dataclass(frozen=True)
class ThirdOrderConfig(AttentionConfig):
    """As ``AttentionConfig``, each query meeting pairs of keys."""

    name: ClassVar[str] = "third-order"
    summary: ClassVar[str] = "third-order attention, a softmax over pairs of tokens"
    kind: ClassVar[str] = "third_order"


@dataclass(frozen=True)
class StrassenConfig(AttentionConfig):
    """As ``AttentionConfig``, with logits over pairs that are sums of three inner products."""

    name: ClassVar[str] = "strassen"
    summary: ClassVar[str] = "Strassen attention, pair logits that factorise"
    kind: ClassVar[str] = "strassen"


class Block(nn.Module):
    """One layer: attention and an MLP, each with its norm and residual where the config has them."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        m = config.width
        self.residual = config.residual
        self.attention = SelfAttention(
            m,
            config.heads,
            config.kind,
            v_dim=m // config.heads if config.mlp else config.finer,
            causal=config.causal,
        )
        with torch.no_grad():
            self.attention.q_proj.weight.mul_(config.gain)
        self.norm = nn.LayerNorm(m) if config.norm else nn.Identity()
        self.mlp: nn.Module | None = None
        if config.mlp:
            norm = nn.LayerNorm(m) if config.norm else nn.Identity()
            self.mlp = nn.Sequential(norm, nn.Linear(m, config.finer), nn.GELU(), nn.Linear(config.finer, m))

    def forward(self, stream: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        found, _ = self.attention(self.norm(stream))
        stream = stream + found if self.residual else found
        if self.mlp is None:
            return stream
        transformed: Tensor = self.mlp(stream)
        return stream + transformed if self.residual else transformed


class Stack(nn.Module):
    """Embedding, blocks, answer."""

    def __init__(self, config: AttentionConfig, features: int, answers: int) -> None:
        super().__init__()
        self.embed = embedding(features, config.width)
        self.blank = nn.Parameter(torch.zeros(config.width)) if config.blank else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.answer = nn.Linear(config.width, answers)

    def stream(self, features: Tensor) -> Tensor:
        """What the first block reads: the embedded tokens, the blank in front where there is one."""
        found: Tensor = self.embed(features)
        if self.blank is not None:  # in front, so that under a causal mask every token sees it
            found = torch.cat([self.blank.expand(len(found), 1, -1), found], dim=1)
        return found

    def forward(self, features: Tensor) -> Tensor:
        """(batch, tokens, features) -> (batch, tokens, answers)."""
        found = self.stream(features)
        for block in self.blocks:
            found = block(found)
        answers: Tensor = self.answer(found if self.blank is None else found[:, 1:])
        return answers
