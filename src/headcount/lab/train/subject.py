"""The subjects of the training loop: a model with its batches, loss and examination, for tasks and for text."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from headcount.lab.models import TokenModel, build
from headcount.lab.specs.run import RunSpec
from headcount.lab.specs.text import AnySpec, TextSpec
from headcount.lab.train import exam, start
from headcount.lab.train.corpus import Corpus, corpus
from headcount.lab.train.data import Portion, Source
from headcount.pretrained.running.capture import our_attention
from headcount.pretrained.runtimes.modeling_unequal import scale_added
from headcount.shapes.decoder import build_decoder

Scores = dict[str, dict[str, float | str]]
ROWS = 16
"""Held-out windows per forward pass."""


class Subject(Protocol):
    """The interface of a run's model to the training loop. Batches depend only on seed and step."""

    model: Any

    def begin(self) -> None:
        """Set the initial weights of a fresh run, if they differ from the drawn ones."""

    def batch(self, step: int) -> Any:
        """The batch of a step, counted from 0."""

    def loss(self, batch: Any) -> Tensor:
        """The training loss of a batch."""

    def hold_out(self) -> None:
        """Draw the held-out data for ``score``."""

    def score(self) -> float:
        """The score of the current model."""

    def examine(self) -> Scores:
        """The scores of the finished model, by kind."""


def subject(spec: AnySpec) -> Subject:
    """The subject of a run, with weights drawn from the run's seed."""
    return TextSubject(spec) if isinstance(spec, TextSpec) else TaskSubject(spec)


class TaskSubject:
    """A model that answers at every token of the sequences of a task."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.model: TokenModel = build(spec.config, spec.reading, spec.seed)
        start.freeze(self.model, spec)
        self.source = Source(spec)
        self.last = spec.answered == "last"
        self.held: Portion | None = None

    def begin(self) -> None:
        """See ``start.begin``."""
        start.begin(self.model, self.spec)

    def batch(self, step: int) -> Portion:
        """See ``Source``."""
        return self.source.batch(step)

    def loss(self, batch: Portion) -> Tensor:
        """See ``exam.loss``."""
        return exam.loss(self.model(batch.inputs, batch.modulus), batch, self.last)

    def hold_out(self) -> None:
        """Draw fresh sequences of the main kind."""
        self.held = exam.held_out(self.spec, self.spec.main_kind, self.spec.evaluations)

    def score(self) -> float:
        """See ``exam.score``."""
        assert self.held is not None
        return exam.evaluate(self.model, self.held, self.last)

    def examine(self) -> Scores:
        """See ``exam.examine``."""
        return exam.examine(self.model, self.spec)


class LanguageModel(nn.Module):
    """A planned decoder with tied embeddings: ids (batch, T) -> logits (batch, T, vocab).

    Only the stack is stored, so that no tensor has two names in the checkpoint.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        decoder: Any = build_decoder(spec.design, spec.seed)
        self.stack = decoder.model

    def forward(self, ids: Tensor) -> Tensor:
        """The logits of every next token."""
        hidden = self.stack(input_ids=ids, use_cache=False).last_hidden_state
        return functional.linear(hidden, self.stack.embed_tokens.weight)


class TextSubject:
    """A language model on ``corpus``."""

    def __init__(self, spec: TextSpec) -> None:
        self.spec = spec
        self.model = LanguageModel(spec)
        self.text: Corpus = corpus(spec.kinds, spec.vocab)
        self.held: list[Tensor] = []

    def begin(self) -> None:
        """Keep the drawn weights; a plain start undoes the downscaling of some of them."""
        if self.spec.start == "plain":
            scale_added(self.model.stack.layers, (2 * self.spec.layers) ** 0.5)

    def batch(self, step: int) -> Tensor:
        """The same windows for every model of a seed."""
        return self.text.batch(self.spec.seed, step, self.spec.batch, self.spec.context)

    def loss(self, batch: Tensor) -> Tensor:
        """Mean cross entropy of the next token, nats."""
        with contextlib.ExitStack() as stack:
            if self.spec.autocast:
                stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
                stack.enter_context(our_attention(self.model.stack))
            logits = self.model(batch[:, :-1])
        return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    def hold_out(self) -> None:
        """Choose the same number of windows of every kind."""
        each = max(1, self.spec.evaluations // len(self.spec.kinds))
        self.held = [self.text.windows(kind, each, self.spec.context) for kind in self.spec.kinds]

    def score(self) -> float:
        """Nats per token over all held-out windows."""
        return self._measured(torch.cat(self.held))["loss"]

    def examine(self) -> Scores:
        """``loss`` (nats per token) and ``bits_per_byte`` of every kind, and their unweighted means over kinds."""
        scores: Scores = {}
        for kind in self.spec.kinds:
            windows = self.text.windows(kind, self.spec.examined, self.spec.context)
            scores[kind] = {**self._measured(windows), "tokens": windows[:, 1:].numel()}
        mean = {
            name: sum(float(entry[name]) for entry in scores.values()) / len(scores)
            for name in ("loss", "bits_per_byte")
        }
        return {self.spec.main_kind: {**mean}, **scores}

    @torch.no_grad()
    def _measured(self, windows: Tensor) -> dict[str, float]:
        self.model.eval()
        total = 0.0
        for part in windows.split(ROWS):
            logits = self.model(part[:, :-1])
            total += float(functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
        self.model.train()
        tokens, read = windows[:, 1:].numel(), int(self.text.lengths[windows[:, 1:]].sum())
        return {"loss": total / tokens, "bits_per_byte": total / math.log(2) / read}
