"""The ways in which models are timed: same logits, caches of the right size, settings put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import DECODERS
from evaluate_cases import dense, trimmed, windows
from transformers.cache_utils import DynamicLayer

from headcount.core.seeds import torch_generator
from headcount.pretrained.families import read_spec
from headcount.pretrained.runtimes.headcount_cache import GrowingLayer
from headcount.trimming.evaluate.paths import (
    OWN,
    attention_for,
    empty_cache,
    filled_cache,
    step_back,
    watched_attention,
    ways_of,
)


def logits_by_pieces(model: Any, way: Any, ids: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    """Logits of all tokens, fed through a cache of the given way a piece at a time."""
    cache, parts, start = empty_cache(model, way), [], 0
    with torch.no_grad(), attention_for(model, way):
        for size in pieces:
            parts.append(model(ids[:, start : start + size], past_key_values=cache, use_cache=True).logits)
            start += size
    return torch.cat(parts, 1)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("pieces", [[20], [7, 6, 1, 1, 1, 4]])
def test_own_way_gives_stock_logits(family: str, pieces: list[int]) -> None:
    model, ids = dense(family), windows(2, 20)
    plain = model(ids, use_cache=False).logits
    for way in ways_of(model):
        # float32 sums in another order: logits of about 10, some 1e-6 apart after three layers.
        torch.testing.assert_close(logits_by_pieces(model, way, ids, pieces), plain, atol=5e-5, rtol=1e-5)


def test_own_way_with_left_padding() -> None:
    model, ids = dense("llama"), windows(2, 12)
    seen = torch.ones_like(ids)
    seen[1, :5] = 0
    with torch.no_grad():
        plain = model(ids, attention_mask=seen).logits
        with attention_for(model, "own"):
            our_logits = model(ids, attention_mask=seen).logits
    torch.testing.assert_close(our_logits[0], plain[0], atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(our_logits[1, 5:], plain[1, 5:], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ["stock", "growing", "own"])
def test_the_models_setting_is_put_back(way: Any) -> None:
    model = dense("qwen2")
    model.config._attn_implementation = "eager"
    try:
        with pytest.raises(ZeroDivisionError), attention_for(model, way):
            assert model.config._attn_implementation == (OWN if way == "own" else "sdpa")
            raise ZeroDivisionError
        assert model.config._attn_implementation == "eager"
    finally:
        model.config._attn_implementation = "sdpa"


def test_layers_grow_in_place_but_for_stock_and_windows() -> None:
    def kinds(model: Any, way: Any) -> list[str]:
        return [type(layer).__name__ for layer in empty_cache(model, way).layers]

    assert kinds(dense("llama"), "stock") == ["DynamicLayer"] * 3
    assert kinds(dense("llama"), "own") == kinds(dense("llama"), "growing") == ["GrowingLayer"] * 3
    window = "DynamicSlidingWindowLayer"
    assert kinds(dense("gemma3_text"), "own") == [window, "GrowingLayer", window]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("form", ["dense", "fast", "small"])
def test_filled_caches_hold_the_context_and_step_back_to_it(family: str, form: str) -> None:
    model = dense(family) if form == "dense" else trimmed(family, form)
    spec = read_spec(model)
    for way in ways_of(model):
        with torch.no_grad(), attention_for(model, way):
            cache = filled_cache(model, way, 2, 30, torch_generator(0, "test"))
            for _ in range(3):
                for layer, layer_spec in zip(cache.layers, spec.layers, strict=True):
                    held: Any = layer
                    tokens = 30 if layer_spec.window is None else layer_spec.window - 1
                    assert held.keys.shape[:1] + held.keys.shape[2:3] == (2, tokens)
                    assert held.values.shape[2] == tokens
                    numbers = held.keys.numel() + held.values.numel()
                    assert numbers == 2 * tokens * layer_spec.cache_numbers_per_token
                    assert isinstance(held, GrowingLayer) == (way != "stock" and layer_spec.window is None)
                assert cache.get_seq_length() == 30
                model(torch.ones(2, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
                assert cache.get_seq_length() == 31
                step_back(cache)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "llama"])
@pytest.mark.parametrize("context", [4, 8, 9])
def test_a_step_taken_back_leaves_the_same_logits(family: str, context: int) -> None:
    """Around the window's edge (9), where sliding layers begin to drop."""
    model = trimmed(family)
    token = torch.full((2, 1), 5)
    with torch.no_grad():
        cache = filled_cache(model, "latent", 2, context, torch_generator(0, "test"))
        first = model(token, past_key_values=cache, use_cache=True).logits
        step_back(cache)
        again = model(token, past_key_values=cache, use_cache=True).logits
    if context < 8 or family == "llama":
        torch.testing.assert_close(again, first, atol=0, rtol=0)
    else:  # the oldest token of a full window is gone: as many tokens, not the same ones
        assert again.shape == first.shape and bool(again.isfinite().all())


def test_random_numbers_are_seeded_and_differ_from_none() -> None:
    def keys(seed: int) -> torch.Tensor:
        layers: Any = filled_cache(dense("llama"), "stock", 2, 20, torch_generator(seed, "test")).layers
        assert type(layers[0]) is DynamicLayer
        return layers[0].keys

    assert torch.equal(keys(0), keys(0))
    assert not torch.equal(keys(0), keys(1))
    assert 0.05 < float(keys(0)[:, :, 1:].std()) < 0.2


def test_watched_attention_sees_every_layer_and_unhooks() -> None:
    model, seen = dense("gpt2"), []
    with (
        pytest.raises(ZeroDivisionError),
        watched_attention(model, lambda: seen.append("before"), lambda: seen.append("after")),
    ):
        model(windows(1, 4))
        raise ZeroDivisionError
    assert seen == ["before", "after"] * 3
    model(windows(1, 4))
    assert len(seen) == 6
