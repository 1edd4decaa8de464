"""The model card and the licence files of a trimmed folder."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run, tiny_model, tiny_tokenizer, tiny_tokens
from huggingface_hub import ModelCard

import headcount
from headcount.core.errors import HeadcountError
from headcount.pretrained.opening.loading import open_model
from headcount.pretrained.opening.places import Place
from headcount.pretrained.opening.source import Source, source_of
from headcount.trimming.trim.card import TRANSFORMERS, card, write_cost


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model's folder with a card, three licence files and files that only sound like such."""
    folder = tmp_path / "small model"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: some-terms\nlicense_link: LICENSE\ntags: [x]\n---\n# Theirs\n"
    )
    (folder / "LICENSE").write_text("the terms")
    (folder / "NOTICE.txt").write_text("a notice")
    (folder / "copying.md").write_text("more terms")
    (folder / "license_check.py").write_text("raise SystemExit('ran')")
    (folder / "NOTICES").mkdir()
    (folder / "LICENSE.txt").write_bytes(b"x" * (2**20 + 1))
    return folder


def planned(metric: str = "output") -> Any:
    audit = headcount.audit(tiny_model("llama"), tiny_tokens(), metric=metric, matmul_dtype="model", name="/a/b/tiny")  # type: ignore[arg-type]
    return headcount.plan(audit, cache=0.5)


