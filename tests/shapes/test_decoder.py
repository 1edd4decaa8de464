"""Unequal decoders: exact counts, Llama's own logits where layers are equal, caches of the planned shapes, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_without_headcount
from pydantic import ValidationError
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from headcount.core.errors import HeadcountError
from headcount.pretrained.families import read_spec
from headcount.pretrained.opening.loading import open_model
from headcount.pretrained.runtimes.modeling_unequal import scale_added
from headcount.shapes.decoder import DecoderLayer, DecoderSpec, build_decoder, save_decoder
from headcount.shapes.planned import plan_scratch
from headcount.trimming.evaluate.size import Size, Subject
from headcount.trimming.evaluate.speed import measure_speed

MIXED = DecoderSpec(
    vocab=97,
    hidden=48,
    context=64,
    layers=(
        DecoderLayer(n_heads=4, n_kv_heads=2, qk_dim=8, v_dim=12, intermediate_size=64),
        DecoderLayer(n_heads=6, n_kv_heads=2, qk_dim=14, v_dim=5, intermediate_size=100),
        DecoderLayer(n_heads=3, n_kv_heads=3, qk_dim=16, v_dim=16, intermediate_size=40),
    ),
)


def equal(kv_heads: int = 2, tied: bool = True) -> DecoderSpec:
    layer = DecoderLayer(n_heads=4, n_kv_heads=kv_heads, qk_dim=12, v_dim=12, intermediate_size=64)
    return DecoderSpec(vocab=97, hidden=48, context=64, layers=(layer,) * 3, tied=tied)


def sharp(model: Any, seed: int = 0) -> Any:
    """Weights large enough that attention is far from flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.15, generator=generator)
    return model.eval()


