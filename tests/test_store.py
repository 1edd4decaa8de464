"""Files appear whole or not at all; run folders are ours or left alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from safetensors import SafetensorError

from headcount.core.errors import HeadcountError
from headcount.core.store import (
    MARKER,
    digest,
    open_run_folder,
    read_json,
    read_tensors,
    require_space,
    write_atomic,
    write_json,
    write_tensors,
    write_text,
)


class Point(pydantic.BaseModel):
    """A schema to read with."""

    x: float
    names: list[str] = []


def files_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_round_trips(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "er" / "a.txt", "ä\n")
    assert (tmp_path / "deep" / "er" / "a.txt").read_text(encoding="utf-8") == "ä\n"
    write_json(tmp_path / "p.json", Point(x=0.1, names=["ü"]))
    assert read_json(tmp_path / "p.json", Point) == Point(x=0.1, names=["ü"])
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(True)}
    write_tensors(tmp_path / "t.safetensors", tensors, {"kind": "test"})
    found = read_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert files_in(tmp_path) == {"deep", "p.json", "t.safetensors"}


def test_same_tensors_same_bytes(tmp_path: Path) -> None:
    a, b = torch.randn(3, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    write_tensors(tmp_path / "1", {"a": a, "b": b})
    write_tensors(tmp_path / "2", {"b": b, "a": a})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left to write"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left to write"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "no space left to write",
        ),
        (SafetensorError("something else"), "something else"),
    ],
)
def test_a_failed_write_is_one_line_and_leaves_what_was_there(tmp_path: Path, raised: Exception, said: str) -> None:
    place = tmp_path / "file"
    place.write_text("old")

    def fill(temporary: Path) -> None:
        temporary.write_text("half")
        raise raised

    with pytest.raises(HeadcountError, match=said) as caught:
        write_atomic(place, fill)
    assert str(place) in caught.value.message and caught.value.fix
    assert place.read_text() == "old"
    assert files_in(tmp_path) == {"file"}


def test_another_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fill(temporary: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomic(tmp_path / "file", fill)
    assert files_in(tmp_path) == set()


def test_space_is_asked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(2**30, 2**30 - 2**20, 2**20))
    with pytest.raises(HeadcountError, match=r"2 MiB are needed, 1 MiB are free"):
        require_space(tmp_path / "not" / "yet", 2**21)
    with pytest.raises(HeadcountError, match="no space left on the device"):
        write_tensors(tmp_path / "new" / "t", {"a": torch.zeros(2**18)})
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("place", ["file/below", "x" * 300])
def test_a_place_that_cannot_be_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadcountError, match="cannot write"):
        write_text(tmp_path / place, "a")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "not valid: the file"),
        (b"{", "not valid: the file"),
        (b"[1]", "not valid: the file"),
        (b'{"x": "near"}', "not valid: x: "),
        (b'{"x": 1, "names": [1]}', r"not valid: names\.0: "),
        (b"{}", "not valid: x: "),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 10**6, "not valid: the file"),
    ],
)
def test_json_that_does_not_fit_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    place = tmp_path / "p.json"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(HeadcountError, match=said) as caught:
        read_json(place, Point)
    assert str(place) in caught.value.message and caught.value.fix


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(HeadcountError, match="is a folder"):
        read_json(tmp_path, Point)
    with pytest.raises(HeadcountError, match="not a readable safetensors file"):
        read_tensors(tmp_path)
    with pytest.raises(HeadcountError, match="does not exist"):
        read_tensors(tmp_path / "none")


def test_cut_tensors_are_refused_wherever_they_are_cut(tmp_path: Path) -> None:
    place = tmp_path / "t.safetensors"
    write_tensors(place, {"a": torch.arange(40.0), "b": torch.ones(3)})
    whole = place.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for cut in (0, 4, 8, 9, header - 1, header, header + 1, len(whole) - 1):
        place.write_bytes(whole[:cut])
        with pytest.raises(HeadcountError, match="not a readable safetensors file"):
            read_tensors(place)


RECORD: dict[str, Any] = {"seed": 1, "tokens": 4096}


def test_the_same_run_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    assert open_run_folder(out, "audit", RECORD) == out
    write_text(out / "result", "1")
    open_run_folder(out, "audit", dict(reversed(RECORD.items())))
    with pytest.raises(HeadcountError, match=r"seed: 1 then, 2 now") as caught:
        open_run_folder(out, "audit", RECORD | {"seed": 2})
    assert "--overwrite" in str(caught.value)
    assert (out / "result").read_text() == "1"
    (out / "sub").mkdir()
    (out / "sub" / "x").write_text("")
    open_run_folder(out, "audit", RECORD | {"seed": 2}, overwrite=True)
    assert files_in(out) == {MARKER}
    open_run_folder(out, "audit", RECORD | {"seed": 2})


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "marker",
    [
        None,
        b"",
        b"not json",
        b"\xff",
        b"[]",
        b"3",
        b"[" * 10**5,
        b"{}",
        b'{"kind": "audit"}',
        b'{"kind": ["audit"], "inputs": {}}',
        b'{"kind": "audit", "inputs": []}',
        b'{"kind": "plan", "inputs": {"seed": 1, "tokens": 4096}}',
    ],
)
def test_what_is_not_ours_is_never_touched(tmp_path: Path, marker: bytes | None, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    if marker is not None:
        (tmp_path / MARKER).write_bytes(marker)
    before = files_in(tmp_path)
    with pytest.raises(HeadcountError, match=r"was not made by headcount|was made by 'plan'") as caught:
        open_run_folder(tmp_path, "audit", RECORD, overwrite)
    assert str(tmp_path) in caught.value.message and caught.value.fix == "choose another --out"
    assert files_in(tmp_path) == before and (tmp_path / "thesis.tex").read_text() == "years"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for place in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(HeadcountError, match=r"not a folder|cannot write"):
            open_run_folder(place, "audit", RECORD, overwrite=True)
    assert (tmp_path / "run").read_text() == "mine"
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "place")
    with pytest.raises(HeadcountError, match="cannot write"):
        open_run_folder(tmp_path / "nowhere", "audit", RECORD)


def test_a_linked_folder_is_replaced_where_it_is(tmp_path: Path) -> None:
    real = open_run_folder(tmp_path / "real", "audit", RECORD)
    (tmp_path / "link").symlink_to(real, target_is_directory=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    (real / "away").symlink_to(tmp_path / "kept", target_is_directory=True)
    open_run_folder(tmp_path / "link", "audit", {"seed": 3}, overwrite=True)
    assert (tmp_path / "link").is_symlink() and files_in(real) == {MARKER}
    assert (tmp_path / "kept" / "file").read_text() == "mine", "a link out of the folder is not followed"


def test_a_folder_killed_at_birth_is_taken_up(tmp_path: Path) -> None:
    """Killed between making the folder and renaming its marker; and what else a kill left is cleared away."""
    (tmp_path / f".{MARKER}.ab12_xyz.tmp").write_text('{"kind"')
    open_run_folder(tmp_path, "audit", RECORD)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".moments.safetensors.ab12_xyz.tmp").write_bytes(bytes(10))
    (tmp_path / ".my.tmp").write_text("not ours")
    open_run_folder(tmp_path, "audit", RECORD)
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {MARKER, ".my.tmp"}


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """kill -9 in the middle of a write: the reader sees the old content."""
    place = tmp_path / "file.json"
    write_json(place, {"x": 1})
    code = (
        "import sys, time; from pathlib import Path; from headcount.core.store import write_atomic\n"
        "def slow(place):\n"
        "    place.write_text('{\"x\": '); print('writing', flush=True); time.sleep(60)\n"
        f"write_atomic(Path({str(place)!r}), slow)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert read_json(place, Point) == Point(x=1)


def test_an_interrupted_overwrite_is_never_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = open_run_folder(tmp_path / "run", "audit", RECORD)
    (out / "a").mkdir()
    (out / "result").write_text("1")

    def killed(place: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            open_run_folder(out, "audit", {"seed": 2}, overwrite=True)
    for inputs in (RECORD, {"seed": 2}):
        with pytest.raises(HeadcountError, match="made from other inputs"):
            open_run_folder(out, "audit", inputs)
    open_run_folder(out, "audit", {"seed": 2}, overwrite=True)
    assert files_in(out) == {MARKER}


def test_the_marker_says_what_the_run_is_made_of(tmp_path: Path) -> None:
    open_run_folder(tmp_path / "r", "audit", {"files": ("a", "b")})
    assert json.loads((tmp_path / "r" / MARKER).read_text()) == {"kind": "audit", "inputs": {"files": ["a", "b"]}}
    open_run_folder(tmp_path / "r", "audit", {"files": ["a", "b"]})


def test_digests_tell_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("ä") == digest("ä".encode())
    assert digest("") != digest() and len(digest("x")) == 16
    assert digest("headcount") == "d9c5dd926446ed92", "the same on every machine and in every version"
