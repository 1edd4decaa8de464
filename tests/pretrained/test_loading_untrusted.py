"""Model folders are untrusted: damaged weights, paths that lead away, code and pickles are refused in one line."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loading_cases import edit, make_folder, make_good, make_refusal  # noqa: F401 (fixtures)
from safetensors.torch import load_file, save_file

from headcount.core.errors import HeadcountError
from headcount.pretrained.opening.loading import open_model

# --- weights ----------------------------------------------------------------------------------------------------------


def test_no_weights(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    error = refusal(folder)
    assert str(folder) in error.message and "has no weights (model.safetensors)" in error.message


@pytest.mark.parametrize("where", ["nothing", "length", "header", "header end", "first tensor", "last byte"])
def test_cut_weights(where: str, folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    cuts = {"nothing": 0, "length": 5, "header": header // 2, "header end": header, "first tensor": header + 40}
    file.write_bytes(whole[: cuts.get(where, len(whole) - 1)])
    error = refusal(folder)
    assert str(file) in error.message and "truncated or damaged" in error.message and error.fix == "fetch it again"


def test_weights_that_are_something_else(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"<!DOCTYPE html>" * 100, b"\xff" * 100, struct.pack("<Q", 2**63) + whole[8:], whole + b"more"):
        file.write_bytes(content)
        assert "truncated or damaged" in refusal(folder).message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(value: float, folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    error = refusal(folder)
    assert "model.layers.1.self_attn.k_proj.weight has NaN or infinite weights" in error.message


def index_of(folder: Path, weight_map: Any) -> Path:
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("shard", ["../away.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", 7, None, "\0"])
def test_an_index_that_leads_away(shard: Any, folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "away.safetensors")
    index = index_of(folder, {"lm_head.weight": shard, "model.norm.weight": "model-00001.safetensors"})
    error = refusal(folder)
    assert str(folder) in error.message
    if isinstance(shard, str) and "/" in shard:
        assert f"{index} names {shard!r}, outside its folder" in error.message


def test_an_index_that_names_what_is_not_there(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    index_of(folder, {"a": "model-00001.safetensors", "b": "model-00002.safetensors"})
    error = refusal(folder)
    assert f"{folder} has no model-00002.safetensors, which its index names" in error.message


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 10**5])
def test_an_index_that_is_none(content: str, folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    index = index_of(folder, {})
    index.write_text(content)
    assert str(index) in refusal(folder).message


def test_links_that_leave_the_folder(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    weights = folder / "model.safetensors"
    away = folder.parent / "away.safetensors"
    weights.rename(away)
    weights.symlink_to(away)
    error = refusal(folder)
    assert f"{weights} links outside its folder" in error.message
    weights.unlink()
    away.rename(weights)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to("/etc/passwd")
    assert "x.jinja links outside" in refusal(folder).message
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "loop").symlink_to("loop")
    (folder / "inner.json").symlink_to("config.json")
    open_model(folder)


def test_a_hub_snapshots_links_are_followed(good: Path, tmp_path: Path) -> None:
    blobs, place = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    place.mkdir(parents=True)
    for number, file in enumerate(good.iterdir()):
        shutil.copy(file, blobs / str(number))
        (place / file.name).symlink_to(f"../../blobs/{number}")
    assert open_model(place).fingerprint == open_model(good).fingerprint


# --- code -------------------------------------------------------------------------------------------------------------

TRAP = "from pathlib import Path\nPath({!r}).write_text('ran')\nraise RuntimeError('the code ran')\n"


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_along_is_not_run(
    place: str, folder: Path, tmp_path: Path, refusal: Callable[..., HeadcountError]
) -> None:
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(TRAP.format(str(ran)))
    classes = {
        "config.json": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
        "tokenizer_config.json": {"AutoTokenizer": ["code.Tokenizer", None]},
    }
    edit(folder / place, lambda value: value.update(auto_map=classes[place]))
    error = refusal(folder)
    assert str(folder / place) in error.message and "--trust-remote-code" in str(error.fix)
    assert not ran.exists()


def test_a_generate_of_its_own_is_not_run(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(TRAP.format(str(ran)))
    assert "generate" not in vars(open_model(folder).model)
    assert not ran.exists()


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let transformers keep the code that it copies in a place of the test's own."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("transformers_modules")}
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.usefixtures("own_modules")
def test_trusted_code_is_run(folder: Path) -> None:
    """With trust the model's own classes are used."""
    (folder / "code_of_mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    pass\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n    mine = True\n"
    )
    names = {"AutoConfig": "code_of_mine.Config", "AutoModelForCausalLM": "code_of_mine.Model"}
    edit(folder / "config.json", lambda config: config.update(auto_map=names))
    assert open_model(folder, trust_remote_code=True).model.mine


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_refused_unless_allowed(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    wanted = open_model(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    error = refusal(folder)
    assert "only a pickle checkpoint (pytorch_model.bin)" in error.message and "--allow-pickle" in str(error.fix)
    assert open_model(folder, allow_pickle=True).fingerprint == wanted.fingerprint


def test_a_pickle_that_runs_code_does_not_run_it(
    folder: Path, tmp_path: Path, refusal: Callable[..., HeadcountError]
) -> None:
    (folder / "model.safetensors").unlink()
    ran = tmp_path / "ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb(ran)}))
    refusal(folder)
    refusal(folder, allow_pickle=True)
    torch.save({"a": Bomb(ran)}, folder / "pytorch_model.bin")
    refusal(folder, allow_pickle=True)
    assert not ran.exists()


def test_safetensors_are_preferred_to_pickles(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"rubbish")
    open_model(folder)
    open_model(folder, allow_pickle=True)


def test_pickle_indices_stay_in_the_folder(folder: Path, refusal: Callable[..., HeadcountError]) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../x.bin"}}))
    assert "outside its folder" in refusal(folder, allow_pickle=True).message
