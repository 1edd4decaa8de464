"""The common structure of all models: a reader, a body built from a small config, and one answer per token."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headcount.core.errors import HeadcountError
from headcount.core.options import Option
from headcount.core.payload import JsonObject
from headcount.core.seeds import derive
from headcount.lab.models.reading import EMBEDDINGS, Embedding, Reader, Reading

WIDTH = Option("width", "A width instead of --params.")
INNER = Option("inner", "The second size, see the model's config.")
DEPTH = Option("depth", "Layers.")
HEADS = Option("heads", "Attention heads.")
MLP = Option("mlp", "An MLP after attention.", kind=bool)
CAUSAL = Option("causal", "Read from one side only.", kind=bool, off="not-causal", rank=1)
EMBEDDING = Option("embedding", "Residues by Fourier features, or by a learned table.", kind=Embedding, rank=1)
FREQUENCIES = Option("frequencies", "Fourier features of a residue.", rank=1)


@dataclass(frozen=True)
class ModelConfig(ABC):
    """The configuration of a model; each subclass is one kind of model and implements ``body``.

    A field that declares an ``Option`` is an option of ``headcount learn`` and a field of run specs and sweeps. Options
    shared by several kinds are declared in this file, all others next to their kind.

    width: the main size, by which the model is scaled. inner: a second, finer size (None: derived from ``width``);
    their meaning depends on the kind. causal: the answer at token i depends only on tokens 0..i. embedding,
    frequencies, table: see ``Reader``.

    Raises HeadcountError for sizes below 1 and unknown names.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    always_causal: ClassVar[bool] = False
    """Whether no token sees a later one, regardless of ``causal``."""
    own_positions: ClassVar[bool] = False
    """Whether the body encodes positions itself, so that the reader adds none."""

    width: int = WIDTH.field(32)
    inner: int | None = INNER.field(None)
    causal: bool = CAUSAL.field(False)
    embedding: Embedding = EMBEDDING.field("frozen")  # noqa: RUF009
    frequencies: int = FREQUENCIES.field(3)
    table: int = 16

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise HeadcountError(
                    f"{field.name} of {self.name} must be at least 1, not {value}", fix="choose a positive size"
                )
        if self.embedding not in EMBEDDINGS:
            raise HeadcountError(f"there is no embedding {self.embedding!r}", fix=f"choose {' or '.join(EMBEDDINGS)}")

    @property
    def step(self) -> int:
        """``width`` must be a multiple of this."""
        return 1

    @property
    def finer(self) -> int:
        """``inner`` as a number."""
        return self.default_inner(self.width) if self.inner is None else self.inner

    def default_inner(self, width: int) -> int:
        """The default of ``inner`` at a width."""
        return width

    @abstractmethod
    def body(self, features: int, reading: Reading) -> nn.Module:
        """The trainable part, (batch, N, features) -> (batch, N, answers)."""

    def stretches(self, reading: Reading) -> bool:
        """Whether the trained model accepts lengths other than ``reading.tokens``."""
        return reading.stretches

    def settings(self) -> JsonObject:
        """The fields as JSON values."""
        return dataclasses.asdict(self)


class TokenModel(nn.Module):
    """A model that answers at every token: (batch, N[, ...]) raw tokens -> (batch, N, answers)."""

    def __init__(self, config: ModelConfig, reading: Reading) -> None:
        super().__init__()
        self.config, self.reading = config, reading
        read = dataclasses.replace(reading, ordered=reading.ordered and not config.own_positions)
        self.reader = Reader(read, config.embedding, config.frequencies, config.table)
        self.body = config.body(self.reader.features, reading)

    def forward(self, inputs: Tensor, modulus: int | None = None) -> Tensor:
        """The answers: a logit for binary tasks, a score per class for class tasks, the vector for vector tasks."""
        answers: Tensor = self.body(self.reader(inputs, modulus))
        return answers


def embedding(features: int, width: int) -> nn.Linear:
    """The linear embedding of tokens, with entries of variance 1, like the rows of an embedding table.

    PyTorch's default initialization, variance 1/(3 features), makes sums of a few indicators so small that attention
    is nearly uniform at first: the bare unit then stays at ten times the error on qSA, and third-order attention
    learns Match3 later.
    """
    layer = nn.Linear(features, width)
    nn.init.normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def build(config: ModelConfig, reading: Reading, seed: int = 0) -> TokenModel:
    """Create the model with weights drawn from ``seed``; the global generator is left unchanged.

    >>> from headcount import tasks
    >>> from headcount.lab import models
    >>> reading = Reading.of(tasks.get("match3", tokens=8))
    >>> parameters(build(models.config("mlp-tokenwise", width=10), reading))
    191
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "weights", config.name))
        return TokenModel(config, reading)


def parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)


def count(config: ModelConfig, reading: Reading) -> int:
    """The exact number of parameters, counted on a model on the meta device, which uses no memory."""
    with torch.device("meta"):
        return parameters(TokenModel(config, reading))
