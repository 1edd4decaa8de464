"""What opens, opens exactly; sources, configs and tokenizers that do not fit are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, tiny_config, tiny_model, tiny_tokens
from loading_cases import edit, make_folder, make_good, make_refusal  # noqa: F401 (fixtures)
from safetensors.torch import load_file, save_file
from tiny_files import ALPHABET, save_tiny, tiny_tokenizer

from headcount.core.errors import HeadcountError
from headcount.pretrained.families import FAMILIES as ROWS
from headcount.pretrained.opening.loading import fingerprint, is_trimmed, open_model, resolve_device
from headcount.pretrained.runtimes.modeling_headcount import CLASSES
from headcount.trimming.trim.run import save

# --- what opens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_opens_as_it_was_saved(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_tiny(tmp_path, name)
    capfd.readouterr()
    opened = open_model(tmp_path)
    assert capfd.readouterr() == ("", "")
    wanted, found = model.state_dict(), opened.model.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert not opened.model.training and not any(p.requires_grad for p in opened.model.parameters())
    assert opened.fingerprint == fingerprint(model)
    assert opened.spec.family == name and len(opened.spec.layers) == 3
    assert opened.tokenizer is not None and opened.tokenizer("ab").input_ids == [1, 4, 5]
    ids = tiny_tokens(2)
    assert torch.equal(opened.model(ids)[0], model(ids)[0])


def test_shards_open(good: Path, folder: Path) -> None:
    model = open_model(good, tokenizer=False).model
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=40_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert open_model(folder).fingerprint == fingerprint(model)


def test_names_without_the_models_prefix_open(folder: Path) -> None:
    """GPT-2's own checkpoint names its tensors without ``transformer.``."""
    model = save_tiny(folder, "gpt2")
    weights = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("transformer."): tensor for name, tensor in weights.items()},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    assert open_model(folder).fingerprint == fingerprint(model)


def test_dtypes(folder: Path) -> None:
    assert open_model(folder, tokenizer=False).model.dtype == torch.float32
    assert open_model(folder, dtype="bfloat16", tokenizer=False).model.dtype == torch.bfloat16
    edit(folder / "config.json", lambda config: config.update(dtype="float16"))
    assert open_model(folder, tokenizer=False).model.dtype == torch.float16
    assert open_model(folder, dtype="float64", tokenizer=False).model.dtype == torch.float64


def test_the_fingerprint_tells_models_apart() -> None:
    model = tiny_model("llama")
    own = fingerprint(model)
    assert own == fingerprint(tiny_model("llama")) == fingerprint(tiny_model("llama").double())
    assert own not in (fingerprint(tiny_model("llama", seed=1)), fingerprint(tiny_model("mistral")))
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] += 1e-3
    assert own != fingerprint(model)


@pytest.mark.parametrize("form", ["fast", "small"])
def test_a_trimmed_model_opens_without_the_code_that_it_brings(form: str, tmp_path: Path) -> None:
    """Its folder has an ``auto_map`` for those who have no headcount; the installed classes are used."""
    own = [{"k_rank": 12, "v_rank": 4}, {"k_rank": 5, "v_rank": 11}, {"k_rank": 1, "v_rank": 12}]
    config_class, model_class = CLASSES["headcount_llama"][0], CLASSES["headcount_llama"][1]["AutoModelForCausalLM"]
    given = {key: value for key, value in tiny_config("llama").to_dict().items() if key != "model_type"}
    latent = {"latent_form": form, "latent_layers": own, "latent_qkv_bias": True, "qk_head_dim": 1}
    trimmed = model_class(config_class(**given, **latent)).eval()
    save(trimmed, tiny_tokenizer(), tmp_path)
    assert (tmp_path / "modeling_headcount.py").is_file()
    assert "auto_map" in json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "modeling_headcount.py").write_text("raise RuntimeError('the code ran')")
    opened = open_model(tmp_path)
    assert type(opened.model) is model_class and is_trimmed(opened.model)
    assert opened.fingerprint == fingerprint(trimmed)
    ids = tiny_tokens(2)
    assert torch.equal(opened.model(ids).logits, trimmed(ids).logits)
    edit(tmp_path / "config.json", lambda config: config["latent_layers"][1].update(k_rank=6))
    with pytest.raises(HeadcountError, match=r"layers\.1\..* but the config asks for"):
        open_model(tmp_path)


def test_a_named_attention_is_not_fetched(folder: Path) -> None:
    """A config may name an attention kernel of the hub, which would be fetched and run."""
    edit(folder / "config.json", lambda config: config.update(attn_implementation="somebody/kernels"))
    assert open_model(folder).model.config._attn_implementation == "sdpa"


