"""Refusing models that cannot be measured, or not against each other, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from headcount.core.errors import HeadcountError
from headcount.pretrained.families import family_of
from headcount.pretrained.opening.loading import OpenModel
from headcount.trimming.evaluate.kinds import Windows


def vocabulary_rows(model: PreTrainedModel) -> int:
    """Rows of the embedding: how many token ids a model has."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]


def check_models(opened: Sequence[OpenModel]) -> None:
    """Refuse models that cannot be measured, or not against the first."""
    if not opened:
        raise HeadcountError("there is no model to evaluate", fix="give at least one")
    names = [own.name for own in opened]
    for name in names:
        if names.count(name) > 1:
            raise HeadcountError(f"two models are called {name!r}", fix="give each its own name")
    first = opened[0]
    for own in opened:
        family = family_of(own.model.config)
        if not family.causal or own.model.get_output_embeddings() is None:
            raise HeadcountError(f"{own.name} ({family.name}) predicts no next token", fix="evaluate a decoder")
        if own.model.training:
            raise HeadcountError(f"{own.name} is in training mode", fix="call its eval() first")
        if vocabulary_rows(own.model) != vocabulary_rows(first.model):
            raise HeadcountError(
                f"{own.name} has {vocabulary_rows(own.model)} token ids, {first.name} has "
                f"{vocabulary_rows(first.model)}",
                fix="compare models of one vocabulary",
            )
        if own.tokenizer is not None and first.tokenizer is not None:
            theirs, ours = own.tokenizer.get_vocab(), first.tokenizer.get_vocab()
            if theirs != ours:
                token = min(token for token in {*theirs, *ours} if theirs.get(token) != ours.get(token))
                raise HeadcountError(
                    f"the tokenizers of {own.name} and {first.name} differ: {token!r} is {theirs.get(token)} and "
                    f"{ours.get(token)}",
                    fix="compare models of one vocabulary",
                )


def check_ids(opened: Sequence[OpenModel], text: Windows) -> None:
    """Refuse windows with tokens that the models do not have, or longer than one of them can read."""
    rows, context = vocabulary_rows(opened[0].model), text.ids.shape[1]
    if int(text.ids.min()) < 0 or int(text.ids.max()) >= rows:
        raise HeadcountError(
            f"{text.kind}: token ids go from {int(text.ids.min())} to {int(text.ids.max())}, the models have {rows}",
            fix="cut the text with their tokenizer",
        )
    for own in opened:
        longest = getattr(own.model.config, "max_position_embeddings", None)
        if longest is not None and context > longest:
            raise HeadcountError(
                f"windows of {context} tokens are beyond the {longest} positions of {own.name}", fix="shorten --context"
            )
