"""Text: kinds, splits, files and windows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_files import ALPHABET, tiny_tokenizer

from headcount.core.errors import HeadcountError
from headcount.pretrained.text.texts import (
    CALIBRATED,
    UNSEEN,
    Document,
    block_prefix,
    check_vocabulary,
    cut_blocks,
    documents,
    read_file,
)


@pytest.mark.parametrize("kind", [*CALIBRATED, "library"])
def test_splits_are_disjoint_and_everything(kind: str) -> None:
    calibration, evaluation = documents(kind, "calibration"), documents(kind, "evaluation")
    names = [{document.name for document in part} for part in (calibration, evaluation)]
    assert not names[0] & names[1]
    assert len(names[0]) == len(calibration) and len(names[1]) == len(evaluation), "names are unique"
    texts = [{document.text for document in part} for part in (calibration, evaluation)]
    assert not texts[0] & texts[1]
    assert 0.15 < len(evaluation) / (len(calibration) + len(evaluation)) < 0.35  # one in four, by hash
    assert all(document.text.strip() for document in calibration + evaluation)


@pytest.mark.parametrize("kind", [*CALIBRATED, "descriptions"])
def test_documents_are_the_same_every_time(kind: str) -> None:
    assert documents(kind, "evaluation") == documents(kind, "evaluation")


def test_a_documents_split_depends_on_its_name_alone() -> None:
    """These are where they were when the published figures were made."""
    prose = {document.name for document in documents("prose", "evaluation")}
    known = {
        "assert": False,
        "import": False,
        "lambda": False,
        "try": True,
        "class": False,
        "with": False,
        "yield": False,
        "numbers": False,
    }
    assert {name: name in prose for name in known} == known


def test_the_library_is_source_that_code_has_not() -> None:
    """And nothing that is held out is in any training half, whatever copies a distribution's Python has of a file."""
    kinds = (*CALIBRATED, "library")
    train = {kind: {document.text for document in documents(kind, "calibration")} for kind in kinds}
    held_out = {kind: {document.text for document in documents(kind, "evaluation")} for kind in kinds}
    library = train["library"] | held_out["library"]
    assert not library & (train["code"] | held_out["code"])
    assert not set.union(*train.values()) & set.union(*held_out.values())
    assert sum(map(len, library)) > 2_000_000


@pytest.fixture(scope="module")
def licences() -> list[Document]:
    """Made once: the lists of files of all distributions are read for them."""
    return documents("licences", "evaluation")


def test_unseen_kinds_are_never_calibrated_on(licences: list[Document]) -> None:
    assert UNSEEN == ("licences", "descriptions")
    assert documents("descriptions", "calibration") == []
    for everything in (licences, documents("descriptions", "evaluation")):
        assert sum(len(document.text) for document in everything) > 20_000


def test_licences_are_each_wording_once(licences: list[Document]) -> None:
    wordings = ["".join(document.text.split()) for document in licences]
    assert len(set(wordings)) == len(wordings)


def test_an_unknown_kind_is_refused_with_the_list() -> None:
    with pytest.raises(HeadcountError, match=r"kind of text 'poems'; known kinds: prose, code, library, licences"):
        documents("poems", "evaluation")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        ("naïve".encode("latin-1"), r"is not UTF-8 text \(byte 2\)"),
        ("text".encode("utf-16"), r"is not UTF-8 text \(byte 0\)"),
        (b"\x00\xff", r"is not UTF-8 text \(byte 1\)"),
        (None, "does not exist"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HeadcountError, match=said) as caught:
        read_file(path)
    assert str(path) in caught.value.message and caught.value.fix


def test_a_folder_or_a_place_below_a_file_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(HeadcountError, match="is a folder"):
        read_file(tmp_path)
    (tmp_path / "file").write_text("hello")
    with pytest.raises(HeadcountError, match="cannot be read"):
        read_file(tmp_path / "file" / "below")
    assert read_file(tmp_path / "file") == Document("file", "hello")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hello")
    path.chmod(0)
    with pytest.raises(HeadcountError, match="Permission denied"):
        read_file(path)


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        ("$A", []),
        ("<s> $A", [1]),
        ("$A </s>", []),
        ("<s> $A </s>", [1]),
        ("</s> $A", [2]),
        ("<s> <pad> $A </s>", [1, 0]),
    ],
)
def test_the_prefix_is_what_stands_before_a_text(template: str, prefix: list[int]) -> None:
    assert block_prefix(tiny_tokenizer(template)) == prefix


