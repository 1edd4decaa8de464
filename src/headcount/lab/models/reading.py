"""What a model reads of a task and what it must answer, and the features that it starts from."""

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
"""Sine and cosine pairs that name a position, where a task needs positions and lengths may change."""


@dataclass(frozen=True)
class Reading:
    """The sizes of a task that a model is built for.

    symbols: input symbols (None: tokens are vectors). sparsity, dim: q and d' of tokens (z_i; y_i; i), else 0;
    vectors without sets have a sparsity of 0.
    answers: numbers a token is answered with. circular: symbols are residues, so that Fourier features are
    theirs. ordered: the answer depends on the order of the tokens.

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
        """What a model of ``task`` reads and answers."""
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
        """Whether the features exist at other lengths too: a set of q tokens of N is an N-hot vector."""
        return self.symbols is not None or self.sparsity == 0


class Reader(nn.Module):
    """Raw tokens to features, (batch, N) or (batch, N, d' + q + 1) -> (batch, N, ``features``).

    - residues mod M, frozen: cos and sin of 2 pi k x / M for k = 1..``frequencies``. Any residue is told from
      any other by k = 1 alone; more frequencies make near residues look less alike.
    - residues, learned, and other symbols: a table of ``table`` numbers a symbol.
    - vectors: as they are.
    - (z_i; y_i; i): z_i, the indicator of the set y_i in {0,1}^N, the indicator of i. Linear maps of these
      are what the theory's keys u_i and queries sum_{j in y} u_j are.

    Where the order matters, symbols and vectors get sines and cosines of the position besides (``WAVES`` of each).
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
        """Features of ``inputs``; ``modulus``: the residues are of another task, mod this M (frozen only)."""
        if self.reading.symbols is None and self.reading.sparsity:
            return self._sets(inputs)
        if self.reading.symbols is None:
            found = inputs
        elif self.table is not None:
            found = self.table(inputs)
        else:
            found = waves(inputs / (modulus or self.reading.symbols), self.frequencies)
        if self.reading.ordered:
            found = torch.cat([found, self._positions(inputs).to(found.dtype)], dim=-1)
        return found

    def _sets(self, inputs: Tensor) -> Tensor:
        d, q, n = self.reading.dim, self.reading.sparsity, self.reading.tokens
        features = inputs.new_zeros((*inputs.shape[:2], self.features))
        features[..., :d] = inputs[..., :d]
        places = inputs[..., d:].long()
        places[..., :q] += d
        places[..., q] += d + n
        return features.scatter_(-1, places, 1.0)

    def _positions(self, inputs: Tensor) -> Tensor:
        """Wavelengths from 2 to 2^WAVES positions: the shortest tell neighbours apart, the longest the ends."""
        place = torch.arange(inputs.shape[1], device=inputs.device, dtype=torch.float64)
        turns = place[:, None] / 2.0 ** torch.arange(1, WAVES + 1, device=inputs.device)
        angle = 2 * math.pi * turns
        found = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return found.expand(inputs.shape[0], -1, -1)


def waves(turns: Tensor, frequencies: int) -> Tensor:
    """cos and sin of 2 pi k t for k = 1..``frequencies``, (...,) -> (..., 2 * frequencies)."""
    angle = 2 * math.pi * turns[..., None] * torch.arange(1, frequencies + 1, device=turns.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def batch_inputs(task: Task, batch: Any) -> Tensor:
    """A batch's inputs as models read them."""
    return torch.from_numpy(task.model_input(batch).copy())
