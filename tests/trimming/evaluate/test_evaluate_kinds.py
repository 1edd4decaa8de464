"""Kinds of text: groups, the user's own, and the built-in ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headcount.core.errors import HeadcountError
from headcount.pretrained.text.texts import CALIBRATED, UNSEEN, documents
from headcount.trimming.evaluate.kinds import cut, default_texts, group_of, user_texts


def test_groups() -> None:
    assert {group_of(kind) for kind in (*CALIBRATED, "self")} == {"calibrated"}
    assert {group_of(kind) for kind in UNSEEN} == {"unseen"}
    assert group_of("mail") == "other"


def test_default_texts_are_held_out() -> None:
    texts = default_texts()
    assert list(texts) == [*CALIBRATED, *UNSEEN]
    for kind in CALIBRATED:
        used = {document.name for document in documents(kind, "calibration")}
        assert used and not used & {document.name for document in texts[kind]}


def test_user_texts(tmp_path: Path) -> None:
    file = tmp_path / "mail.txt"
    file.write_text("dear all", encoding="utf-8")
    assert user_texts({"mail": file})["mail"][0].text == "dear all"
    for name in ("prose", "self", "licences"):
        with pytest.raises(HeadcountError, match="built-in kind"):
            user_texts({name: file})
    with pytest.raises(HeadcountError, match="no name"):
        user_texts({" ": file})
    with pytest.raises(HeadcountError, match="does not exist"):
        user_texts({"mail": tmp_path / "none"})


def test_tensors_are_taken_whole() -> None:
    ids = torch.arange(24, dtype=torch.int32).view(3, 8)
    (text,) = cut({"self": ids}, None, 1, 512, 0)
    assert torch.equal(text.ids, ids.long()) and text.ids.dtype == torch.long
    assert (text.stride, text.group) == (8, "calibrated")
