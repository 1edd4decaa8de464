"""Trimmed models: exact at full rank, of the planned size, and right in every way of running them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import DECODERS, tiny_model, tiny_tokens
from transformers import DynamicCache

import headcount
from headcount.core.errors import HeadcountError
from headcount.core.forms import trimmed_names
from headcount.pretrained.families import read_spec
from headcount.pretrained.runtimes.headcount_cache import GrowingLayer
from headcount.trimming.audit.record import Audit

FORMS = trimmed_names()


@pytest.fixture(scope="module", params=DECODERS)
def audited(request: pytest.FixtureRequest) -> tuple[Any, Audit]:
    model = tiny_model(request.param)
    return model, headcount.audit(model, tiny_tokens(40), metric="output", matmul_dtype="model")


def trimmed(audited: tuple[Any, Audit], form: str, cache: float, allocator: str = "greedy") -> tuple[Any, Any]:
    model, audit = audited
    plan = headcount.plan(audit, cache=cache, form=form, allocator=allocator)
    return headcount.trim(model, plan, repair_output=False), plan


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("allocator", ["greedy", "per-head"])
def test_full_rank_is_the_dense_model(audited: tuple[Any, Audit], form: str, allocator: str) -> None:
    trimmed_model, _ = trimmed(audited, form, 1.0, allocator)
    ids = tiny_tokens(3, 30, seed=9)
    # The same function in float32 through differently ordered products; the issue allows 1e-4.
    torch.testing.assert_close(trimmed_model(ids).logits, audited[0](ids).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cache", [0.3, 0.5, 1.0])
def test_parameters_and_live_cache_are_the_specs(audited: tuple[Any, Audit], form: str, cache: float) -> None:
    trimmed_model, plan = trimmed(audited, form, cache)
    assert read_spec(trimmed_model) == plan.spec
    names = (".self_attn.", ".attn.", ".attention.")
    real = sum(p.numel() for name, p in trimmed_model.named_parameters() if any(part in name for part in names))
    assert real == plan.spec.attention_params
    live = trimmed_model(tiny_tokens(2, 7), use_cache=True).past_key_values
    for layer, spec in zip(live.layers, plan.record.layers, strict=True):
        assert layer.keys.shape == (2, 1, 7, spec.k_rank)
        assert layer.values.shape == (2, 1, 7, spec.v_rank)


@pytest.mark.parametrize("form", FORMS)
def test_decoding_step_by_step_and_in_chunks_is_the_whole_forward(audited: tuple[Any, Audit], form: str) -> None:
    trimmed_model, _ = trimmed(audited, form, 0.5)
    ids = tiny_tokens(2, 29, seed=4)
    whole = trimmed_model(ids).logits
    for cuts in ([1] * 29, [11, 1, 1, 9, 7], [20, 9]):
        cache, parts, start = DynamicCache(config=trimmed_model.config), [], 0
        for size in cuts:
            part = trimmed_model(ids[:, start : start + size], past_key_values=cache, use_cache=True).logits
            parts.append(part)
            start += size
        # Float32 sums over other tilings.
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=5e-5)


@pytest.mark.parametrize("form", FORMS)
def test_left_padding_changes_nothing(audited: tuple[Any, Audit], form: str) -> None:
    trimmed_model, _ = trimmed(audited, form, 0.5)
    ids = tiny_tokens(1, 12, seed=5)
    padded = torch.cat((torch.zeros(1, 6, dtype=torch.long), ids), 1)
    other = tiny_tokens(1, 18, seed=6)
    mask = torch.ones(2, 18, dtype=torch.long)
    mask[0, :6] = 0
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    alone = trimmed_model.generate(ids, **options)[0, 12:]
    batch = trimmed_model.generate(torch.cat((padded, other)), attention_mask=mask, **options)
    assert torch.equal(batch[0, 18:], alone)
    assert torch.equal(batch[1, 18:], trimmed_model.generate(other, **options)[0, 18:])


@pytest.mark.parametrize("form", FORMS)
def test_generation_is_greedy_choice_of_the_forward_without_a_cache(audited: tuple[Any, Audit], form: str) -> None:
    trimmed_model, _ = trimmed(audited, form, 0.5)
    ids = tiny_tokens(2, 9, seed=7)
    made = trimmed_model.generate(ids, max_new_tokens=14, min_new_tokens=14, do_sample=False)
    logits = trimmed_model(made).logits[:, 8:-1]
    logits[..., 2] = -torch.inf  # min_new_tokens keeps the end token out
    assert torch.equal(made[:, 9:], logits.argmax(-1))
    uncached = trimmed_model.generate(ids, max_new_tokens=14, min_new_tokens=14, do_sample=False, use_cache=False)
    assert torch.equal(made, uncached)


@pytest.mark.parametrize("form", FORMS)
def test_sampling_is_seeded_and_beams_reorder_the_cache(audited: tuple[Any, Audit], form: str) -> None:
    trimmed_model, _ = trimmed(audited, form, 0.5)
    ids = tiny_tokens(2, 6, seed=8)
    runs = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            runs.append(trimmed_model.generate(ids, max_new_tokens=8, do_sample=True))
    assert torch.equal(runs[0], runs[1])
    options = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    assert torch.equal(trimmed_model.generate(ids, **options), trimmed_model.generate(ids, use_cache=False, **options))


def test_the_cache_grows_in_place_and_survives_cropping_and_choosing_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    layer, held = GrowingLayer(), torch.empty(3, 1, 0, 4)
    buffers = set()
    for step in range(150):
        new = torch.randn(len(held), 1, 1, 4, generator=generator)
        held = torch.cat((held, new), 2)
        keys, _values = layer.update(new, 2 * new)
        buffers.add(keys.untyped_storage().data_ptr())
        if step == 60:
            layer.crop(-20)
            held = held[:, :, :-20]
        if step == 90:
            layer.batch_select_indices(torch.tensor([2, 0]))
            held = held[[2, 0]]
        if step != 90:
            assert torch.equal(layer.keys, held) and torch.equal(layer.values, 2 * held)
    assert len(buffers) <= 6


def test_training_goes_through_latent_attention() -> None:
    model = tiny_model("llama")
    plan = headcount.plan(headcount.audit(model, tiny_tokens(), metric="output", matmul_dtype="model"), cache=0.5)
    trimmed_model = headcount.trim(model, plan, repair_output=False)
    attention = trimmed_model.model.layers[0].self_attn
    for parameter in attention.parameters():
        parameter.requires_grad_(True)
    ids = tiny_tokens()
    trimmed_model(ids, labels=ids).loss.backward()
    assert all(float(p.grad.abs().sum()) > 0 for name, p in attention.named_parameters() if "k_up.bias" not in name)


def test_the_source_model_is_left_alone_and_known_ranks_are_kept() -> None:
    """Keys and values of rank 6 by construction: a plan of rank 8 loses nothing."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(1)
    for layer in model.model.layers:
        for matrix in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            low = torch.randn(32, 6, generator=generator) @ torch.randn(6, 48, generator=generator) / 12
            matrix.weight.copy_(low)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    audit = headcount.audit(model, tiny_tokens(60), metric="fisher", matmul_dtype="model")
    for layer in audit.record.layers:
        for side in ("keys", "values"):
            energies = layer.sides[side].joint
            # Directions that never occur: float32 activations leave 1e-7 squared of the largest, plus float64 noise.
            assert max(energies[6:]) < 1e-9 * energies[0]
    plan = headcount.plan(audit, cache=0.25, form="small", allocator="uniform")
    assert {layer.k_rank for layer in plan.record.layers} == {8}
    trimmed_model = headcount.trim(model, plan, matmul_dtype="model")
    ids = tiny_tokens(3, 20, seed=11)
    torch.testing.assert_close(trimmed_model(ids).logits, model(ids).logits, rtol=0, atol=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_model_is_refused() -> None:
    audit = headcount.audit(tiny_model("llama"), tiny_tokens(), metric="output", matmul_dtype="model")
    plan = headcount.plan(audit, cache=0.5)
    with pytest.raises(HeadcountError, match="fingerprint"):
        headcount.trim(tiny_model("llama", seed=1), plan)
    with pytest.raises(HeadcountError, match="trimmed already"):
        headcount.trim(headcount.trim(tiny_model("llama"), plan, repair_output=False), plan)
