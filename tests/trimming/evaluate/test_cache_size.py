"""Cache bytes a token, off the live cache object, against the spec and against by-hand counts."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import DECODERS, tiny_model
from evaluate_cases import dense, trimmed

from headcount.core.errors import CheckFailedError
from headcount.core.forms import FORMS
from headcount.pretrained.families import read_spec
from headcount.trimming.evaluate.cache import measure_cache


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("form", list(FORMS))
def test_equals_spec(family: str, form: str) -> None:
    model = dense(family) if form == "dense" else trimmed(family, form)
    spec = read_spec(model)
    measured = measure_cache(model, spec)
    assert measured.bytes_per_token == spec.cache_bytes_per_token("float32")
    assert measured.numbers_per_layer == tuple(layer.cache_numbers_per_token for layer in spec.layers)
    if form != "dense":
        whole = read_spec(dense(family)).cache_bytes_per_token("float32")
        ranks = model.config.latent_layers
        assert measured.bytes_per_token == 4 * sum(
            layer_ranks["k_rank"] + layer_ranks["v_rank"] for layer_ranks in ranks
        )
        assert 0.4 * whole < measured.bytes_per_token <= 0.5 * whole


def test_by_hand() -> None:
    """Three layers, two KV heads of 16, keys and values, 4 bytes."""
    assert measure_cache(dense("llama"), read_spec(dense("llama"))).bytes_per_token == 3 * 2 * (2 * 16) * 4


def test_sliding_windows_are_measured_inside_the_window() -> None:
    measured = measure_cache(dense("mistral"), read_spec(dense("mistral")))
    assert measured.tokens == 8, "a window of 9 keeps 8 tokens for the next one"
    assert measured.bytes_per_token == 3 * 2 * (2 * 16) * 4


def test_half_precision() -> None:
    model = tiny_model("qwen3").bfloat16()
    measured = measure_cache(model, read_spec(model))
    assert (measured.dtype, measured.bytes_per_token) == ("bfloat16", 3 * 2 * (2 * 16) * 2)


@pytest.mark.parametrize("change", ["k_rank", "v_rank"])
def test_a_spec_that_lies_is_found(change: str) -> None:
    model = trimmed("llama")
    spec = read_spec(model)
    layers: list[Any] = list(spec.layers)
    layers[1] = layers[1].model_copy(update={change: getattr(layers[1], change) - 1})
    with pytest.raises(CheckFailedError, match="half: layer 1 caches"):
        measure_cache(model, spec.model_copy(update={"layers": tuple(layers)}), "half")


def test_a_missing_layer_is_found() -> None:
    model = dense("llama")
    spec = read_spec(model)
    with pytest.raises(CheckFailedError, match="3 layers, its spec has 2"):
        measure_cache(model, spec.model_copy(update={"layers": spec.layers[:2]}))
