"""Specs and projections against the models themselves: their tensors, their caches, their own arithmetic."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import DECODERS, FAMILIES, tiny_config, tiny_model, tiny_tokens
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from headcount.core.errors import HeadcountError
from headcount.core.forms import trimmed_names
from headcount.pretrained.families import FAMILIES as ROWS
from headcount.pretrained.families import attention_of, family_of, layers_of, projections_of, read_spec
from headcount.pretrained.runtimes.modeling_headcount import CLASSES

ATTENTION_PARTS = {
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    "gpt_neox": ("attention.query_key_value", "attention.dense"),
    "bert": ("attention.self", "attention.output.dense"),
}
"""Where each family's attention parameters are, written down apart from the table that is tested."""


def real_attention_params(model: Any, family: str) -> int:
    """Counted by name over the whole model."""
    parts = ATTENTION_PARTS.get(family, ("self_attn",))
    named = [(name, p.numel()) for name, p in model.named_parameters()]
    return sum(count for name, count in named if any(f".{part}." in name for part in parts))


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_params_are_those_of_the_tensors(name: str) -> None:
    model = tiny_model(name)
    assert read_spec(model).attention_params == real_attention_params(model, name) > 0


@pytest.mark.parametrize("name", DECODERS)
def test_the_cache_is_what_the_live_cache_holds(name: str) -> None:
    """Numbers per token of every layer, and bytes of the model, while a text is inside every window."""
    model = tiny_model(name)
    cache = DynamicCache(config=model.config)
    tokens = 7
    model(tiny_tokens(1, tokens), past_key_values=cache)
    held = [layer.keys.numel() + layer.values.numel() for layer in cache.layers]
    spec = read_spec(model)
    assert held == [tokens * layer.cache_numbers_per_token for layer in spec.layers]
    held_bytes = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    assert held_bytes == tokens * spec.cache_bytes_per_token("float32")


def decode_flops(model: Any, context: int) -> list[int]:
    """What torch counts in each layer's attention at a decoding step that sees ``context`` tokens, itself included."""
    cache = DynamicCache(config=model.config)
    ids = tiny_tokens(1, context)
    model(ids[:, :-1], past_key_values=cache)
    with FlopCounterMode(display=False) as counter:
        model(ids[:, -1:], past_key_values=cache)
    names = {id(module): name for name, module in model.named_modules()}
    family = family_of(model.config)
    places = [f"{type(model).__name__}.{names[id(attention_of(layer, family))]}" for layer in layers_of(model, family)]
    return [sum(counter.get_flop_counts()[place].values()) for place in places]


@pytest.mark.parametrize("name", DECODERS)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    """``eager`` attention is plain matrix products, all of which torch's counter sees; windows of 9 are passed."""
    model = tiny_model(name)
    model.config._attn_implementation = "eager"
    for context in (5, 20):
        spec = read_spec(model)
        assert decode_flops(model, context) == [layer.attention_flops_per_token(context) for layer in spec.layers]


RANKS = [{"k_rank": 12, "v_rank": 4}, {"k_rank": 5, "v_rank": 11}, {"k_rank": 1, "v_rank": 12}]


def latent_model(name: str, form: str) -> Any:
    """A random trimmed model; ranks on both sides of where values are folded."""
    config_class, models = CLASSES[f"headcount_{name}"]
    dense = tiny_config(name)
    bias = read_spec(tiny_model(name)).layers[0].qkv_bias
    own = {"latent_form": form, "latent_layers": RANKS, "latent_qkv_bias": bias, "qk_head_dim": 1}
    given = {key: value for key, value in dense.to_dict().items() if key != "model_type"}
    return models["AutoModelForCausalLM"](config_class(**given, **own)).eval().requires_grad_(False)


@pytest.mark.parametrize("form", trimmed_names())
@pytest.mark.parametrize("name", DECODERS)
def test_the_spec_of_a_trimmed_model_is_exact(name: str, form: str) -> None:
    """Parameters, live cache and FLOPs of models that keep latents."""
    model = latent_model(name, form)
    spec = read_spec(model)
    family = family_of(model.config)
    real = [sum(p.numel() for p in attention_of(layer, family).parameters()) for layer in layers_of(model, family)]
    assert [layer.attention_params for layer in spec.layers] == real
    cache = DynamicCache(config=model.config)
    model(tiny_tokens(1, 7), past_key_values=cache)
    held = [layer.keys.numel() + layer.values.numel() for layer in cache.layers]
    assert held == [7 * layer.cache_numbers_per_token for layer in spec.layers]
    assert decode_flops(model, 8) == [layer.attention_flops_per_token(8) for layer in spec.layers]