def ids(rows: int = 2, tokens: int = 30, seed: int = 0) -> torch.Tensor:
    return torch.randint(97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", [MIXED, equal(), equal(4, tied=False)], ids=["mixed", "equal", "untied"])
def test_counts_are_those_of_the_module(spec: DecoderSpec) -> None:
    model = build_decoder(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.params
    assert read_spec(model) == spec.attention


def test_what_layers_add_starts_smaller_by_the_root_of_their_number(tmp_path: Path) -> None:
    """0.02, and 0.02 / sqrt(6) for three layers of two additions; 12% is over five deviations for 1,100 of them."""
    model: Any = build_decoder(MIXED)
    for layer in model.model.layers:
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            assert matrix.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.12)
        for matrix in (layer.self_attn.q_proj, layer.self_attn.v_proj, layer.mlp.up_proj):
            assert matrix.weight.std().item() == pytest.approx(0.02, rel=0.12)
    save_decoder(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_new_layers_together_add_about_what_the_embedding_is() -> None:
    """For uniform layers of the figure scratch-lm: 1.2 times as much; plain weights 6.8 times (docs/scratch.md)."""
    spec = plan_scratch(layers=6, hidden=192, context=256, vocab=1024, params=2e6, scheme="uniform").record.model
    model: Any = build_decoder(spec)
    tokens = torch.randint(1024, (4, 256), generator=torch.Generator().manual_seed(0))

    def added() -> float:
        seen: list[torch.Tensor] = []
        handle = model.model.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        with torch.no_grad():
            model(tokens)
            embedded = model.model.embed_tokens(tokens)
        handle.remove()
        return float((seen[0] - embedded).norm() / embedded.norm())

    assert 1.0 < added() < 1.4
    scale_added(model.model.layers, 12**0.5)
    assert 6.0 < added() < 7.5


@pytest.mark.parametrize(("kv_heads", "tied"), [(4, True), (2, True), (1, False)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equal_layers_are_llama(kv_heads: int, tied: bool, attention: str) -> None:
    spec = equal(kv_heads, tied)
    own = sharp(build_decoder(spec))
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    stock = LlamaForCausalLM(config).eval()
    stock.load_state_dict(own.state_dict())
    for model in (own, stock):
        model.config._attn_implementation = attention
    tokens = ids()
    # The same operations in the same order.
    torch.testing.assert_close(own(tokens).logits, stock(tokens).logits, rtol=0, atol=1e-6)
    mine, theirs = own(tokens, labels=tokens).loss, stock(tokens, labels=tokens).loss
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
    assert torch.equal(own.generate(tokens, max_new_tokens=6), stock.generate(tokens, max_new_tokens=6))


def test_the_layer_formula_in_float64() -> None:
    """One layer with d != e and grouped heads against the attention written out."""
    model: Any = sharp(build_decoder(MIXED)).double()
    attention = model.model.layers[1].self_attn
    x = torch.randn(1, 9, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(9)[None]
    got, _ = attention(x, model.model.rotary_emb(x, positions))

    def heads(matrix: torch.Tensor, count: int) -> torch.Tensor:
        return (x[0] @ matrix.T).view(9, count, -1)

    def turned(t: torch.Tensor) -> torch.Tensor:  # the pair (i, i + 7) turned by position * 10000^(-2i/14)
        pairs = torch.complex(t[..., :7], t[..., 7:])
        angles = torch.arange(9)[:, None, None] * 10_000.0 ** (-torch.arange(7) / 7.0)
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((pairs.real, pairs.imag), -1)

    q, k = turned(heads(attention.q_proj.weight, 6)), turned(heads(attention.k_proj.weight, 2))
    v = heads(attention.v_proj.weight, 2)
    mixed = torch.zeros(9, 6, 5, dtype=torch.float64)
    for head in range(6):
        logits = q[:, head] @ k[:, head // 3].T / 14**0.5
        logits = logits.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
        mixed[:, head] = logits.softmax(-1) @ v[:, head // 3]
    wanted = mixed.flatten(1) @ attention.o_proj.weight.T
    # The model computes angles in float32.
    torch.testing.assert_close(got[0], wanted, rtol=0, atol=1e-5)


def test_sdpa_with_padding_is_eager_without() -> None:
    model = sharp(build_decoder(MIXED))
    tokens = ids()
    fused = model(tokens).logits
    model.config._attn_implementation = "eager"
    torch.testing.assert_close(fused, model(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cuts", [[1] * 30, [11, 1, 1, 9, 8]])
def test_the_cache_has_the_planned_sizes_and_decoding_is_the_whole_forward(cuts: list[int]) -> None:
    model = sharp(build_decoder(MIXED))
    tokens = ids()
    cache, parts, start = DynamicCache(config=model.config), [], 0
    for size in cuts:
        part = tokens[:, start : start + size]
        parts.append(model(part, past_key_values=cache, use_cache=True).logits)
        start += size
    # Float32 sums over other tilings.
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens).logits, rtol=0, atol=1e-4)
    held = 0
    for layer, spec in zip(cache.layers, MIXED.layers, strict=True):
        assert layer.keys.shape == (2, spec.n_kv_heads, 30, spec.qk_dim)
        assert layer.values.shape == (2, spec.n_kv_heads, 30, spec.v_dim)
        held += sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))
    assert held == 2 * 30 * MIXED.cache_bytes_per_token("float32")


def test_generation_is_the_greedy_choice_and_left_padding_changes_nothing() -> None:
    model = sharp(build_decoder(MIXED))
    tokens = ids(1, 9)
    made = model.generate(tokens, max_new_tokens=8, do_sample=False)
    assert torch.equal(made[:, 9:], model(made).logits[:, 8:-1].argmax(-1))
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), tokens), 1)
    mask = torch.ones(1, 13, dtype=torch.long)
    mask[:, :4] = 0
    assert torch.equal(
        model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)[:, 13:], made[:, 9:]
    )


def test_checkpointing_gives_the_same_gradients() -> None:
    model = sharp(build_decoder(MIXED)).train()
    tokens = ids()
    model(tokens, labels=tokens).loss.backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(tokens, labels=tokens).loss.backward()
    for parameter, grad in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-7)
        assert float(grad.abs().sum()) > 0


def test_weights_come_from_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_decoder(MIXED, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["model.layers.1.self_attn.q_proj.weight"], other["model.layers.1.self_attn.q_proj.weight"]
    )


