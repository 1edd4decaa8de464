"""The counts of a spec against counts by hand; what is no attention is refused."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.core.errors import HeadcountError
from headcount.core.spec import DTYPE_BYTES, LayerSpec, ModelSpec

SMOLLM: dict[str, Any] = {
    "hidden": 576,
    "n_heads": 9,
    "n_kv_heads": 3,
    "qk_dim": 64,
    "v_dim": 64,
    "rotary_dim": 64,
}


def test_a_dense_layer_by_hand() -> None:
    """SmolLM2-135M: queries and outputs 576 x 576, keys and values 576 x 192."""
    layer = LayerSpec(**SMOLLM)
    assert layer.attention_params == 2 * 576 * 576 + 2 * 576 * 192 == 884_736
    assert layer.cache_numbers_per_token == 3 * 64 + 3 * 64
    # 1000 tokens: two operations a weight; 9 heads x 64 multiply-adds each for scores and for mixing, a token.
    assert layer.attention_flops_per_token(1000) == 2 * 884_736 + 1000 * 2 * (9 * 64 + 9 * 64)


def test_biases_norms_and_windows_by_hand() -> None:
    layer = LayerSpec(**SMOLLM | {"qkv_bias": True, "o_bias": True, "qk_norm": True, "window": 100})
    assert layer.attention_params == 884_736 + (576 + 192 + 192) + 576 + 2 * 64
    assert layer.attention_flops_per_token(1000) == layer.attention_flops_per_token(100)
    assert layer.attention_flops_per_token(99) < layer.attention_flops_per_token(100)
    assert layer.cache_numbers_per_token == 384


def test_a_latent_layer_by_hand() -> None:
    """Ranks 96 and 40. Fast: keys 576 x 192, down 192 x 96, up 96 x 192, values 576 x 40, outputs from 9 x 40."""
    fast = LayerSpec(**SMOLLM | {"form": "fast", "k_rank": 96, "v_rank": 40})
    assert fast.cache_numbers_per_token == 136
    assert fast.folds_values and not fast.folds_keys
    matrices = 576 * 576 + 576 * 192 + 192 * 96 + 96 * 192 + 576 * 40 + 9 * 40 * 576
    assert fast.attention_params == matrices + 576
    # Queries become 9 x 96 (9 heads x 64 x 96 multiply-adds); nothing is rebuilt.
    products = 576 * 576 + 576 * 192 + 192 * 96 + 9 * 64 * 96 + 576 * 40 + 9 * 40 * 576
    assert fast.attention_flops_per_token(500) == 2 * products + 500 * 2 * 9 * (96 + 40)

    small = LayerSpec(**SMOLLM | {"form": "small", "k_rank": 96, "v_rank": 160})
    assert not small.folds_values and small.folds_keys
    # Keys 576 x 96 in one product, rebuilt by 96 x 192 and their mean; values 576 x 160, back by 160 x 192.
    matrices = 576 * 576 + 576 * 96 + 96 * 192 + 576 * 160 + 160 * 192 + 576 * 576
    assert small.attention_params == matrices + 192 + 576
    products = 576 * 576 + 576 * 96 + 576 * 160 + 9 * 64 * 160 + 576 * 576
    assert small.attention_flops_per_token(500) == 2 * products + 500 * 2 * (9 * (64 + 160) + 96 * 192)


def test_an_encoder_caches_nothing() -> None:
    assert LayerSpec(**SMOLLM | {"causal": False}).cache_numbers_per_token == 0


def test_a_model_is_the_sum_of_its_layers() -> None:
    dense = LayerSpec(**SMOLLM)
    latent = LayerSpec(**SMOLLM | {"form": "fast", "k_rank": 8, "v_rank": 4})
    model = ModelSpec(family="llama", layers=(dense, latent, dense))
    assert model.attention_params == 2 * dense.attention_params + latent.attention_params
    assert model.cache_numbers_per_token == 2 * 384 + 12
    assert {dtype: model.cache_bytes_per_token(dtype) // 780 for dtype in DTYPE_BYTES} == DTYPE_BYTES
    assert model.attention_flops_per_token(7) == sum(layer.attention_flops_per_token(7) for layer in model.layers)
    with pytest.raises(HeadcountError, match=r"unknown dtype 'int8' for a cache; use one of float64"):
        model.cache_bytes_per_token("int8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": 0}, "hidden must be at least 1, not 0"),
        ({"n_heads": -9}, "n_heads must be at least 1, not -9"),
        ({"v_dim": 0}, "v_dim must be at least 1"),
        ({"n_kv_heads": 2}, "n_heads 9 is no multiple of n_kv_heads 2"),
        ({"rotary_dim": 65}, "rotary_dim 65 is outside"),
        ({"rotary_dim": -2}, "rotary_dim -2 is outside"),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"k_rank": 5}, "a dense layer has no ranks"),
        ({"form": "fast"}, r"k_rank must be in \[1, 192\], not None"),
        ({"form": "fast", "k_rank": 0, "v_rank": 5}, r"k_rank must be in \[1, 192\], not 0"),
        ({"form": "small", "k_rank": 5, "v_rank": 193}, r"v_rank must be in \[1, 192\], not 193"),
        ({"form": "tiny"}, "form"),
        ({"hidden": 1.5}, "hidden"),
        ({"heads": 9}, "heads"),
    ],
    ids=str,
)
def test_what_is_no_layer_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=said):
        LayerSpec(**SMOLLM | change)


def test_a_spec_does_not_change() -> None:
    layer = LayerSpec(**SMOLLM)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        layer.hidden = 1  # type: ignore[misc]


@st.composite
def layers(draw: st.DrawFn) -> LayerSpec:
    groups, kv, dim = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    form = draw(st.sampled_from(["dense", "fast", "small"]))
    ranks = {} if form == "dense" else {name: draw(st.integers(1, kv * dim)) for name in ("k_rank", "v_rank")}
    return LayerSpec(
        hidden=draw(st.integers(1, 40)),
        n_heads=groups * kv,
        n_kv_heads=kv,
        qk_dim=dim,
        v_dim=dim,
        rotary_dim=draw(st.integers(0, dim)),
        window=draw(st.none() | st.integers(1, 50)),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        form=form,
        **ranks,
    )


@given(layers(), st.integers(1, 100))
@settings(deadline=None, max_examples=100)
def test_properties(layer: LayerSpec, context: int) -> None:
    assert LayerSpec.model_validate_json(layer.model_dump_json()) == layer
    assert layer.attention_params >= layer.matrix_params > 0
    assert 0 < layer.cache_numbers_per_token <= layer.k_width + layer.v_width
    more, less = layer.attention_flops_per_token(context + 1), layer.attention_flops_per_token(context)
    assert (more > less) is (layer.window is None or context < layer.window)
    # A latent of full rank caches what the dense layer caches.
    if layer.form != "dense":
        full = layer.model_copy(update={"k_rank": layer.k_width, "v_rank": layer.v_width})
        dense = layer.model_copy(update={"form": "dense", "k_rank": None, "v_rank": None})
        assert full.cache_numbers_per_token == dense.cache_numbers_per_token
