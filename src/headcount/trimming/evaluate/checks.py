"""Checks that reject models that cannot be measured or compared, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from headcount.core.errors import HeadcountError
from headcount.pretrained.families import family_of
from headcount.pretrained.opening.loading import OpenModel
from headcount.trimming.evaluate.kinds import Windows


def vocabulary_rows(model: PreTrainedModel) -> int:
    """Rows of the embedding, i.e. the number of token ids of a model."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]


def check_models(opened: Sequence[OpenModel]) -> None:
    """Reject models that cannot be measured, or cannot be compared with the first."""
    if not opened:
        raise HeadcountError("there is no model to evaluate", fix="give at least one")
    names = [model.name for model in opened]
    for name in names:
        if names.count(name) > 1:
            raise HeadcountError(f"two models are called {name!r}", fix="give each its own name")
    first = opened[0]
    for model in opened:
        family = family_of(model.model.config)
        if not family.causal or model.model.get_output_embeddings() is None:
            raise HeadcountError(f"{model.name} ({family.name}) predicts no next token", fix="evaluate a decoder")
        if model.model.training:
            raise HeadcountError(f"{model.name} is in training mode", fix="call its eval() first")
        if vocabulary_rows(model.model) != vocabulary_rows(first.model):
            raise HeadcountError(
                f"{model.name} has {vocabulary_rows(model.model)} token ids, {first.name} has "
                f"{vocabulary_rows(first.model)}",
                fix="compare models of one vocabulary",
            )
        if model.tokenizer is not None and first.tokenizer is not None:
            vocabulary, first_vocabulary = model.tokenizer.get_vocab(), first.tokenizer.get_vocab()
            if vocabulary != first_vocabulary:
                token = min(
                    token
                    for token in {*vocabulary, *first_vocabulary}
                    if vocabulary.get(token) != first_vocabulary.get(token)
                )
                raise HeadcountError(
                    f"the tokenizers of {model.name} and {first.name} differ: {token!r} is {vocabulary.get(token)} and "
                    f"{first_vocabulary.get(token)}",
                    fix="compare models of one vocabulary",
                )


def check_ids(opened: Sequence[OpenModel], text: Windows) -> None:
    """Reject windows with unknown token ids, or longer than the context of a model."""
    rows, context = vocabulary_rows(opened[0].model), text.ids.shape[1]
    if int(text.ids.min()) < 0 or int(text.ids.max()) >= rows:
        raise HeadcountError(
            f"{text.kind}: token ids go from {int(text.ids.min())} to {int(text.ids.max())}, the models have {rows}",
            fix="cut the text with their tokenizer",
        )
    for model in opened:
        longest = getattr(model.model.config, "max_position_embeddings", None)
        if longest is not None and context > longest:
            raise HeadcountError(
                f"windows of {context} tokens are beyond the {longest} positions of {model.name}",
                fix="shorten --context",
            )
