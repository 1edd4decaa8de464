"""What every model is: a reader, a body made from a small config, and one answer for each token."""

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
    """What a model is made from; a subclass is one kind and fills in ``body``.

    A field that declares an ``Option`` is an option of ``headcount learn`` and a field of run specs and sweeps; options
    that several kinds have are declared in this file, the others beside their kind.

    width: the size that the model is scaled by. inner: a second, finer one (None: follows ``width``); see
    each kind for what they are. causal: token i is answered from tokens 0..i. embedding, frequencies, table:
    see ``Reader``.

    Raises HeadcountError for sizes below 1 and names that do not exist.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    always_causal: ClassVar[bool] = False
    """Whether no token sees a later one whatever ``causal`` says."""
    own_positions: ClassVar[bool] = False
    """Whether the body knows where tokens stand, so that they are read without positions."""

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
        """What ``inner`` is at a width unless it is given."""
        return width

    @abstractmethod
    def body(self, features: int, reading: Reading) -> nn.Module:
        """The trainable part, (batch, N, features) -> (batch, N, answers)."""

    def stretches(self, reading: Reading) -> bool:
        """Whether the trained model runs at other lengths than ``reading.tokens``."""
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
        """Answers: binary tasks a logit, classes a score each, vectors the vector itself."""
        answers: Tensor = self.body(self.reader(inputs, modulus))
        return answers


def embedding(features: int, width: int) -> nn.Linear:
    """The linear map that tokens enter by, with entries of variance 1, as the rows of an embedding table have.

    PyTorch's own start, variance 1/(3 features), makes the sums of a few indicators so small that attention
    begins flat: the bare unit then stays at ten times the error on qSA, and third order learns Match3 later.
    """
    found = nn.Linear(features, width)
    nn.init.normal_(found.weight)
    nn.init.zeros_(found.bias)
    return found


def build(config: ModelConfig, reading: Reading, seed: int = 0) -> TokenModel:
    """The model, its weights drawn from ``seed``; the global generator is left as it was.

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
    """How many numbers training changes."""
    return sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)


def count(config: ModelConfig, reading: Reading) -> int:
    """The exact number of parameters, counted on a model that takes no memory."""
    with torch.device("meta"):
        return parameters(TokenModel(config, reading))
