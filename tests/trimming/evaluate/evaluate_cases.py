"""What the tests of ``evaluate`` share: tiny trimmed models and a tiny tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from conftest import tiny_model, tiny_tokens

VOCABULARY = 97


@cache
def dense(family: str) -> Any:
    """The tiny model of a family; tests only read it."""
    model = tiny_model(family)
    if family == "gemma3_text":
        # Its head is its embedding: logits of about 50 would leave nothing for attention to decide.
        model.get_input_embeddings().weight.mul_(0.1)
    return model


@cache
def trimmed(family: str, form: str = "fast", share: float = 0.5) -> Any:
    """The tiny model of a family, trimmed to a share of its cache; tests only read it."""
    from headcount.trimming.audit.run import audit
    from headcount.trimming.plan.make import plan
    from headcount.trimming.trim.build import build

    model = dense(family)
    audited = audit(model, tiny_tokens(16), metric="output", matmul_dtype="model")
    return build(model, plan(audited, cache=share, form=form))


def tiny_tokenizer(words: int = VOCABULARY, swapped: bool = False) -> Any:
    """Words w3 ... in a vocabulary with <unk>, <s>, </s>; ``swapped`` exchanges two of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, words)}
    if swapped:
        vocabulary["w3"], vocabulary["w4"] = 4, 3
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def windows(count: int = 5, context: int = 12, seed: int = 3) -> torch.Tensor:
    """Windows of the tiny vocabulary."""
    return tiny_tokens(count, context, seed)
