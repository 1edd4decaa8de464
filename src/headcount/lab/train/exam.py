"""Scores of a model on held-out sequences: uniform, balanced, adversarial, and longer ones."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional

from headcount.core.errors import HeadcountError
from headcount.core.seeds import derive
from headcount.lab.models import TokenModel
from headcount.lab.specs.run import RunSpec
from headcount.lab.train.data import Portion, draw
from headcount.tasks import NO_ANSWER

ROWS = 256
"""Sequences per forward pass."""


def loss(answers: Tensor, portion: Portion, last: bool = False) -> Tensor:
    """The training loss: the mean, over the tokens that are asked, of

    binary: the cross entropy of the logit; class: the cross entropy; vector: the squared Euclidean distance.
    """
    targets = portion.targets
    if last:
        answers, targets = answers[:, -1:], targets[:, -1:]
    if portion.task.answer == "binary":
        return functional.binary_cross_entropy_with_logits(answers[..., 0], targets)
    if portion.task.answer == "class":
        return functional.cross_entropy(answers.flatten(0, 1), targets.flatten(), ignore_index=NO_ANSWER)
    return (answers - targets).square().sum(-1).mean()


def score(answers: Tensor, portion: Portion, last: bool = False) -> float:
    """The score of answers, averaged over all tokens that are asked.

    vector: the root of the mean squared Euclidean distance. binary and class: balanced accuracy, the mean over
    all occurring classes of the share of correct answers, so that a constant answer scores 1/classes.
    """
    targets = portion.targets
    if last:
        answers, targets = answers[:, -1:], targets[:, -1:]
    if portion.task.answer == "vector":
        return math.sqrt((answers - targets).double().square().sum(-1).mean().item())
    if portion.task.answer == "binary":
        predicted, labels = (answers[..., 0] > 0).long().flatten(), targets.long().flatten()
    else:
        predicted, labels = answers.argmax(-1).flatten(), targets.flatten()
        predicted, labels = predicted[labels != NO_ANSWER], labels[labels != NO_ANSWER]
    if not len(labels):
        return math.nan
    right = (predicted == labels).double()
    counts = torch.bincount(labels)
    shares = torch.bincount(labels, weights=right)[counts > 0] / counts[counts > 0]
    return shares.mean().item()


def majority(portion: Portion) -> float:
    """The plain accuracy of always giving the most frequent answer; nan for vectors."""
    if portion.task.answer == "vector":
        return math.nan
    labels = portion.targets.long().flatten()
    labels = labels[labels != NO_ANSWER]
    return torch.bincount(labels).max().item() / len(labels) if len(labels) else math.nan


@torch.no_grad()
def evaluate(model: TokenModel, portion: Portion, last: bool = False) -> float:
    """The score of a model on the given sequences."""
    model.eval()
    answers = [model(portion.inputs[start : start + ROWS], portion.modulus) for start in range(0, len(portion), ROWS)]
    model.train()
    return score(torch.cat(answers), portion, last)


def held_out(spec: RunSpec, kind: str, count: int) -> Portion:
    """Held-out sequences of one kind, drawn from a seed stream that training does not use."""
    return draw(spec.problem, derive(spec.seed, "exam", kind), count, kind)


def examine(model: TokenModel, spec: RunSpec) -> dict[str, dict[str, float | str]]:
    """The scores on every kind: ``uniform``, ``balanced``, ``adversarial``, ``longer`` (twice the tokens).

    ``longer`` uses the same M and balanced sequences, since longer uniform sequences with the same M are mostly
    positive. For a kind that the task or the model does not support, ``reason`` states why.
    """
    scores: dict[str, dict[str, float | str]] = {}
    last = spec.answered == "last"
    for kind in dict.fromkeys((spec.main_kind, "uniform", "balanced", "adversarial", "longer")):
        try:
            portion = _longer(spec) if kind == "longer" else held_out(spec, kind, spec.evaluations)
        except HeadcountError as error:
            scores[kind] = {"reason": error.message}
            continue
        value = evaluate(model, portion, last)
        entry: dict[str, float | str] = {spec.score_name: value}
        if spec.higher_is_better:
            entry["majority_accuracy"] = majority(portion)
        scores[kind] = entry
    return scores


def _longer(spec: RunSpec) -> Portion:
    if not spec.config.stretches(spec.reading):
        raise HeadcountError(f"{spec.model.name} on {spec.task.name} is built for {spec.problem.tokens} tokens")
    task = dataclasses.replace(spec.problem, tokens=2 * spec.problem.tokens)
    kind = "balanced" if spec.reading.circular else "uniform"
    return draw(task, derive(spec.seed, "exam", "longer"), max(1, spec.evaluations // 2), kind)
