"""The inputs and answers that a task requires of a model, and the features of the inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from headcount.core.errors import HeadcountError
from headcount.tasks import Matching, Task
from headcount.tasks.match import MatchS

if TYPE_CHECKING:
    from jaxtyping import Float

Embedding = Literal["frozen", "learned"]
EMBEDDINGS: tuple[Embedding, ...] = ("frozen", "learned")

WAVES = 8
"""Number of sine and cosine pairs that encode a position, for tasks with positions and variable lengths."""


@dataclass(frozen=True)
class Reading:
    """The sizes of a task that a model is built for.

    symbols: number of input symbols (None: tokens are vectors). sparsity, dim: q and d' of tokens (z_i; y_i; i),
    else 0; vectors without sets have a sparsity of 0.
    answers: numbers per answer. circular: symbols are residues, for which Fourier features apply.
    ordered: the answer depends on the order of the tokens.

    >>> from headcount import tasks
    >>> Reading.of(tasks.get("match3", tokens=8)).answers
    1
    """

    tokens: int
    symbols: int | None
    sparsity: int
    dim: int
    answers: int
    circular: bool
    ordered: bool

    @classmethod
    def of(cls, task: Task) -> Reading:
        """The reading of a task."""
        sizes = task.parameters()
        vectors = task.vocabulary is None
        return cls(
            tokens=task.tokens,
            symbols=task.vocabulary,
            sparsity=sizes.get("sparsity", 0) if vectors else 0,
            dim=sizes["dim"] if vectors else 0,
            answers={"binary": 1, "class": task.classes or 0, "vector": sizes.get("dim", 0)}[task.answer],
            circular=isinstance(task, Matching),
            ordered=not isinstance(task, MatchS),
        )

    @property
    def stretches(self) -> bool:
        """Whether the features are defined at other lengths; a set among N tokens needs an N-dimensional indicator."""
        return self.symbols is not None or self.sparsity == 0


class Reader(nn.Module):
    """Convert raw tokens to features, (batch, N) or (batch, N, d' + q + 1) -> (batch, N, ``features``).

    - residues mod M, frozen: cos and sin of 2 pi k x / M for k = 1..``frequencies``. k = 1 already distinguishes
      all residues; more frequencies make nearby residues less similar.
    - residues, learned, and other symbols: a table with ``table`` numbers per symbol.
    - vectors: unchanged.
    - (z_i; y_i; i): z_i, the indicator of the set y_i in {0,1}^N, the indicator of i. The theory's keys u_i
      and queries sum_{j in y} u_j are linear maps of these.

    If the order matters, sines and cosines of the position are appended to symbols and vectors (``WAVES`` of each).
    """

    def __init__(self, reading: Reading, embedding: Embedding, frequencies: int, table: int) -> None:
        super().__init__()
        if embedding not in EMBEDDINGS:
            raise HeadcountError(f"there is no embedding {embedding!r}", fix=f"choose {' or '.join(EMBEDDINGS)}")
        self.reading, self.frequencies = reading, frequencies
        self.table: nn.Embedding | None = None
        if reading.symbols is None and reading.sparsity:
            self.features = reading.dim + 2 * reading.tokens
            return
        if reading.symbols is None:
            self.features = reading.dim
        elif reading.circular and embedding == "frozen":
            # Fourier features above M/2 repeat lower ones.
            self.frequencies = min(frequencies, max(1, reading.symbols // 2))
            self.features = 2 * self.frequencies
        else:
            self.table = nn.Embedding(reading.symbols, table)
            self.features = table
        if reading.ordered:
            self.features += 2 * WAVES

    def forward(self, inputs: Tensor, modulus: int | None = None) -> Float[Tensor, "batch tokens features"]:
        """Features of ``inputs``. modulus: the M of the residues, if it differs from the reading's (frozen only)."""
        if self.reading.symbols is None and self.reading.sparsity:
            return self._sets(inputs)
        if self.reading.symbols is None:
            features = inputs
        elif self.table is not None:
            features = self.table(inputs)
        else:
            features = waves(inputs / (modulus or self.reading.symbols), self.frequencies)
        if self.reading.ordered:
            features = torch.cat([features, self._positions(inputs).to(features.dtype)], dim=-1)
        return features

    def _sets(self, inputs: Tensor) -> Tensor:
        d, q, n = self.reading.dim, self.reading.sparsity, self.reading.tokens
        features = inputs.new_zeros((*inputs.shape[:2], self.features))
        features[..., :d] = inputs[..., :d]
        places = inputs[..., d:].long()
        places[..., :q] += d
        places[..., q] += d + n
        return features.scatter_(-1, places, 1.0)

    def _positions(self, inputs: Tensor) -> Tensor:
        """Wavelengths from 2 to 2^WAVES positions: the shortest distinguish neighbours, the longest the ends."""
        place = torch.arange(inputs.shape[1], device=inputs.device, dtype=torch.float64)
        turns = place[:, None] / 2.0 ** torch.arange(1, WAVES + 1, device=inputs.device)
        angle = 2 * math.pi * turns
        encodings = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return encodings.expand(inputs.shape[0], -1, -1)


def waves(turns: Tensor, frequencies: int) -> Tensor:
    """cos and sin of 2 pi k t for k = 1..``frequencies``, (...,) -> (..., 2 * frequencies)."""
    angle = 2 * math.pi * turns[..., None] * torch.arange(1, frequencies + 1, device=turns.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def batch_inputs(task: Task, batch: Any) -> Tensor:
    """The inputs of a batch as a tensor for models."""
    return torch.from_numpy(task.model_input(batch).copy())