def test_a_folder_loads_with_installed_code_and_without_headcount(tmp_path: Path) -> None:
    own = sharp(build_decoder(MIXED))
    save_decoder(own, tmp_path / "m")
    tokens = torch.arange(1, 25).view(2, 12)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert type(read).__module__ == "headcount.pretrained.runtimes.modeling_unequal"
    assert torch.equal(read(tokens).logits, own(tokens).logits)
    opened = open_model(tmp_path / "m", tokenizer=False)
    assert opened.spec == MIXED.attention and torch.equal(opened.model(tokens).logits, own(tokens).logits)
    ids, logits, made = run_without_headcount(tmp_path / "m", tmp_path)
    assert torch.equal(logits, own(ids).logits)
    assert torch.equal(made, own.generate(ids, max_new_tokens=5))


def test_saving_again_keeps_the_code_and_every_auto_class_opens_it(tmp_path: Path) -> None:
    save_decoder(sharp(build_decoder(MIXED)), tmp_path / "m")
    opened: Any = open_model(tmp_path / "m", tokenizer=False).model
    opened.save_pretrained(tmp_path / "again")
    ids, logits, _ = run_without_headcount(tmp_path / "again", tmp_path)
    assert torch.equal(logits, opened(ids).logits)
    base = AutoModel.from_pretrained(tmp_path / "again")
    assert torch.equal(base(ids).last_hidden_state, opened.model(ids).last_hidden_state)


def test_attention_maps_are_those_of_every_layer() -> None:
    """With uniform shapes: Llama's own maps; with unequal ones: a map a layer, for each of its heads."""
    own = sharp(build_decoder(MIXED))
    own.set_attn_implementation("eager")
    ids = torch.arange(1, 25).view(2, 12)
    with torch.no_grad():
        maps = own(ids, output_attentions=True).attentions
    assert [tuple(one.shape) for one in maps] == [(2, layer.n_heads, 12, 12) for layer in MIXED.layers]
    for one in maps:
        torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]))
        assert float(one.triu(1).abs().max()) == 0.0


def test_static_caches_are_right_and_what_cannot_be_is_refused() -> None:
    own = sharp(build_decoder(MIXED))
    ids = torch.arange(1, 25).view(2, 12)
    held = StaticCache(own.config, max_cache_len=20)
    parts = [own(piece, past_key_values=held, use_cache=True).logits for piece in ids.split((7, 1, 4), 1)]
    # Float32 products in another order.
    torch.testing.assert_close(torch.cat(parts, 1), own(ids, use_cache=False).logits, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="cannot use continuous batching"):
        own.generate_batch([[1, 2]])
    for name in ("flash_attention_2", "flex_attention"):
        with pytest.raises(ValueError, match="does not support"):
            own.set_attn_implementation(name)


def test_damaged_configs_are_refused_in_one_line(tmp_path: Path) -> None:
    save_decoder(build_decoder(MIXED), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"layer_n_kv_heads": [2, 4, 3]}, "6 heads are no multiple of 4"),
        ({"layer_qk_dim": [8, 13, 16]}, "qk_dim 13 is odd"),
        ({"layer_v_dim": [12, 5]}, "lists 2 layers"),
        ({"layer_v_dim": [12, 0, 16]}, "no whole number of at least 1"),
        ({"layer_n_heads": 4}, "no list"),
        ({"layer_v_dim": [12, 6, 16]}, "but the config asks for"),
    ]
    for change, message in changes:
        file.write_text(json.dumps(config | change))
        with pytest.raises(HeadcountError, match=message) as caught:
            open_model(tmp_path / "m", tokenizer=False)
        assert "\n" not in str(caught.value)


def test_speed_is_measured_like_a_dense_models() -> None:
    specs = {"mixed": MIXED, "equal": equal()}
    subjects = [Subject(name, build_decoder(spec).eval(), spec.attention) for name, spec in specs.items()]
    found = measure_speed(subjects, Size(2, 16), rounds=2, prefill_tokens=8)
    assert [way.way for way in found.models[0].ways] == ["stock", "growing", "own"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 3}, "no multiple"),
        ({"qk_dim": 7}, "multiple of 2"),
        ({"v_dim": 0}, "greater than or equal to 1"),
    ],
)
def test_layers_that_do_not_divide_are_refused(change: dict[str, int], message: str) -> None:
    fields = {"n_heads": 4, "n_kv_heads": 2, "qk_dim": 8, "v_dim": 8, "intermediate_size": 16}
    with pytest.raises(ValidationError, match=message):
        DecoderLayer(**fields | change)
