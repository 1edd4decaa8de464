"""The fingerprint: every setting that changes what a model computes changes it, nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, tiny_model, tiny_tokens

import headcount
from headcount.core.errors import HeadcountError
from headcount.pretrained.opening.fingerprint import fingerprint, settings, weights_fingerprint
from headcount.pretrained.opening.loading import open_model

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
}
CHANGES: list[tuple[str, str, Any]] = [
    ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
    ("llama", "rope_parameters", LINEAR),
    ("llama", "rope_parameters", LINEAR | {"factor": 2.0}),
    ("llama", "rope_parameters", YARN),
    ("llama", "rope_parameters", YARN | {"beta_fast": 16.0}),
    ("llama", "rms_norm_eps", 1e-3),
    ("llama", "hidden_act", "gelu"),
    ("mistral", "sliding_window", 5),
    ("mistral", "sliding_window", None),
    ("qwen2", "rope_parameters", {"rope_type": "default", "rope_theta": 1e6}),
    ("gemma3_text", "rope_parameters", GEMMA),
    ("gemma3_text", "sliding_window", 5),
    ("gemma3_text", "layer_types", ["full_attention"] * 3),
    ("gemma3_text", "query_pre_attn_scalar", 16),
    ("gemma3_text", "final_logit_softcapping", 5.0),
    ("gemma3_text", "hidden_activation", "silu"),
    ("gpt2", "scale_attn_weights", False),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "layer_norm_epsilon", 1e-2),
    ("gpt2", "activation_function", "relu"),
    ("gpt_neox", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    ("gpt_neox", "use_parallel_residual", False),
]


def rebuilt(model: Any, **changes: Any) -> Any:
    """The same weights under another config."""
    config = type(model.config)(**model.config.to_dict() | changes)
    config._attn_implementation = "eager"
    made = type(model)(config)
    made.load_state_dict(model.state_dict())
    return made.eval()


@pytest.mark.parametrize("family, name, value", CHANGES)
def test_a_setting_that_changes_the_logits_changes_it(family: str, name: str, value: Any) -> None:
    model = tiny_model(family)
    plain, other = rebuilt(model), rebuilt(model, **{name: value})
    ids = tiny_tokens(2, 60)
    assert not torch.allclose(plain(ids).logits, other(ids).logits, atol=1e-4), "the case changes nothing"
    assert fingerprint(plain) == fingerprint(model) != fingerprint(other)
    assert weights_fingerprint(other) == weights_fingerprint(model)


def test_tying_changes_it() -> None:
    """By the flag alone, with the same two matrices: saved and opened again, they would become one."""
    model = tiny_model("llama")
    before = fingerprint(model)
    model.config.tie_word_embeddings = not model.config.tie_word_embeddings
    assert fingerprint(model) != before


INERT = {
    "use_cache": False,
    "initializer_range": 0.5,
    "bos_token_id": 5,
    "eos_token_id": [2, 3],
    "pad_token_id": 4,
    "id2label": {0: "no", 1: "yes", 2: "maybe"},
    "output_hidden_states": True,
    "attention_dropout": 0.1,
    "a_note_of_some_tool": {"version": 3},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_changes_nothing_does_not(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    before = fingerprint(model)
    for name, value in INERT.items():
        setattr(model.config, name, value)
        assert fingerprint(model) == before, name
    model.config._attn_implementation = "eager"
    model.config._name_or_path = "elsewhere/model"
    model.name_or_path = "elsewhere/model"
    assert fingerprint(model) == before
    assert fingerprint(model.double()) == before
    tiny_model(family).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written |= {"transformers_version": "5.0.0", "architectures": ["Other"], "unknown": 1, "_name_or_path": "x"}
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert open_model(tmp_path, tokenizer=False).fingerprint == before


def test_numbers_are_compared_as_float32() -> None:
    """As GGUF keeps them; a whole number is the same number."""
    model = tiny_model("llama")
    before = fingerprint(model)
    model.config.rms_norm_eps = float(torch.tensor(model.config.rms_norm_eps, dtype=torch.float32))
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000, "factor": None}
    assert fingerprint(model) == before
    assert settings(model.config)["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}


def test_a_plan_for_other_settings_and_one_of_an_earlier_version_are_refused() -> None:
    model = tiny_model("llama")
    audit = headcount.audit(model, tiny_tokens(), metric="output", matmul_dtype="model")
    plan = headcount.plan(audit, cache=0.5)
    other = rebuilt(model, rope_parameters=LINEAR)
    with pytest.raises(HeadcountError, match="audit and plan this model first"):
        headcount.trim(other, plan, repair_output=False)
    plan.record = plan.record.model_copy(update={"fingerprint": weights_fingerprint(model)})
    with pytest.raises(HeadcountError, match=r"an earlier version of headcount.*audit and plan again"):
        headcount.trim(model, plan, repair_output=False)