@pytest.mark.parametrize("name", FAMILIES)
def test_projections_are_what_the_attention_multiplies_with(name: str) -> None:
    """Queries, keys, values from ``Projections`` lead to the attention module's own output.

    One visible token makes the softmax 1, so the output is o (v x + b) + b, values repeated over their group; and
    two texts of one token each show keys and queries nowhere, so those are compared with the fused weights below.
    """
    model = tiny_model(name)
    family = family_of(model.config)
    layer = layers_of(model, family)[1]
    spec = read_spec(model).layers[1]
    found = projections_of(layer, family, model.config)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, spec.hidden, generator=generator)
    kwargs: dict[str, Any] = {"attention_mask": None}
    if family.rotary:
        ones = torch.ones(1, 1, spec.rotary_dim)
        kwargs["position_embeddings"] = (ones, torch.zeros_like(ones))
    out = attention_of(layer, family)(x, **kwargs)[0]
    if name == "bert":
        out = layer.attention.output.dense(out)
    v = x @ found.v.T + (0 if found.v_bias is None else found.v_bias)
    v = v.view(4, 1, spec.n_kv_heads, 1, spec.v_dim).expand(-1, -1, -1, spec.n_heads // spec.n_kv_heads, -1)
    own = v.reshape(4, 1, -1) @ found.o.T + (0 if found.o_bias is None else found.o_bias)
    torch.testing.assert_close(out, own, atol=1e-5, rtol=0)  # float32, sums of 48 numbers of size 1


@pytest.mark.parametrize("name", FAMILIES)
def test_queries_and_keys_lead_to_the_attentions_own_weights(name: str) -> None:
    """softmax(scaling (q x + b) . (k x + b)) with eager attention, without rotation and norms' effect undone."""
    model = tiny_model(name)
    model.config._attn_implementation = "eager"
    family = family_of(model.config)
    layer = layers_of(model, family)[2]
    attention = attention_of(layer, family)
    spec = read_spec(model).layers[2]
    found = projections_of(layer, family, model.config)
    x = torch.randn(2, 6, spec.hidden, generator=torch.Generator().manual_seed(1))
    kwargs: dict[str, Any] = {"attention_mask": torch.zeros(1, 1, 6, 6)}
    if family.rotary:
        ones = torch.ones(1, 6, spec.rotary_dim)
        kwargs["position_embeddings"] = (ones, torch.zeros_like(ones))
    weights = attention(x, **kwargs)[1]

    def heads(matrix: torch.Tensor, bias: torch.Tensor | None, count: int, norm: Any) -> torch.Tensor:
        y = (x @ matrix.T + (0 if bias is None else bias)).view(2, 6, count, spec.qk_dim).transpose(1, 2)
        return y if norm is None else norm(y)

    q = heads(found.q, found.q_bias, spec.n_heads, getattr(attention, "q_norm", None))
    k = heads(found.k, found.k_bias, spec.n_kv_heads, getattr(attention, "k_norm", None))
    k = k.repeat_interleave(spec.n_heads // spec.n_kv_heads, 1)
    scaling = 20**-0.5 if name == "gemma3_text" else spec.qk_dim**-0.5
    own = (scaling * q @ k.transpose(-1, -2)).softmax(-1)
    torch.testing.assert_close(weights, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_traits_are_each_familys_own(name: str) -> None:
    spec = read_spec(tiny_model(name))
    heads, kv, dim = {"qwen2": (4, 2, 12), "gemma3_text": (4, 1, 16)}.get(
        name, (4, 4, 12) if name in ("gpt2", "gpt_neox", "bert") else (4, 2, 16)
    )
    rotary = {"gpt2": 0, "bert": 0, "gpt_neox": 6}.get(name, dim)
    windows = {"mistral": [9, 9, 9], "gemma3_text": [9, None, 9]}.get(name, [None] * 3)
    for layer in spec.layers:
        assert (layer.n_heads, layer.n_kv_heads, layer.qk_dim, layer.v_dim) == (heads, kv, dim, dim)
        assert layer.rotary_dim == rotary and layer.hidden == 48 and layer.form == "dense"
        assert layer.qk_norm is (name in ("qwen3", "gemma3_text")) and layer.causal is (name != "bert")
        assert layer.qkv_bias is (name in ("llama", "qwen2", "gpt2", "gpt_neox", "bert"))
        assert layer.o_bias is (name in ("llama", "gpt2", "gpt_neox", "bert"))
    assert [layer.window for layer in spec.layers] == windows


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_a_window_is_what_a_token_sees(name: str) -> None:
    """A token's output depends on the ``window`` last tokens of a layer, itself included, and on no other."""
    model = tiny_model(name)
    family = family_of(model.config)
    del layers_of(model, family)[1:]
    model.config.num_hidden_layers = 1
    window = read_spec(model).layers[0].window
    assert window == 9
    ids = tiny_tokens(1, 24)
    base = model(ids).logits[0, -1]
    for back, seen in ((window, False), (window - 1, True)):
        changed = ids.clone()
        changed[0, -1 - back] = changed[0, -1 - back] % 96 + 1
        assert bool((model(changed).logits[0, -1] != base).any()) is seen


def test_a_model_whose_tensors_contradict_its_config() -> None:
    model = tiny_model("llama")
    model.config = copy.deepcopy(model.config)
    model.config.num_key_value_heads = 4
    with pytest.raises(
        HeadcountError, match=r"layer 0: the k matrix is \(32, 48\), but the config asks for \(64, 48\)"
    ):
        read_spec(model)


def test_an_unknown_family_is_refused_with_the_list() -> None:
    import transformers as t

    with pytest.raises(HeadcountError, match="model type 'bloom' is not supported") as caught:
        family_of(t.BloomConfig())
    assert all(row.model_type in str(caught.value.fix) for row in ROWS.values())
    with pytest.raises(HeadcountError, match="model type 'unknown'"):
        family_of(t.PreTrainedConfig())