# --- sources that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "neither a folder"),
        ("nothing-here", "neither a folder"),
        ("./no/such", "neither a folder"),
        ("/no/such/place", "neither a folder"),
        ("~/model", "neither a folder"),
        ("a/b/c", "neither a folder"),
        ("own er/name", "neither a folder"),
        ("missing.gguf", "does not exist"),
        ("a\0b", "neither a folder"),
        ("x" * 5000, "cannot be looked at (File name too long)"),
    ],
)
def test_sources_that_are_none(source: str, said: str, refusal: Callable[..., HeadcountError]) -> None:
    error = refusal(source)
    assert said in error.message and source[:40].replace("\0", "\\x00") in error.message


def test_a_file_that_is_no_model(tmp_path: Path, refusal: Callable[..., HeadcountError]) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "is a file, but no GGUF" in refusal(tmp_path / "notes.txt").message
    (tmp_path / "dir.gguf").mkdir()
    assert "cannot be read (Is a directory)" in refusal(tmp_path / "dir.gguf").message
    error = refusal(tmp_path / "empty")
    assert "has no config.json" in error.message and "folder of a Hugging Face model" in str(error.fix)
    (tmp_path / "empty" / "a.gguf").write_text("")
    assert refusal(tmp_path / "empty").fix == f"give {tmp_path / 'empty' / 'a.gguf'}"


def test_an_unknown_dtype_or_device(good: Path, refusal: Callable[..., HeadcountError]) -> None:
    assert "unknown dtype 'int8'" in refusal(good, dtype="int8").message
    for name in ("cuda:99", "abacus"):
        with pytest.raises(HeadcountError, match=f"device '{name}' cannot be used"):
            resolve_device(name)