DOCS = [Document(f"d{number}", f"{letter} " * 100) for number, letter in enumerate("abcdefgh")]


def windows_of(template: str = "$A", count: int = 100, context: int = 20, seed: int = 0) -> torch.Tensor:
    return cut_blocks(tiny_tokenizer(template), "text", DOCS, count, context, seed).ids


@pytest.mark.parametrize(("template", "prefix"), [("$A", []), ("<s> $A </s>", [1])])
def test_windows_are_runs_of_the_text(template: str, prefix: list[int]) -> None:
    """Together, in the order of the stream, they are the documents in a seeded order, each character once."""
    ids = windows_of(template)
    stride = 20 - len(prefix)
    assert ids.dtype == torch.int64 and ids.shape == (1600 // stride, 20)
    assert all(row[: len(prefix)].tolist() == prefix for row in ids)
    stream = "".join(ALPHABET[token] for row in ids for token in row[len(prefix) :])
    whole = "".join(sorted(document.text for document in DOCS))
    order = list(dict.fromkeys(stream.replace(" ", "")))
    assert sorted(order) == list("abcdefgh")
    assert stream == "".join(f"{letter} " * 100 for letter in order)[: len(stream)]
    assert len(whole) - len(stream) < stride, "only the rest that fills no window is left out"


def test_windows_are_seeded() -> None:
    few = windows_of(count=7)
    assert few.shape == (7, 20) and torch.equal(few, windows_of(count=7))
    assert not torch.equal(few, windows_of(count=7, seed=1))
    everything = {tuple(row) for row in windows_of().tolist()}
    assert {tuple(row) for row in few.tolist()} <= everything
    letters = {ALPHABET[row[0]].strip() or ALPHABET[row[1]] for row in few.tolist()}
    assert len(letters) >= 4, "a small count is spread over the documents"


def test_more_windows_than_there_are_give_all() -> None:
    assert torch.equal(windows_of(count=10**6), windows_of(count=80))


def test_the_digest_is_of_the_documents() -> None:
    tokenizer = tiny_tokenizer()
    own = cut_blocks(tokenizer, "text", DOCS, 3, 20)
    assert own.kind == "text" and own.text_digest == cut_blocks(tokenizer, "text", DOCS, 5, 9, 1).text_digest
    assert own.text_digest != cut_blocks(tokenizer, "text", DOCS[:-1], 3, 20).text_digest


@pytest.mark.parametrize(
    ("docs", "count", "context", "said"),
    [
        ([Document("a", "short")], 5, 20, "the given text has 5 tokens, less than one window of 20"),
        ([], 5, 20, "has 0 tokens"),
        (DOCS, 0, 20, "0 windows are none"),
        (DOCS, -1, 20, "-1 windows"),
        (DOCS, 5, 2, "a context of 2 tokens is too short; use at least 3"),
        (DOCS, 5, -7, "a context of -7 tokens is too short"),
    ],
)
def test_what_gives_no_window_is_refused(docs: list[Document], count: int, context: int, said: str) -> None:
    with pytest.raises(HeadcountError, match=said):
        cut_blocks(tiny_tokenizer("<s> $A"), "text", docs, count, context)


def test_a_text_of_exactly_one_window() -> None:
    found = cut_blocks(tiny_tokenizer("<s> $A"), "text", [Document("a", "abcd")], 5, 5)
    assert found.ids.tolist() == [[1, *range(4, 8)]]


def test_vocabularies_are_compared() -> None:
    tokenizer = tiny_tokenizer()
    check_vocabulary(tokenizer, len(ALPHABET))
    check_vocabulary(tokenizer, 10**6)
    with pytest.raises(HeadcountError, match=rf"token '9' has id {len(ALPHABET) - 1}, but the model has 79"):
        check_vocabulary(tokenizer, len(ALPHABET) - 1)
    check_vocabulary(tokenizer, 50, own=50)
    with pytest.raises(HeadcountError, match="has id 49, but the model has 49"):
        check_vocabulary(tokenizer, 49, own=50)
    with pytest.raises(HeadcountError, match="has no tokens"):
        check_vocabulary(tokenizer, 50, own=0)
