"""Every model: its count against a formula, what it can see, its weights by seed, its size by target."""

from __future__ import annotations

import math

import pytest
import torch

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.lab import models
from headcount.lab.models import Reading
from headcount.lab.train.data import draw

QSA = tasks.get("qsa", tokens=10, sparsity=3, dim=4)
MATCH3 = tasks.get("match3", tokens=9)
RECALL = tasks.get("recall", tokens=12, symbols=8)
TASKS = {"qsa": QSA, "match3": MATCH3, "recall": RECALL}
FEATURES = {"qsa": 4 + 2 * 10, "match3": 6, "recall": 16 + 16}
TABLES = {"qsa": 0, "match3": 0, "recall": 8 * 16}
ANSWERS = {"qsa": 4, "match3": 1, "recall": 8}


def formula(name: str, features: int, tokens: int, answers: int, w: int, k: int) -> int:
    """Parameters of each kind at width w and inner k, counted by hand."""
    streams = {"attention": 3, "third-order": 5, "strassen": 6}
    if name in streams:
        return (features + 1) * w + w + streams[name] * w * w + w * w + (w * k + k + k * w + w) + (w + 1) * answers
    gates = {"lstm": 4, "gru": 3, "rnn": 1}
    if name in gates:
        return (features + 1) * k + 2 * gates[name] * w * (k + w + 2) + (2 * w + 1) * answers
    if name == "ssm":
        mixed, heads = 2 * w + 2 * k, 2
        layer = w + w * (2 * w + mixed + heads) + 5 * mixed + 3 * heads + 2 * w + 2 * w * w
        return (features + 1) * w + 2 * layer + (2 * w + 1) * answers
    if name == "positional":  # reads symbols without positions; one slope
        features -= 16 if answers == 8 else 0
        return 1 + 2 * features * w + (features + 1) * k + (k + 1) * answers
    if name == "mlp":
        return features * 8 + (tokens * 8 + 1) * w + (w + 1) * k + (k + 1) * tokens * answers
    return (features + 1) * w + (w + 1) * k + (k + 1) * answers


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", models.names())
def test_counts_are_exact(name: str, task: str) -> None:
    reading = Reading.of(TASKS[task])
    config = models.config(name, width=6, inner=5)
    expected = formula(name, FEATURES[task], reading.tokens, ANSWERS[task], 6, 5) + TABLES[task]
    assert models.count(config, reading) == expected
    model = models.build(config, reading)
    assert models.parameters(model) == sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("target", [3_000, 12_000])
def test_sizes_match(name: str, task: str, target: int) -> None:
    reading = Reading.of(TASKS[task])
    config = models.sized(models.config(name), reading, target)
    off = abs(models.count(config, reading) - target)
    assert off <= (0.05 if target == 3_000 else 0.02) * target


@pytest.mark.parametrize("options", [{"heads": 4}, {"depth": 3}, {"residual": False, "mlp": False, "blank": False}])
@pytest.mark.parametrize("name", ["attention", "third-order", "strassen"])
def test_sizes_match_with_options(name: str, options: dict[str, int]) -> None:
    reading = Reading.of(MATCH3)
    config = models.sized(models.config(name, width=4, **options), reading, 12_000)
    assert abs(models.count(config, reading) - 12_000) <= 240
    assert config.width % options.get("heads", 1) == 0


def test_targets_that_no_width_meets_are_refused() -> None:
    with pytest.raises(HeadcountError, match=r"no width gives lstm 20 parameters .* --params \d+"):
        models.sized(models.config("lstm"), Reading.of(QSA), 20)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", models.names())
def test_models_are_causal_or_not_as_their_config_says(name: str, causal: bool) -> None:
    """Perturb the last tokens: earlier answers change exactly where the future may be seen."""
    if name == "mlp" and causal:
        with pytest.raises(HeadcountError, match="not causal"):
            models.config(name, causal=True)
        return
    for task, seed in ((QSA, 3), (RECALL, 3)):
        config = models.config(name, width=8, causal=causal)
        model = models.build(config, Reading.of(task), seed)
        inputs = draw(task, 0, 4, "uniform").inputs
        other = inputs.clone()
        cut = task.tokens // 2
        other[:, cut:] = draw(task, 1, 4, "uniform").inputs[:, cut:]
        with torch.no_grad():
            moved = (model(inputs) - model(other)).abs().amax((0, 2))
        sees_none = causal or models.config_class(name).always_causal
        # A causal model computes the same sums for the same tokens; only their grouping in a product may differ.
        assert (moved[:cut].max() < 1e-5) == sees_none
        assert moved[cut:].min() > 1e-4


@pytest.mark.parametrize("name", models.names())
def test_weights_come_from_the_seed_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    reading = Reading.of(MATCH3)
    config = models.config(name, width=8)
    first = models.build(config, reading, 1).state_dict()
    torch.rand(3)
    again, other = (models.build(config, reading, seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    torch.random.set_rng_state(state)
    models.build(config, reading, 5)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_frozen_features_of_residues() -> None:
    """cos and sin of 2 pi k x / M, by the formula."""
    reader = models.build(models.config("mlp-tokenwise", frequencies=2), Reading.of(MATCH3)).reader
    x = torch.tensor([[0, 5, 17]])
    m = MATCH3.vocabulary
    expected = [
        [f(2 * math.pi * k * v / m) for f in (math.cos, math.sin) for k in (1, 2)] for v in (0, 5, 17)
    ]  # fmt: skip
    assert torch.allclose(reader(x)[0], torch.tensor(expected), atol=1e-6)
    turned = reader(x, modulus=2 * m)[0, 1]
    assert turned[0] == pytest.approx(math.cos(2 * math.pi * 5 / (2 * m)), abs=1e-6)


def test_features_of_sets() -> None:
    """z, the indicator of y, the indicator of the position."""
    reader = models.build(models.config("mlp-tokenwise"), Reading.of(QSA)).reader
    portion = draw(QSA, 0, 2, "uniform")
    features = reader(portion.inputs)
    assert torch.equal(features[..., :4], portion.inputs[..., :4])
    sets, places = features[..., 4:14], features[..., 14:]
    assert torch.equal(places[0], torch.eye(10)) and torch.equal(sets.sum(-1), torch.full((2, 10), 3.0))
    # The target is the mean over the set: so it follows from the features alone.
    assert torch.allclose(sets @ features[..., :4] / 3, portion.targets, atol=1e-6)


def test_learned_tables_are_parameters() -> None:
    reading = Reading.of(MATCH3)
    frozen, learned = (
        models.count(models.config("attention", embedding=kind, width=8), reading) for kind in ("frozen", "learned")
    )
    assert learned - frozen == MATCH3.vocabulary * 16 + (16 - 6) * 8


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("atention", {}, "did you mean attention"),
        ("lstm", {"heads": 2}, "no option 'heads'"),
        ("lstm", {"width": 0}, "width of lstm must be at least 1"),
        ("attention", {"width": 6, "heads": 4}, "does not divide"),
        ("attention", {"gain": 0.0}, "gain must be positive"),
        ("gru", {"embedding": "random"}, "no embedding 'random'"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        models.config(name, **options)