def test_a_hub_name_without_a_network(refusal: Callable[..., HeadcountError], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once, not again and again; what the client says is passed on."""
    import huggingface_hub

    asked = []

    def offline(name: str, **options: Any) -> str:
        asked.append(name)
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    error = refusal("nobody/nothing")
    assert "nobody/nothing is not a local folder" in error.message and "Name or service not known" in error.message
    assert "network" in str(error.fix) and asked == ["nobody/nothing"]


def test_a_hub_name_becomes_a_folder_under_the_same_rules(
    folder: Path, refusal: Callable[..., HeadcountError], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    patterns: list[str] = []

    def fetched(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        patterns.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    opened = open_model("owner/name")
    assert opened.name == "owner/name" and opened.fingerprint == open_model(folder).fingerprint
    assert not [pattern for pattern in patterns if pattern.endswith((".py", ".bin"))]
    edit(folder / "config.json", lambda config: config.update(auto_map={"AutoConfig": "code.Config"}))
    assert "asks to run code" in refusal("owner/name").message


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not readable JSON"),
        ("{", "not readable JSON"),
        ("[]", "holds a list, not an object"),
        ("null", "holds a NoneType, not an object"),
        ("{}", "has no model_type"),
        ('{"model_type": ["llama"]}', "has no model_type"),
        ("[" * 10**5, "nested too deeply"),
        ('{"a":' * 10**5, "nested too deeply"),
        ("\udcff", "not readable JSON"),
    ],
)
def test_a_config_that_is_none(content: str, said: str, folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    error = refusal(folder)
    assert str(folder / "config.json") in error.message and said in error.message


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_huge_json_file_is_not_read(name: str, folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(2**30)
    error = refusal(folder)
    assert name in error.message and "1,024 MiB" in error.message


def test_an_unknown_family_is_named_with_the_list(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    for model_type in ("mamba", "never-heard-of", "headcount_bloom"):
        edit(folder / "config.json", lambda config, name=model_type: config.update(model_type=name))
        for trust in (False, True):
            error = refusal(folder, trust_remote_code=trust)
            assert model_type in error.message
            assert all(row.model_type in str(error.fix) for row in ROWS.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"num_key_value_heads": 3}, "config"),
        ({"hidden_size": 1.5}, "hidden_size is 1.5"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"head_dim": -16}, "head_dim is -16"),
        ({"vocab_size": 10**30}, "vocab_size is 1000"),
        ({"num_hidden_layers": 10**9}, "asks for 1000000000 layers, the weights have 3"),
        ({"num_hidden_layers": 4}, "asks for 4 layers, the weights have 3"),
        ({"num_hidden_layers": 2}, "asks for 2 layers, the weights have 3"),
        ({"num_attention_heads": 8}, "o_proj.weight is (48, 64), but the config asks for (48, 128)"),
        ({"num_key_value_heads": 4}, "k_proj"),
        ({"head_dim": 8}, "config asks for"),
        ({"hidden_size": 96}, "config asks for"),
        ({"intermediate_size": 65}, "config asks for"),
        ({"vocab_size": 2 * 10**9}, "config asks for (2000000000, 48)"),
        ({"vocab_size": 96}, "config asks for (96, 48)"),
        ({"attention_bias": False}, "which the config has no place for"),
        ({"mlp_bias": True}, "the weights lack"),
        ({"hidden_act": "os.system"}, "cannot be read"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}}, "cannot be read"),
        ({"rope_parameters": []}, ""),
        ({"rms_norm_eps": "small"}, "cannot be read"),
        ({"dtype": "load"}, "dtype is 'load'"),
        ({"dtype": 3}, "dtype is 3"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        ({"transformers_weights": "../away.safetensors"}, "names other weights ('../away.safetensors')"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_config_that_contradicts(
    change: dict[str, Any], said: str, folder: Path, refusal: Callable[..., HeadcountError]
) -> None:
    edit(folder / "config.json", lambda config: config.update(change))
    error = refusal(folder)
    assert str(folder) in error.message and said in error.message


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt2", {"n_positions": 10**9}),
        ("gpt2", {"n_head": 0}),
        ("gpt2", {"n_head": 5}),
        ("gpt2", {"n_layer": 10**9}),
        ("bert", {"max_position_embeddings": 10**9}),
        ("bert", {"type_vocab_size": 10**9}),
        ("gpt_neox", {"num_attention_heads": 7}),
        ("gpt_neox", {"num_hidden_layers": 2}),
        ("gemma3_text", {"layer_types": ["full_attention"]}),
        ("gemma3_text", {"sliding_window": 0}),
        ("qwen3", {"head_dim": 12}),
    ],
    ids=lambda value: json.dumps(value),
)
def test_other_families_configs_that_contradict(
    name: str, change: dict[str, Any], tmp_path: Path, refusal: Callable[..., HeadcountError],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save_tiny(tmp_path / "model", name)
    capfd.readouterr()
    edit(tmp_path / "model" / "config.json", lambda config: config.update(change))
    assert str(tmp_path / "model") in refusal(tmp_path / "model").message


def test_more_parameters_than_weights_are_not_had_memory_for(
    folder: Path, refusal: Callable[..., HeadcountError]
) -> None:
    """A tensor that is missing would be made up, at whatever size the config says."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit(folder / "config.json", lambda config: config.update(vocab_size=2 * 10**9))
    assert "the config asks for 192,000," in refusal(folder).message


def test_an_adapter_is_refused(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc"}))
    assert "is an adapter" in refusal(folder).message


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_no_tokenizer(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert "tokenizer" in refusal(folder).message
    assert open_model(folder, tokenizer=False).tokenizer is None


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"model": 7}', '{"version": "1.0", "model": {"type": "BPE"}}', "[" * 10**5]
)
def test_a_damaged_tokenizer(content: str, folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    (folder / "tokenizer.json").write_text(content)
    error = refusal(folder)
    assert str(folder) in error.message and "tokenizer" in error.message


@pytest.mark.parametrize("content", ["", "[]", '{"tokenizer_class": 3}', "[" * 10**5])
def test_a_damaged_tokenizer_config(content: str, folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    assert "tokenizer" in refusal(folder).message


def test_a_tokenizer_with_more_tokens_than_the_model(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    more = tuple(chr(0x4E00 + number) for number in range(97 - len(ALPHABET)))
    tiny_tokenizer(alphabet=(*ALPHABET, *more)).save_pretrained(folder)
    open_model(folder)
    tiny_tokenizer(alphabet=(*ALPHABET, *more, "%")).save_pretrained(folder)
    error = refusal(folder)
    assert "token '%' has id 97, but the model has 97 embeddings" in error.message


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_model_that_is_not_installed(
    refusal: Callable[..., HeadcountError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headcount.pretrained.opening.places.DEMO_PACKAGE", "no_such_package")
    error = refusal("demo")
    assert error.message == "the demo model is not installed" and "make setup-demo" in str(error.fix)


@pytest.mark.real
def test_the_demo_model_opens(capfd: pytest.CaptureFixture[str]) -> None:
    opened = open_model("demo")
    assert capfd.readouterr() == ("", "")
    assert opened.spec.attention_params == 30 * 884_736 and opened.spec.cache_numbers_per_token == 30 * 384
    assert opened.tokenizer is not None
    ids = torch.tensor([opened.tokenizer("The capital of France is").input_ids])
    assert opened.tokenizer.decode(opened.model(ids).logits[0, -1].argmax()) == " Paris"
