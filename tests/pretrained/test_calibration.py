"""The default mixture of text, and what is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from tiny_files import tiny_tokenizer

from headcount.core.errors import HeadcountError
from headcount.pretrained.families import read_spec
from headcount.pretrained.opening.loading import OpenModel, fingerprint
from headcount.pretrained.text.calibration import KEPT_WINDOWS, calibration_tokens, counted_windows
from headcount.pretrained.text.texts import Document


def opened(family: str = "llama", tokenizer: bool = True) -> OpenModel:
    model = tiny_model(family)
    own = tiny_tokenizer("<s> $A") if tokenizer else None
    return OpenModel("tiny", model, own, read_spec(model), fingerprint(model))


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small stand-in for the built-in kinds, which ``test_texts`` looks at."""

    def documents(kind: str, split: str) -> list[Document]:
        assert split == "calibration"
        return [Document(f"{kind}{number}", f"{kind} {number}. " * 20) for number in range(10)]

    monkeypatch.setattr("headcount.pretrained.text.calibration.documents", documents)


@pytest.mark.usefixtures("few_documents")
def test_the_mixture(tmp_path: Path) -> None:
    """140 windows of 512 tokens at full scale, in windows of 32; the model's own text is kept in the folder."""
    found = calibration_tokens(opened(), context=32, scale=0.01, folder=tmp_path)
    assert {kind: tuple(ids.shape) for kind, ids in found.items()} == {
        "prose": (8, 32),
        "code": (8, 32),
        "self": (6, 32),
    }
    assert all((ids[:, 0] == 1).all() and ids.dtype == torch.int64 for ids in found.values())
    assert (tmp_path / "self-000.safetensors").is_file()
    again = calibration_tokens(opened(), context=32, scale=0.01)
    assert all(torch.equal(found[kind], again[kind]) for kind in found)
    other = calibration_tokens(opened(), context=32, scale=0.01, seed=1)
    assert not any(torch.equal(found[kind], other[kind]) for kind in found)


@pytest.mark.usefixtures("few_documents")
def test_an_encoder_writes_no_text_of_its_own() -> None:
    assert set(calibration_tokens(opened("bert"), context=32, scale=0.001)) == {"prose", "code"}


def test_the_users_files_take_the_place_of_the_mixture(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name * 50)
    found = calibration_tokens(opened(), context=11, texts=[tmp_path / "a", str(tmp_path / "b")])
    assert set(found) == {"text"} and found["text"].shape == (10, 11)
    assert sorted(found["text"][:, 1:].flatten().tolist()) == [4] * 50 + [5] * 50


@pytest.mark.parametrize(
    ("own", "options", "said"),
    [
        ({"tokenizer": False}, {}, "tiny has no tokenizer"),
        ({}, {"context": 1}, "a context of 1 tokens is too short"),
        ({}, {"context": 129}, "a context of 129 tokens is beyond the model's 128 positions"),
        ({"family": "gpt2"}, {"context": 129}, "a context of 129 tokens is beyond the model's 128 positions"),
        ({}, {"texts": ["no such file"], "context": 32}, "no such file does not exist"),
    ],
)
def test_refusals(own: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(HeadcountError, match=said) as caught:
        calibration_tokens(opened(**own), **options)
    assert caught.value.fix


def test_counted_windows_keep_the_proportion() -> None:
    windows = {kind: torch.arange(count)[:, None] for kind, count in KEPT_WINDOWS.items()}
    assert {kind: len(ids) for kind, ids in counted_windows(windows, 72).items()} == {
        "prose": 16,
        "code": 16,
        "self": 40,
    }
    assert {kind: len(ids) for kind, ids in counted_windows(windows, 900).items()} == KEPT_WINDOWS, "all there are"
    assert {kind: len(ids) for kind, ids in counted_windows(windows, 1).items()} == dict.fromkeys(KEPT_WINDOWS, 1)
    assert counted_windows({"text": torch.zeros(9, 4)}, 5)["text"].shape == (5, 4)
