"""What transformers and its neighbours expect of a model class, one expectation a test."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import client_truth as truth
import pytest
import torch
import transformers
from conftest import DECODERS, run_without_headcount, tiny_config, tiny_model, tiny_tokenizer, tiny_tokens
from torch.nn import functional as F
from transformers import AttentionInterface, AutoModelForCausalLM, DynamicCache, StaticCache

import headcount
from headcount.core.errors import HeadcountError
from headcount.pretrained.opening.loading import open_model
from headcount.pretrained.runtimes import headcount_attention, headcount_cache
from headcount.pretrained.runtimes.modeling_headcount import CLASSES

FORMS = ("fast", "small")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def at_full_rank(family: str, form: str) -> tuple[Any, Any]:
    """(dense, trimmed): one function."""
    model = tiny_model(family)
    audit = headcount.audit(model, tiny_tokens(40), metric="output", matmul_dtype="model")
    return model, headcount.trim(model, headcount.plan(audit, cache=1.0, form=form), repair_output=False)


@pytest.mark.parametrize("family", DECODERS)
def test_attention_maps_are_the_dense_models(family: str, form: str) -> None:
    """At full rank every weight of every head is known: transformers' own eager attention."""
    dense, own = at_full_rank(family, form)
    dense.set_attn_implementation("eager")
    mask = torch.ones(2, 14, dtype=torch.long)
    mask[1, :5] = 0
    given = {"attention_mask": mask, "output_attentions": True, "use_cache": False}
    wanted = dense(tiny_tokens(2, 14), **given).attentions
    own.set_attn_implementation("eager")
    got = own(tiny_tokens(2, 14), **given).attentions
    assert len(got) == len(wanted) == 3
    for mine, theirs in zip(got, wanted, strict=True):
        real = mask.bool()[:, None, :, None].expand_as(theirs)  # a padded query attends to nothing that means anything
        torch.testing.assert_close(mine[real], theirs[real], rtol=0, atol=1e-5)  # float32 products in another order


def test_attention_maps_with_the_default_implementation_are_there_or_refused(form: str) -> None:
    """transformers refuses them for sdpa when they are configured, and gives none when they are asked for in a call."""
    _, own = at_full_rank("llama", form)
    with pytest.raises(ValueError, match="eager"):
        own.config.output_attentions = True
    own.set_attn_implementation("eager")
    own.config.output_attentions = True
    assert len(own(tiny_tokens(1, 5)).attentions) == 3


@pytest.mark.parametrize("family", DECODERS)
def test_a_registered_attention_function_is_called(family: str, form: str) -> None:
    own = truth.fresh(family, form)
    calls = []

    def counted(module: Any, *args: Any, **options: Any) -> Any:
        calls.append(module.layer_idx)
        return transformers.integrations.sdpa_attention.sdpa_attention_forward(module, *args, **options)

    AttentionInterface.register("counted", counted)
    transformers.AttentionMaskInterface.register("counted", transformers.masking_utils.sdpa_mask)
    wanted = truth.uncached(own, tiny_tokens(2, 14))
    own.set_attn_implementation("counted")
    torch.testing.assert_close(truth.uncached(own, tiny_tokens(2, 14)), wanted, rtol=0, atol=2e-5)
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("family", DECODERS)
def test_kernels_for_other_shapes_are_refused(family: str, name: str) -> None:
    own = truth.fresh(family, "fast")
    with pytest.raises((ValueError, ImportError), match=f"does not support|{name}"):
        own.set_attn_implementation(name)


@pytest.mark.parametrize("family", DECODERS)
def test_every_auto_class_opens_the_folder(family: str, form: str, tmp_path: Path) -> None:
    own = truth.trimmed(family, form)
    own.save_pretrained(tmp_path)
    ids = tiny_tokens(2, 12)
    base = getattr(own, own.base_model_prefix)
    wanted = base(ids).last_hidden_state
    opened = transformers.AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(opened(ids).last_hidden_state, wanted, rtol=0, atol=1e-5)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert classifier(ids).logits.shape == (2, 3)
    # The head is new; what it reads is not: the last token's state, as nothing is padded.
    torch.testing.assert_close(classifier.score(wanted)[:, -1], classifier(ids).logits, rtol=0, atol=1e-5)
    classifier.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(ids).logits, classifier(ids).logits, rtol=0, atol=1e-5)


