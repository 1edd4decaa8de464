"""Real text as tokens: a byte-pair vocabulary learned on the training documents, and windows by seed and step.

The documents are those of ``pretrained.texts``, with a fixed split: language models train on the *calibration*
documents and are examined on the *evaluation* documents. The vocabulary includes all 256 bytes, so any text can be
tokenized and every token has a length in bytes; losses with different vocabularies are compared in bits per byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headcount.core.errors import HeadcountError
from headcount.core.extras import optional_imports
from headcount.core.seeds import derive, numpy_generator
from headcount.pretrained.text.texts import Split, documents

END = "<end>"
"""The token at the end of every document."""


@dataclass(frozen=True)
class Corpus:
    """Token streams by kind, with documents concatenated in a fixed order. lengths: bytes of every token."""

    train: Tensor
    held_out: dict[str, Tensor]
    lengths: Tensor

    def batch(self, seed: int, step: int, rows: int, context: int) -> Tensor:
        """Random windows (rows, context + 1) of the training text, which depend only on seed and step."""
        generator = numpy_generator(seed, "text", step)
        starts = torch.from_numpy(generator.integers(0, len(self.train) - context, rows))
        return self.train[starts[:, None] + torch.arange(context + 1)].long()

    def windows(self, kind: str, count: int, context: int) -> Tensor:
        """Up to ``count`` held-out windows of a kind, (count, context + 1), evenly spaced in its text and identical
        for all seeds and models."""
        stream = self.held_out[kind]
        fitting = (len(stream) - 1) // context
        if fitting == 0:
            raise HeadcountError(f"the held-out {kind} has less than {context} tokens", fix="use a smaller context")
        chosen = torch.linspace(0, fitting - 1, min(count, fitting)).long()
        return stream[chosen[:, None] * context + torch.arange(context + 1)].long()


@lru_cache(maxsize=2)
def corpus(kinds: tuple[str, ...], vocab: int) -> Corpus:
    """The text of the given kinds in a vocabulary of ``vocab`` entries, learned on the training split."""
    tokenizer = learn_vocabulary([text for kind in kinds for text in _texts(kind, "calibration")], vocab)
    train = [_stream(tokenizer, _texts(kind, "calibration")) for kind in kinds]
    held_out = {kind: _stream(tokenizer, _texts(kind, "evaluation")) for kind in kinds}
    names = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    # In the byte-level alphabet every character represents one byte; the end token has no bytes.
    lengths = torch.tensor([0 if token == END else len(token) for _, token in names])
    return Corpus(torch.cat(train), held_out, lengths)


def learn_vocabulary(texts: Sequence[str], size: int) -> Any:
    """A byte-level byte-pair tokenizer with ``size`` entries, including the end token.

    Raises HeadcountError if the text has too few distinct pairs.
    """
    with optional_imports():
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != size:
        raise HeadcountError(
            f"the text gives a vocabulary of {tokenizer.get_vocab_size()} entries, not {size}",
            fix=f"use one of {tokenizer.get_vocab_size()}, or 257 or more with more text",
        )
    return tokenizer


def _texts(kind: str, split: Split) -> list[str]:
    """The documents of a kind and split in a fixed, shuffled order."""
    in_split = documents(kind, split)
    return [document.text for document in sorted(in_split, key=lambda doc: derive(0, "order", kind, doc.name))]


def _stream(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    end = tokenizer.token_to_id(END)
    encoded = tokenizer.encode_batch(list(texts))
    parts = [np.array([*encoding.ids, end], dtype=np.int32) for encoding in encoded]
    return torch.from_numpy(np.concatenate(parts))
