"""Layers that a model does not use: every metric names them, and plan, trim and repair end well on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODERS, tiny_model, tiny_tokens

import headcount
from headcount.pretrained.families import attention_of, family_of, layers_of, projections_of
from headcount.trimming.audit.record import Audit, notes, summary_json
from headcount.trimming.audit.spectra import directions
from headcount.trimming.plan.make import summary_json as plan_json
from headcount.trimming.trim.repair import NormalEquations

METRICS = ("fisher", "output", "whitened")
DEAD = 0
"""The dead layer: the first, so that dense and trimmed models enter it with the same stream."""
KINDS = {
    "zero values": {"v": 0.0, "v_bias": 0.0},
    "constant values": {"v": 0.0},
    "zero keys": {"k": 0.0, "k_bias": 0.0},
    "constant keys": {"k": 0.0},
    "zero queries": {"q": 0.0, "q_bias": 0.0},
    "zero output": {"o": 0.0},
    "constant weights": {"q": 0.02, "k": 0.02, "v": 0.02, "o": 0.02},
    "zero": dict.fromkeys(("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias"), 0.0),
}
WHOLE = ("keys", "values")
QUICK = ("llama", "gpt2")


def killed(family: str, kind: str, layer: int = DEAD) -> Any:
    """A tiny model one of whose layers is dead."""
    model = tiny_model(family)
    fill(model, layer, KINDS[kind])
    return model


def fill(model: Any, layer: int, values: dict[str, float | torch.Tensor]) -> None:
    """Set projections of a layer (``None`` where the family has none); views of fused matrices are written through."""
    family = family_of(model.config)
    weights = projections_of(layers_of(model, family)[layer], family, model.config)
    for name, value in values.items():
        if family.model_type == "gpt_neox" and name in ("q", "k", "v", "q_bias", "k_bias", "v_bias"):
            _fill_neox(layers_of(model, family)[layer].attention.query_key_value, model.config, name, value)
        elif getattr(weights, name) is not None:
            getattr(weights, name).copy_(torch.as_tensor(value).expand_as(getattr(weights, name)))


def _fill_neox(fused: Any, config: Any, name: str, value: float | torch.Tensor) -> None:
    """GPT-NeoX's projections are copies of its fused matrix's rows, not views."""
    part = fused.bias if name.endswith("bias") else fused.weight
    place = part.view(config.num_attention_heads, 3, -1, *part.shape[1:])[:, "qkv".index(name[0])]
    value = torch.as_tensor(value)
    place.copy_(value.view_as(place) if value.ndim else value.expand_as(place))


def expected(family: str, kind: str) -> tuple[str, ...]:
    """What is unused, by the formulas of attention."""
    rotary = family_of(tiny_model(family).config).rotary
    if kind in ("zero values", "constant values", "zero output", "zero"):
        return WHOLE
    if kind in ("zero keys", "zero queries"):
        return ("keys",)
    if kind == "constant keys":
        has_bias = family in ("llama", "qwen2", "gpt_neox")
        return () if rotary and has_bias else ("keys",)
    # What a LayerNorm gives sums to the sum of its bias, whatever the token; an RMSNorm's does not.
    return WHOLE if family in ("gpt2", "gpt_neox") else ()


def audited(model: Any, metric: str) -> Audit:
    return headcount.audit(model, tiny_tokens(), metric=metric, matmul_dtype="model")  # type: ignore[arg-type]


def first_output(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What the dead layer's attention adds."""
    seen: list[torch.Tensor] = []
    attention = attention_of(layers_of(model, family_of(model.config))[DEAD], family_of(model.config))
    handle = attention.register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    try:
        model(ids)
    finally:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DECODERS]
)
def test_every_metric_and_the_repair_end_well(family: str, kind: str) -> None:
    model = killed(family, kind)
    ids = tiny_tokens(2, 20, seed=1)
    before, unused = first_output(model, ids), expected(family, kind)
    choices = (("fast", "greedy"), ("small", "per-head"), ("small", "uniform"))
    for metric, (form, allocator) in zip(METRICS, choices, strict=True):
        audit = audited(model, metric)
        assert [layer.unused for layer in audit.record.layers] == [unused, (), ()], metric
        sides = [side for layer in audit.record.layers for side in layer.sides.values()]
        assert all(math.isfinite(energy) for side in sides for part in (side.joint, *side.per_head) for energy in part)
        plan = headcount.plan(audit, cache=0.5, form=form, allocator=allocator)  # type: ignore[arg-type]
        trimmed: Any = headcount.trim(model, plan, matmul_dtype="model")
        assert bool(trimmed(ids).logits.isfinite().all())
        if unused == WHOLE:
            # The same constant: float32 sums of up to 64 numbers below 10, and repaired weights rounded once.
            torch.testing.assert_close(first_output(trimmed, ids), before, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_called_unused_has_no_effect(family: str, kind: str) -> None:
    """Other queries and keys leave the logits as they are exactly where keys are called unused; whole: one output."""
    model = killed(family, kind)
    ids = tiny_tokens(2, 20, seed=1)
    before, output = model(ids).logits, first_output(model, ids)
    generator = torch.Generator().manual_seed(0)
    family_row = family_of(model.config)
    weights = projections_of(layers_of(model, family_row)[DEAD], family_row, model.config)
    unused = expected(family, kind)
    spread = float((output - output[:, :1]).abs().max())
    assert (spread < 1e-5) == (unused == WHOLE)  # rounding of float32 sums of numbers below 10
    # Keys: with zero queries any keys do, with constant keys any queries; with no values both.
    side = {"zero queries": "k", "zero keys": "q", "constant keys": "q"}.get(kind, "k")
    fill(model, DEAD, {side: torch.randn(getattr(weights, side).shape, generator=generator)})
    changed = float((model(ids).logits - before).abs().max())
    assert (changed < 1e-3) == bool(unused), changed  # rounding of logits of about 10, against random keys


def test_the_dead_layer_is_named_and_gets_the_least(tmp_path: Path) -> None:
    model = killed("llama", "zero values", layer=1)
    fill(model, 2, KINDS["zero keys"])
    audit = audited(model, "fisher")
    line = "Unused attention: layer 1 (its output is the same for every token); keys of layer 2 (they have no effect)."
    assert notes(audit.record) == summary_json(audit)["notes"] == [line]
    assert [layer["unused"] for layer in summary_json(audit)["layers"]] == [(), WHOLE, ("keys",)]
    plan = headcount.plan(audit, cache=0.5)
    assert plan_json(plan)["notes"] == [line]
    assert (plan.record.layers[1].k_rank, plan.record.layers[1].v_rank, plan.record.layers[2].k_rank) == (4, 4, 4)
    assert plan.record.predicted_loss_increase is not None and plan.record.predicted_loss_increase >= 0


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_is_unused_in_a_live_model_and_all_of_it_in_a_dead_one(metric: str) -> None:
    live, dead = tiny_model("llama"), tiny_model("llama")
    for layer in range(3):
        fill(dead, layer, KINDS["zero"])
    assert [layer.unused for layer in audited(live, metric).record.layers] == [()] * 3
    audit = audited(dead, metric)
    assert [layer.unused for layer in audit.record.layers] == [WHOLE] * 3
    plan = headcount.plan(audit, cache=0.25)
    assert plan.record.predicted_loss_increase in (0.0, None)
    trimmed: Any = headcount.trim(dead, plan, matmul_dtype="model")
    ids = tiny_tokens(2, 20)
    # Nothing that is left depends on what was trimmed: float32 rounding of logits of about 10.
    torch.testing.assert_close(trimmed(ids).logits, dead(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("metric", ["output", "whitened"])
def test_an_encoders_dead_layer_is_audited(metric: str) -> None:
    audit = audited(killed("bert", "zero values"), metric)
    assert [layer.unused for layer in audit.record.layers] == [WHOLE, (), ()]


def test_embeddings_of_zero_are_audited() -> None:
    """A stream without energy, which the output metric divides by."""
    model = tiny_model("llama")
    model.get_input_embeddings().weight.zero_()
    for metric in METRICS:
        plan = headcount.plan(audited(model, metric), cache=0.5)
        trimmed: Any = headcount.trim(model, plan, matmul_dtype="model")
        assert bool(trimmed(tiny_tokens(1, 8)).logits.isfinite().all())


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_singular_normal_equations_give_the_nearest_minimiser(rank: int, ridge: float) -> None:
    """Against numpy's least squares of the stacked problem, in the change of the weights, so of least norm."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(200, rank)) @ generator.normal(size=(rank, 6))
    y = generator.normal(size=(200, 4)) + 1.0
    weight, bias = generator.normal(size=(4, 6)), generator.normal(size=4)
    equations = NormalEquations(6, 4)
    equations.add(torch.from_numpy(z), torch.from_numpy(y))
    solved, intercept = equations.solve(torch.from_numpy(weight), torch.from_numpy(bias), ridge)
    design = np.hstack([z, np.ones((200, 1))])
    pull = math.sqrt(ridge * float(np.square(z).sum(0).mean()))
    rows = np.vstack([design, np.hstack([pull * np.eye(6), np.zeros((6, 1))])])
    target = np.vstack([y - design @ np.vstack([weight.T, bias]), np.zeros((6, 4))])
    change = np.linalg.lstsq(rows, target, rcond=1e-10)[0]
    # Condition numbers are below 1e4: float64 rounding times their square.
    np.testing.assert_allclose(solved.numpy(), weight + change[:-1].T, atol=1e-7)
    np.testing.assert_allclose(intercept.numpy(), bias + change[-1], atol=1e-7)


def test_a_constant_side_is_its_mean_at_every_rank() -> None:
    mean = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    constant = directions(mean, torch.outer(mean, mean) * (1 + 1e-15), None)
    assert constant.energies.tolist() == [0.0, 0.0, 0.0]
    for rank in (1, 2):
        down, up = constant.projection(rank)
        assert down.shape == (rank, 3) and not bool(down.any())
        # Orthonormal to float64 rounding.
        torch.testing.assert_close(up.T @ up, torch.eye(rank, dtype=torch.float64), atol=1e-12, rtol=0)
