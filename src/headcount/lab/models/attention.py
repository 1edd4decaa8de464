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
    """Embedding (linear, to ``width``), ``depth`` layers of attention, a linear output layer.

    width: the embedding dimension m. inner: hidden units of each MLP; without MLP, the value dimension of a
    head. residual, mlp: with both off, one layer is the unit of Sanford et al. 2023, softmax(Phi Q K' Phi')
    Phi V, and its lower bounds apply (a residual would bypass the bottleneck of m numbers).
    norm: layer norms before attention and MLP. blank: a learned token prepended to the sequence, which the
    matching constructions need to distinguish a match from the best non-match. gain: factor on the initial
    queries, and therefore on the initial logits.
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
        """The number of heads, which share the width."""
        return self.heads

    def default_inner(self, width: int) -> int:
        """MLPs are twice as wide as the stream; without MLPs, the heads divide the width among their values."""
        return 2 * width if self.mlp else max(1, width // self.heads)

    def body(self, features: int, reading: Reading) -> nn.Module:
        """The stack."""
        return Stack(self, features, reading.answers)


@dataclass(frozen=True)
class ThirdOrderConfig(AttentionConfig):
    """Like ``AttentionConfig``, but each query attends to pairs of keys."""

    name: ClassVar[str] = "third-order"
    summary: ClassVar[str] = "third-order attention, a softmax over pairs of tokens"
    kind: ClassVar[str] = "third_order"


@dataclass(frozen=True)
class StrassenConfig(AttentionConfig):
    """Like ``AttentionConfig``, but with pair logits that are sums of three inner products."""

    name: ClassVar[str] = "strassen"
    summary: ClassVar[str] = "Strassen attention, pair logits that factorise"
    kind: ClassVar[str] = "strassen"


class Block(nn.Module):
    """One layer: attention and an MLP, each with a norm and a residual if configured."""

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
        """(batch, tokens, width) -> (batch, tokens, width)."""
        attended, _ = self.attention(self.norm(stream))
        stream = stream + attended if self.residual else attended
        if self.mlp is None:
            return stream
        transformed: Tensor = self.mlp(stream)
        return stream + transformed if self.residual else transformed


class Stack(nn.Module):
    """Embedding, blocks and output layer."""

    def __init__(self, config: AttentionConfig, features: int, answers: int) -> None:
        super().__init__()
        self.embed = embedding(features, config.width)
        self.blank = nn.Parameter(torch.zeros(config.width)) if config.blank else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.answer = nn.Linear(config.width, answers)

    def stream(self, features: Tensor) -> Tensor:
        """The input of the first block: the embedded tokens, preceded by the blank token if there is one."""
        embedded: Tensor = self.embed(features)
        if self.blank is not None:  # prepended, so that every token sees it under a causal mask
            embedded = torch.cat([self.blank.expand(len(embedded), 1, -1), embedded], dim=1)
        return embedded

    def forward(self, features: Tensor) -> Tensor:
        """(batch, tokens, features) -> (batch, tokens, answers)."""
        stream = self.stream(features)
        for block in self.blocks:
            stream = block(stream)
        answers: Tensor = self.answer(stream if self.blank is None else stream[:, 1:])
        return answers
