"""One front door: the functions of ``headcount`` and the command line write the same folders, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import run, tiny_model, tiny_tokens

import headcount
from headcount.core.errors import HeadcountError
from headcount.pipeline import record_costs
from headcount.trimming.evaluate.kinds import default_texts, user_texts

TIMED = {"timing.json"}
"""Files that hold seconds, which differ from run to run."""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path, but those of ``TIMED``."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in TIMED)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def by_command(metric: str, *repair: str) -> None:
    """Audit, plan, trim and evaluate the model in ``tiny`` on ``text.txt``, by the command line."""
    own = ("--matmul-dtype", "model")
    read = ("--tokens", "192", "--context", "32", "--metric", metric, "--text", "text.txt")
    assert run("audit", "tiny", *read, *own, "--out", "runs/audit") == 0
    assert run("plan", "runs/audit", "--cache", "0.6", "--out", "runs/plan") == 0
    assert run("trim", "tiny", "runs/plan", *own, *repair, "--out", "runs/model") == 0
    asked = ("--windows", "2", "--context", "32", "--decode", "none", "--text", "letters=text.txt")
    assert run("evaluate", "tiny", "runs/model", *asked, "--out", "runs/evaluation") == 0


def by_function(metric: str, *repair: str) -> None:
    """The same in Python."""
    opened = headcount.open_model("tiny")
    read = {"metric": metric, "context": 32, "texts": ["text.txt"], "matmul_dtype": "model"}
    audit = headcount.audit(opened, 192, **read, out="runs/audit")  # type: ignore[arg-type]
    plan = headcount.plan(audit, cache=0.6, out="runs/plan")
    headcount.trim(opened, plan, matmul_dtype="model", repair_output=not repair, out="runs/model")
    texts = {**default_texts(), **user_texts({"letters": Path("text.txt")})}
    models = [opened, headcount.open_model("runs/model")]
    evaluation = headcount.evaluate(models, texts=texts, windows=2, context=32, decode=None, out="runs/evaluation")
    record_costs([model.name for model in models], evaluation)


@pytest.mark.parametrize(("metric", "repair"), [("fisher", ()), ("output", ("--no-repair",))])
def test_python_and_the_command_line_write_the_same_folders(
    metric: str, repair: tuple[str, ...], tiny_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_folder / "LICENSE").write_text("the terms")
    made = []
    for name, way in (("command", by_command), ("function", by_function)):
        place = tmp_path / name
        shutil.copytree(tiny_folder, place / "tiny")
        shutil.copy(text, place / "text.txt")
        monkeypatch.chdir(place)
        way(metric, *repair)
        made.append(contents(place / "runs"))
    first, second = made
    assert first.keys() == second.keys()
    assert [file for file in first if first[file] != second[file]] == []
    # All that a user gets: evidence, plan, a checkpoint with tokenizer, licence and a card with its cost, qualities.
    assert {
        *("audit/audit.json", "audit/moments.safetensors", "audit/tokens.safetensors", "plan/plan.json"),
        *("model/model.safetensors", "model/tokenizer.json", "model/trim.json", "model/LICENSE", "model/README.md"),
        "evaluation/evaluation.json",
    } <= first.keys()
    assert b"KL divergence" in first["model/README.md"]
    # One goes on in the folder of the other: the same inputs, nothing is made again.
    monkeypatch.chdir(tmp_path / "command")
    by_function(metric, *repair)
    assert contents(tmp_path / "command" / "runs") == first


def test_parts_of_an_opened_model_make_the_same_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    opened = headcount.open_model(tiny_folder)
    audit = headcount.audit(opened, {"text": tiny_tokens()}, metric="output", matmul_dtype="model")
    assert audit.record.model == str(tiny_folder) and audit.folder is None
    plan = headcount.plan(audit)
    options = {"matmul_dtype": "model", "ridge": 0.1}
    whole = headcount.trim(opened, plan, out=tmp_path / "whole", **options)  # type: ignore[arg-type]
    headcount.trim(
        opened.model,
        plan,
        tokenizer=opened.tokenizer,
        source=opened.source,
        out=tmp_path / "parts",
        **options,  # type: ignore[arg-type]
    )
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    memory = headcount.trim(opened, plan, **options)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in memory.state_dict().items())


def test_token_ids_for_the_repair_are_an_input_and_are_named_on_the_card(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plan = headcount.plan(headcount.audit(model, tiny_tokens(), metric="output", matmul_dtype="model"))
    place = tmp_path / "m"
    headcount.trim(model, plan, tokens=tiny_tokens(seed=5), matmul_dtype="model", out=place)
    assert "on token ids passed in Python" in (place / "README.md").read_text()
    with pytest.raises(HeadcountError, match="made from other inputs"):
        headcount.trim(model, plan, matmul_dtype="model", out=place)


def test_what_an_audit_cannot_read_is_refused(text: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(HeadcountError, match="without a tokenizer cannot read text"):
        headcount.audit(model)
    with pytest.raises(HeadcountError, match="both token ids and texts"):
        headcount.audit(model, tiny_tokens(), texts=[text])
