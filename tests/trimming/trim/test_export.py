"""Trimmed checkpoints: load with and without headcount, resume, refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DECODERS, run_without_headcount, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM

import headcount
from headcount.core.errors import HeadcountError
from headcount.pretrained.opening.loading import open_model
from headcount.pretrained.runtimes.origin import origin_of
from headcount.trimming.trim.record import TrimRecord


def exported(name: str, out: Path, form: str = "small") -> tuple[Any, Any]:
    model = tiny_model(name)
    audit = headcount.audit(model, tiny_tokens(), metric="output", matmul_dtype="model")
    plan = headcount.plan(audit, cache=0.5, form=form)
    return model, headcount.trim(model, plan, out=out, matmul_dtype="model")


@pytest.mark.parametrize("name", DECODERS)
def test_a_folder_loads_with_installed_code_alone(name: str, tmp_path: Path) -> None:
    _, trimmed_model = exported(name, tmp_path / "out")
    ids = tiny_tokens(2, 20)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(read).__module__ == "headcount.pretrained.runtimes.modeling_headcount"
    opened = open_model(tmp_path / "out", tokenizer=False)
    assert opened.spec.layers[0].form in ("fast", "small")
    tensors = trimmed_model.state_dict()
    for again in (read, opened.model):
        assert again.state_dict().keys() == tensors.keys()
        assert all(torch.equal(tensor, tensors[own_name]) for own_name, tensor in again.state_dict().items())
        # The same weights at other places in memory: products may be summed in another order there.
        torch.testing.assert_close(again(ids).logits, trimmed_model(ids).logits, rtol=0, atol=1e-5)


def test_a_folder_loads_where_headcount_is_not(tmp_path: Path) -> None:
    """A process that cannot import headcount runs the file that travels with the checkpoint."""
    _, trimmed_model = exported("llama", tmp_path / "out")
    ids, logits, made = run_without_headcount(tmp_path / "out", tmp_path)
    assert torch.equal(logits, trimmed_model(ids).logits)
    assert torch.equal(made, trimmed_model.generate(ids, max_new_tokens=5))


def test_importing_headcount_after_transformers_registers_too() -> None:
    script = (
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "import headcount\n"
        "print(type(AutoConfig.for_model('headcount_llama')).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "headcount.pretrained.runtimes.modeling_headcount"


def test_what_is_written(tmp_path: Path) -> None:
    model, _ = exported("qwen2", tmp_path / "out", form="fast")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "modeling_headcount.py", "generation_config.json", "trim.json"} <= names
    assert not any(name.endswith((".bin", ".tmp")) or name == "work" for name in names)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "headcount_qwen2"
    assert config["auto_map"]["AutoModelForCausalLM"].startswith("modeling_headcount.")
    record = TrimRecord.open(tmp_path / "out")
    assert record.attention_parameters_dense == headcount.read_spec(model).attention_params
    assert record.cache_ratio == 0.5


def test_a_folder_keeps_the_digest_of_its_plan(tmp_path: Path) -> None:
    model = tiny_model("llama")
    audit = headcount.audit(model, tiny_tokens(), metric="output", matmul_dtype="model", out=tmp_path / "a")
    # Two plans that ask for the same ranks: nothing but the digest tells their models apart.
    plan, other = (headcount.plan(audit, cache=cache, out=tmp_path / f"p{cache}") for cache in (0.5, 0.501))
    assert plan.spec == other.spec and plan.record.digest != other.record.digest
    trimmed_model = headcount.trim(model, plan, out=tmp_path / "m", repair_output=False)
    read = headcount.Plan.open(tmp_path / "p0.5").record
    assert read.digest == plan.record.digest == plan.record.model_copy(update={"audit": "elsewhere"}).digest
    origins = [origin_of(trimmed_model.config), origin_of(open_model(tmp_path / "m", tokenizer=False).model.config)]
    assert [origin.plan for origin in origins if origin] == [read.digest] * 2
    assert TrimRecord.open(tmp_path / "m").plan == read.digest


def test_records_are_checked_when_they_are_read(tmp_path: Path) -> None:
    _, trimmed_model = exported("llama", tmp_path / "out")
    path = tmp_path / "out" / "trim.json"
    record = json.loads(path.read_text())
    # Folders made before plans had digests and audits had notes still open, and are not made again.
    del record["plan"], record["notes"]
    path.write_text(json.dumps(record))
    old = TrimRecord.open(tmp_path / "out")
    assert old.plan is None and old.notes == []
    _, again = exported("llama", tmp_path / "out")
    assert again.state_dict().keys() == trimmed_model.state_dict().keys() and "plan" not in json.loads(path.read_text())
    for change, says in (
        ({"form": "other"}, "form"),
        ({"cache_ratio": "half"}, "cache_ratio"),
        ({"depth": 3}, "depth"),
        ({"layers": [{"layer": 0, "k_rank": 0, "v_rank": 1}]}, "k_rank"),
    ):
        path.write_text(json.dumps(record | change))
        with pytest.raises(HeadcountError, match=rf"trim\.json is not valid: .*{says}"):
            TrimRecord.open(tmp_path / "out")
        with pytest.raises(HeadcountError, match=r"trim\.json is not valid"):
            exported("llama", tmp_path / "out")
    with pytest.raises(HeadcountError, match="no finished trimmed model"):
        TrimRecord.open(tmp_path)


def test_a_finished_folder_is_read_and_a_foreign_one_is_refused(tmp_path: Path) -> None:
    _, trimmed_model = exported("llama", tmp_path / "out")
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    _, again = exported("llama", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp
    ids = tiny_tokens(1, 8)
    assert torch.equal(trimmed_model(ids).logits, again(ids).logits)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("mine")
    with pytest.raises(HeadcountError, match="was not made by headcount"):
        exported("llama", tmp_path / "theirs")
    assert [file.name for file in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]
    with pytest.raises(HeadcountError, match="made from other inputs"):
        exported("llama", tmp_path / "out", form="fast")
