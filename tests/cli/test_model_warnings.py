"""What the commands say of layers that are not used and of control tokens in the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import run, tiny_model, tiny_tokenizer

from headcount.core.store import read_tensors

AUDIT = ["--tokens", "192", "--context", "32", "--matmul-dtype", "model"]
LINE = "Unused attention: layer 1 (its output is the same for every token)."


@pytest.fixture
def dead_folder(tmp_path: Path) -> Path:
    """A model whose second layer is dead."""
    model = tiny_model("llama")
    for projection in (model.model.layers[1].self_attn.v_proj, model.model.layers[1].self_attn.k_proj):
        projection.weight.zero_()
        projection.bias.zero_()
    model.save_pretrained(tmp_path / "dead")
    tiny_tokenizer().save_pretrained(tmp_path / "dead")
    return tmp_path / "dead"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("metric", ["fisher", "whitened"])
def test_a_dead_layer_is_named_all_the_way(
    metric: str, dead_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, p, m, e = (tmp_path / name for name in "apme")
    assert run("audit", dead_folder, *AUDIT, "--metric", metric, "--text", text, "--out", a) == 0
    assert LINE in said(capsys)
    assert run("plan", a, "--cache", "0.5", "--out", p) == 0
    assert LINE in said(capsys)
    assert run("plan", a, "--cache", "0.5", "--out", p, "--json") == 0
    assert json.loads(said(capsys))["notes"] == [LINE]
    assert run("trim", dead_folder, p, "--out", m) == 0
    assert LINE in said(capsys)
    assert run("trim", dead_folder, p, "--out", m, "--json") == 0
    assert json.loads(said(capsys))["notes"] == [LINE]
    assert run("evaluate", dead_folder, m, "--windows", "2", "--context", "32", "--decode", "none", "--out", e) == 0
    assert run("report", a, p, e) == 0
    assert LINE in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--saturation", "--contexts", "16,32", "--tokens", "128"],
        ["--selection", "--context", "16", "--tokens", "64"],
    ],
)
def test_a_dead_layer_does_not_stop_the_other_audits(
    options: list[str], dead_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("audit", dead_folder, *options, "--text", text, "--out", tmp_path / "s", "--json") == 0
    assert json.loads(said(capsys))["layers" if "--selection" in options else "contexts"]


def test_control_tokens_in_a_file_are_text_and_counted(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>an <s>old</s> and a new text of the page</p>\n" * 40)
    a, p, m, e = (tmp_path / name for name in "apme")
    words = "Control tokens spelled out in the documents, such as </s>, were read as plain text: 80 in"
    assert run("audit", tiny_folder, *AUDIT, "--text", page, "--out", a) == 0
    assert f"{words} text." in said(capsys)
    ids = read_tensors(a / "tokens.safetensors")["text"]
    assert bool((ids[:, 0] == 1).all()) and not bool((ids[:, 1:] < 3).any()), "but for the one that begins a window"
    assert run("audit", tiny_folder, *AUDIT, "--text", page, "--out", a, "--json") == 0
    audit = json.loads(said(capsys))
    assert audit["texts"][0]["control_tokens"] == 80 and words in audit["notes"][0]
    assert run("plan", a, "--out", p) == 0 and run("trim", tiny_folder, p, "--out", m) == 0
    command: list[Any] = ["evaluate", tiny_folder, m, "--windows", "2", "--context", "32", "--decode", "none"]
    capsys.readouterr()
    assert run(*command, "--text", f"pages={page}", "--out", e) == 0
    assert f"{words} pages." in said(capsys)
    assert run(*command, "--text", f"pages={page}", "--out", e, "--json") == 0
    found = json.loads(said(capsys))
    assert found["control_tokens"]["pages"] == 80 and found["control_tokens"]["prose"] == 0