def test_a_fine_tuned_model_loads_where_headcount_is_not(form: str, tmp_path: Path) -> None:
    """Opened with headcount's own code, trained a step, saved by ``save_pretrained``, opened in a bare process."""
    truth.trimmed("llama", form).save_pretrained(tmp_path / "first")
    opened: Any = open_model(tmp_path / "first", tokenizer=False).model
    opened.requires_grad_(True).train()
    ids = tiny_tokens(2, 12)
    opened(ids, labels=ids).loss.backward()
    torch.optim.SGD(opened.parameters(), lr=1e-2).step()
    opened.eval().save_pretrained(tmp_path / "second")
    files = {file.name for file in (tmp_path / "second").glob("*.py")}
    assert files == {"modeling_headcount.py", "headcount_attention.py", "headcount_cache.py"}
    ids, logits, _ = run_without_headcount(tmp_path / "second", tmp_path)
    torch.testing.assert_close(logits, truth.uncached(opened, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen2"])
def test_a_head_of_its_own_under_the_tie_flag_is_kept(family: str, form: str, tmp_path: Path) -> None:
    """A checkpoint may hold an ``lm_head`` although its config says that it is tied; transformers then unties it."""
    model = tiny_model(family)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = torch.nn.Parameter(torch.randn(97, 48, generator=torch.Generator().manual_seed(1)))
    audit = headcount.audit(model, tiny_tokens(40), metric="output", matmul_dtype="model")
    own = headcount.trim(model, headcount.plan(audit, cache=1.0, form=form), repair_output=False)
    ids = tiny_tokens(2, 12)
    wanted = truth.uncached(model, ids)
    torch.testing.assert_close(truth.uncached(own, ids), wanted, rtol=1e-5, atol=1e-4)
    own.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(truth.uncached(again, ids), truth.uncached(own, ids), rtol=1e-6, atol=1e-5)


def test_rotations_are_made_on_each_device_that_asks() -> None:
    """Layers on two devices share the object; a device without memory stands for the second one."""
    rotations = headcount_attention.Rotations(tiny_model("llama").model.rotary_emb)
    positions = torch.arange(5)[None]
    here = rotations.of(torch.zeros(1, 5, 48), positions, None)
    there = rotations.of(torch.zeros(1, 5, 48, device="meta"), positions, None)
    half = rotations.of(torch.zeros(1, 5, 48, dtype=torch.bfloat16), positions, None)
    assert (here[0].device.type, there[0].device.type, half[0].dtype) == ("cpu", "meta", torch.bfloat16)
    assert rotations.of(torch.zeros(1, 5, 48), positions, None)[0] is here[0]


@pytest.mark.parametrize(("new", "groups"), [(1, 1), (1, 4), (6, 1), (6, 4)])
def test_the_gpu_path_copies_no_keys(new: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products, run here: the float64 value, and fused attention is given the cached keys' and values' own memory.

    What the kernel does inside is the kernel's business.
    """
    heads, slots, d, e = 16, 512, 64, 48
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads, new, d, generator=generator)
    k = torch.randn(2, groups, slots, d, generator=generator)
    v = torch.randn(2, 1, slots, e, generator=generator)
    memory = {own.untyped_storage().data_ptr() for own in (k, v)}
    fused, seen = F.scaled_dot_product_attention, []

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.extend(own.untyped_storage().data_ptr() for own in (k, v))
        return fused(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    mask = torch.arange(slots)[None] <= torch.arange(new)[:, None] + slots - new
    got = headcount_attention._fused(q, k, v, mask[None, None], 0.125, slots - new, 0.0)
    assert set(seen) == memory
    keys, values = k.repeat_interleave(heads // groups, 1).double(), v.double().expand(-1, heads, -1, -1)
    scores = (q.double() @ keys.mT * 0.125).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(got.double(), scores.softmax(-1) @ values, rtol=0, atol=1e-5)


def test_a_quantised_caches_group_must_divide_the_ranks(form: str) -> None:
    """transformers' grouped 4-bit caches take 64 numbers at a time: the error says how to plan for it."""
    layer = type("Grouped", (transformers.cache_utils.QuantizedLayer,), {"_quantize": _whole, "_dequantize": _same})
    held = DynamicCache()
    held.layer_class_to_replicate = layer
    with pytest.raises(ValueError, match="headcount plan --multiple 64"):
        truth.in_pieces(truth.trimmed("llama", form), tiny_tokens(1, 5), held, (5,))


def _whole(_self: Any, tensor: torch.Tensor, _axis: int) -> torch.Tensor:
    return tensor


def _same(_self: Any, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def test_positions_cost_four_bytes_a_token_once_for_every_kind_of_layer() -> None:
    own = truth.trimmed("gemma3_text", "small")
    held = DynamicCache(config=own.config)
    truth.in_pieces(own, tiny_tokens(1, 24), held, (20, 4))
    kept = [layer.companion for layer in held.layers if getattr(layer, "companion", None) is not None]
    assert len(kept) == len(set(own.config.layer_types)) == 2
    assert all(own.keys.dtype == torch.int32 and own.keys.shape[1] == own.keys.shape[3] == 1 for own in kept)
    assert all(own.values.numel() == 0 for own in kept)


def test_a_cache_filled_by_hand_is_read_by_slot_or_refused() -> None:
    """Keys without positions: their slots' numbers where rows are not padded, else an error."""
    own = truth.trimmed("llama", "small")
    ids = tiny_tokens(2, 12)
    first = DynamicCache(config=own.config)
    truth.in_pieces(own, ids[:, :8], first, (8,))
    filled = DynamicCache()
    for index, layer in enumerate(first.layers):
        filled.update(layer.keys, layer.values, index)
    by_hand = copy.deepcopy(filled)
    got = truth.in_pieces(own, ids[:, 8:], filled, (1, 3))
    torch.testing.assert_close(got, truth.uncached(own, ids)[:, 8:], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="positions were not recorded"), torch.no_grad():
        own(ids[:, 8:9], position_ids=torch.tensor([[6], [8]]), past_key_values=by_hand)


@pytest.mark.parametrize("family", DECODERS)
def test_another_models_cache_is_refused(family: str, form: str) -> None:
    dense, own = tiny_model(family), truth.trimmed(family, form)
    held = DynamicCache(config=dense.config)
    dense(tiny_tokens(1, 5), past_key_values=held, use_cache=True)
    with pytest.raises(ValueError, match="the cache is laid out for"):
        own(tiny_tokens(1, 3), past_key_values=held, use_cache=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_adapters_that_could_have_no_effect_are_refused_by_peft() -> None:
    """Prefix tuning makes keys of the dense shape; the maps between heads and latents are no linear layers."""
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"HeadMap.*not supported"):
        peft.get_peft_model(truth.fresh("llama", "fast"), peft.LoraConfig(target_modules=["k_up"]))
    prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapted = peft.get_peft_model(truth.fresh("llama", "fast"), prefix)
    with pytest.raises(ValueError, match="prefix tuning"):
        adapted(tiny_tokens(1, 5))


def test_a_cache_of_a_foreign_type_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="cannot use a cache of type object"):
        truth.trimmed("llama", form).model.layers[0].self_attn(
            torch.zeros(1, 1, 48), a_rotation(), past_key_values=object()
        )


def a_rotation() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(1, 1, 16), torch.zeros(1, 1, 16)


def test_a_pipeline_writes_what_generate_writes(form: str, tmp_path: Path) -> None:
    own, tokenizer = truth.trimmed("llama", form), tiny_tokenizer()
    own.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["abc", "a longer text"]
    pipe = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu")
    made = pipe(texts, max_new_tokens=8, do_sample=False, return_full_text=False, batch_size=2)
    for text, row in zip(texts, made, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        whole = own.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
        assert row[0]["generated_text"] == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_the_trainer_trains(family: str, form: str, tmp_path: Path) -> None:
    """Loss falls on one repeated batch, gradient checkpointing included; its checkpoint opens as it was."""
    own = truth.fresh(family, form).requires_grad_(True)
    getattr(own, "activation_checkpointing_enable", own.gradient_checkpointing_enable)()
    rows = [{"input_ids": row, "labels": row} for row in tiny_tokens(4, 12)]
    before = _loss(own)
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=10,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_steps=10,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    transformers.Trainer(own, options, train_dataset=rows).train()
    own.eval()
    assert _loss(own) < 0.8 * before
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-10")
    wanted = truth.uncached(own, tiny_tokens(2, 9))
    # Weights that are read from a file lie elsewhere in memory, and products round by where they lie.
    torch.testing.assert_close(truth.uncached(again, tiny_tokens(2, 9)), wanted, rtol=0, atol=1e-5)


def _loss(model: Any) -> float:
    with torch.no_grad():
        return float(model(tiny_tokens(4, 12), labels=tiny_tokens(4, 12)).loss)


def test_training_drops_attention_as_the_dense_model_does() -> None:
    """``attention_dropout`` acts in training and on no other occasion."""
    config = tiny_config("llama")
    config.attention_dropout = 0.5
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    audit = headcount.audit(model, tiny_tokens(40), metric="output", matmul_dtype="model")
    own = headcount.trim(model, headcount.plan(audit, cache=1.0), repair_output=False)
    ids = tiny_tokens(1, 12)
    assert torch.equal(own(ids).logits, own(ids).logits)
    own.train()
    assert not torch.equal(own(ids).logits, own(ids).logits)


@pytest.mark.parametrize(
    ("family", "option"),
    [
        ("gemma3_text", {"attn_logit_softcapping": 30.0}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("gpt2", {"add_cross_attention": True}),
    ],
)
def test_attention_that_cannot_be_computed_is_refused_by_name(family: str, option: dict[str, Any]) -> None:
    """Refused before any work, rather than computed without; also where only the travelling files are."""
    config = tiny_config(family)
    vars(config).update(option)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(HeadcountError, match=next(iter(option))):
        headcount.audit(model, tiny_tokens(4), metric="output", matmul_dtype="model")
    latent = copy.deepcopy(truth.trimmed(family, "fast").config)
    vars(latent).update(option)
    with pytest.raises(ValueError, match=next(iter(option))):
        CLASSES[latent.model_type][1]["AutoModelForCausalLM"](latent)


def test_every_family_has_every_role() -> None:
    assert {name.removeprefix("headcount_") for name in CLASSES} == set(DECODERS)
    for config, models in CLASSES.values():
        assert {auto: model.config_class for auto, model in models.items()} == dict.fromkeys(
            ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"), config
        )
        assert not any(model._supports_flash_attn or model._supports_flex_attn for model in models.values())


def test_dynamic_static_and_forked_layers_hold_what_stock_layers_hold() -> None:
    """The growing layer against transformers' own, through appends, crops, copies and row choices."""
    mine, stock = headcount_cache.GrowingLayer(), transformers.cache_utils.DynamicLayer()
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        act = int(torch.randint(0, 10, (), generator=generator))
        if act < 6 or not stock.is_initialized or stock.get_seq_length() < 4:
            rows = stock.keys.shape[0] if stock.is_initialized else 2
            new = torch.randn(rows, 1, int(torch.randint(1, 9, (), generator=generator)), 3, generator=generator)
            mine.update(new, F.pad(new, (0, 1)))
            stock.update(new, F.pad(new, (0, 1)))
        elif act == 6:
            mine.crop(-2)
            stock.crop(-2)
        elif act == 7:
            copied = copy.copy(mine)
            copied.update(torch.full((stock.keys.shape[0], 1, 3, 3), 7.0), torch.zeros(stock.keys.shape[0], 1, 3, 4))
        elif act == 8:
            order = torch.randint(0, stock.keys.shape[0], (stock.keys.shape[0],), generator=generator)
            mine.reorder_cache(order)
            stock.reorder_cache(order)
        elif step % 50 == 0:
            mine.reset()
            stock.reset()
        if stock.is_initialized and stock.keys is not None:
            assert torch.equal(mine.keys, stock.keys) and torch.equal(mine.values, stock.values), step


def test_a_static_cache_larger_than_the_text_changes_nothing(form: str) -> None:
    own = truth.trimmed("qwen3", form)
    ids = tiny_tokens(2, 16)
    for room in (16, 17, 64):
        got = truth.in_pieces(own, ids, StaticCache(own.config, max_cache_len=room), (9, 1, 6))
        torch.testing.assert_close(got, truth.uncached(own, ids), rtol=0, atol=1e-4)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")  # another library's own
def test_lm_eval_scores_by_the_models_own_logits(form: str, tmp_path: Path) -> None:
    """Its log-likelihoods of continuations, batched and padded, against the sums of a whole forward."""
    instance = pytest.importorskip("lm_eval.api.instance")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    own, tokenizer = truth.trimmed("llama", form), tiny_tokenizer()
    own.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scored = huggingface.HFLM(
        pretrained=str(tmp_path), device="cpu", batch_size=2, dtype="float32", trust_remote_code=True
    )
    pairs = [("abc", " def"), ("a longer context", " x"), ("b", "cd")]
    asked = [
        instance.Instance("loglikelihood", {}, (context, more), index) for index, (context, more) in enumerate(pairs)
    ]
    for (context, more), (score, greedy) in zip(pairs, scored.loglikelihood(asked), strict=True):
        ids = tokenizer(context + more, return_tensors="pt").input_ids
        count = len(tokenizer(more, add_special_tokens=False).input_ids)
        logs = truth.uncached(own, ids)[0, :-1].log_softmax(-1)[-count:]
        assert score == pytest.approx(float(logs.gather(1, ids[0, -count:, None]).sum()), abs=1e-3)
        assert greedy == bool((logs.argmax(-1) == ids[0, -count:]).all())