def test_the_folder_has_a_card_and_the_licence(source: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    audit = ["--tokens", "192", "--context", "32", "--matmul-dtype", "model", "--text", text, "--out", tmp_path / "a"]
    assert run("audit", source, *audit) == 0
    assert run("plan", tmp_path / "a", "--cache", "0.5", "--out", tmp_path / "p") == 0
    assert run("trim", source, tmp_path / "p", "--out", tmp_path / "m") == 0
    made = tmp_path / "m"
    names = {file.name for file in made.iterdir()}
    assert {"README.md", "LICENSE", "NOTICE.txt", "copying.md"} <= names
    assert not names & {"license_check.py", "NOTICES", "LICENSE.txt"}
    assert (made / "LICENSE").read_text() == "the terms"
    read = ModelCard.load(made / "README.md")
    assert read.data.base_model == "small model" and read.data.library_name == "transformers"
    assert (read.data.license, read.data.license_name, read.data.license_link) == ("other", "some-terms", "LICENSE")
    assert "headcount" in (read.data.tags or [])
    assert "headcount audit 'small model' --metric fisher --tokens 192 --context 32 --seed 0 --text FILE" in read.text
    assert "headcount plan audit --cache 0.5 --form fast --allocator greedy --multiple 4" in read.text
    assert "headcount trim 'small model' plan --out model" in read.text
    assert "| cached numbers per token | 192 | 96 |" in read.text
    assert "Not measured yet" in read.text and "nats per token more loss" in read.text
    assert str(tmp_path) not in read.content
    assert open_model(made).model.config.model_type == "headcount_llama"  # a card and a licence are no obstacle
    capsys.readouterr()
    command = [
        "evaluate",
        source,
        made,
        "--windows",
        "2",
        "--context",
        "32",
        "--decode",
        "none",
        "--out",
        tmp_path / "e",
    ]
    assert run(*command) == 0
    assert "README.md" in capsys.readouterr().out.replace("\n", "")
    after = ModelCard.load(made / "README.md")
    assert after.data.to_dict() == read.data.to_dict() and "Not measured yet" not in after.text
    evaluation = headcount.Evaluation.open(tmp_path / "e")
    for kind, ratio in evaluation.perplexity_ratios(1).items():
        assert re.search(rf"\| {kind} \| [\d.]+ \| [\d.]+ \| {ratio:.3f} \|", after.text)
    assert f"{evaluation.record.models[1].mean('kl'):.4g} nats" in after.text
    assert "50.0% of the cache bytes" in after.text and "Against small model," in after.text
    assert run(*command, "--seed", "1", "--overwrite") == 0
    assert ModelCard.load(made / "README.md").text.count("KL divergence") == 1, "the newer one stands alone"


def test_links_out_of_the_folder_are_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (source / "LICENSE").unlink()
    (source / "LICENSE").symlink_to(tmp_path / "secret")
    (source / "README.md").unlink()
    (source / "README.md").symlink_to(tmp_path / "secret")
    (source / "COPYING").symlink_to("NOTICE.txt")
    with pytest.raises(HeadcountError, match="links outside its folder"):
        open_model(source)
    source_record = source_of(str(source), Place(source, None, {}, 0))  # nor by one who did not look the folder over
    assert [file.name for file in source_record.licence_files] == ["COPYING", "NOTICE.txt", "copying.md"]
    assert source_record.licence == {}


def test_a_hub_snapshot_is_called_by_its_name(tmp_path: Path) -> None:
    """Its files are links to the blobs beside it, and come along as files."""
    blobs, folder = tmp_path / "models--owner--some.model" / "blobs", None
    folder = blobs.parent / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    (blobs / "ab").write_text("the terms")
    (folder / "LICENSE").symlink_to("../../blobs/ab")
    source_record = source_of("owner/some.model", Place(folder, None, {}, 0))
    assert source_record.name == source_record.argument == "owner/some.model"
    assert [file.name for file in source_record.licence_files] == ["LICENSE"]
    assert source_of(str(folder), Place(folder, None, {}, 0)).name == "owner/some.model"


def test_of_a_gguf_file_only_the_header_counts(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("of something else")
    source_record = source_of(str(tmp_path / "m.gguf"), Place(tmp_path, "m.gguf", {}, 0, licence="mit"))
    assert source_record == Source("m", {"license": "mit"}, (), "m.gguf", "m.gguf")
    text = card(planned(), source_record, repaired=False, ridge=1e-2)
    assert (
        "de-quantised from m.gguf" in text
        and "license: mit" in text
        and "headcount trim m.gguf plan --no-repair" in text
    )


@pytest.mark.parametrize(
    "content", ["---\nlicense: [\n---\n", "---\n- a\n---\n", "no front matter", "---\nlicense: 3\n---", "\x00"]
)
def test_cards_that_say_nothing_readable(source: Path, content: str) -> None:
    (source / "README.md").write_text(content)
    assert source_of(str(source), Place(source, None, {}, 0)).licence == {}


def test_names_are_neither_markup_nor_yaml() -> None:
    name = 'x`<script>alert(1)</script>`\n---\n# "y": | [z](http://w)'
    text = card(planned(), Source(name), repaired=True, ridge=0.5)
    read = ModelCard(text)
    assert read.data.base_model == name and read.data.to_dict().keys() == {
        "base_model",
        "library_name",
        "pipeline_tag",
        "tags",
    }
    body = read.text
    assert "<script>" not in body and "](" not in body and "--ridge 0.5" in body
    assert "names no licence" in body


def test_a_model_that_was_opened_elsewhere_has_a_card_too(tmp_path: Path) -> None:
    headcount.trim(tiny_model("llama"), planned(), out=tmp_path / "m", matmul_dtype="model")
    read = ModelCard.load(tmp_path / "m" / "README.md")
    assert read.data.base_model == "tiny" and "/a/b" not in read.content


def test_only_our_cards_get_a_cost(tmp_path: Path) -> None:
    place = tmp_path / "m"
    headcount.trim(tiny_model("llama"), planned(), out=place, matmul_dtype="model")
    assert write_cost(place, r"a \1 cost") and r"a \1 cost" in (place / "README.md").read_text()
    (place / "README.md").write_text("# mine\n")
    assert not write_cost(place, "a cost") and (place / "README.md").read_text() == "# mine\n"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text(
        "<!-- headcount: measured cost --><!-- headcount: end of measured cost -->"
    )
    assert not write_cost(tmp_path / "theirs", "a cost") and not write_cost(tmp_path / "nowhere", "a cost")


def test_unused_layers_are_among_the_limits() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.o_proj.weight.zero_()
    audit = headcount.audit(model, tiny_tokens(), metric="output", matmul_dtype="model")
    text = card(headcount.plan(audit, cache=0.5), Source("tiny"), repaired=True, ridge=1e-2)
    assert "- Unused attention: layer 1 (its output is the same for every token)." in text


def test_the_versions_of_transformers_are_those_that_headcount_asks_for() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"transformers{TRANSFORMERS}" in dependencies


def test_help_says_where_it_loads(capsys: Any) -> None:
    assert run("trim", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "trust_remote_code=True" in said and '"import headcount"' in said and "transformers 5" in said
