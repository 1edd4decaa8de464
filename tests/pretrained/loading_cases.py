"""What tests of opening share: a tiny model's folder to be spoilt, and what every refusal must be."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_files import save_tiny

from headcount.core.errors import HeadcountError
from headcount.pretrained.opening.loading import open_model


@pytest.fixture(name="good", scope="module")
def make_good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder; tests copy it."""
    folder = tmp_path_factory.mktemp("good")
    save_tiny(folder)
    return folder


@pytest.fixture(name="folder")
def make_folder(good: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "model"))


class NoInput:
    """Standard input that must not be read: nobody is there to answer."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("standard input was looked at")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(f.relative_to(folder)): (f.lstat().st_size, f.lstat().st_mtime_ns) for f in folder.rglob("*")}


@pytest.fixture(name="refusal")
def make_refusal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., HeadcountError]:
    """Open something that must be refused: in one line with a mend, silently, leaving everything as it was."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setattr(sys, "stdin", NoInput())

    def refuse(source: Path | str, **options: Any) -> HeadcountError:
        before = snapshot(tmp_path)
        with pytest.raises(HeadcountError) as caught:
            open_model(source, **options)
        error = caught.value
        assert error.exit_code == 2 and error.fix
        assert "\n" not in str(error) and len(str(error)) < 500
        assert snapshot(tmp_path) == before
        assert capfd.readouterr() == ("", "")
        return error

    return refuse


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")
