"""Files and run folders: written atomically, validated against a schema on reading, never overwriting others' files.

A *run folder* is a directory that a command owns. Its ``headcount-run.json`` records which command created it
(``kind``) and from what (``inputs``); the same command with the same inputs resumes in it, any other use is
rejected. Files appear in it complete or not at all: each is written to a temporary file in the same directory and then
renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic

from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject

if TYPE_CHECKING:
    import torch

MARKER = "headcount-run.json"
_ELSEWHERE = "free some, or choose another --out"
Schema = TypeVar("Schema", bound=pydantic.BaseModel)


@contextlib.contextmanager
def named_disk_errors(path: Path) -> Iterator[None]:
    """Convert a full disk or a permission error into a one-line ``HeadcountError``."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HeadcountError(f"no space left to write {path}", fix=_ELSEWHERE) from error
        reason = error.strerror or str(error)
        raise HeadcountError(f"cannot write {path}: {reason}", fix="choose another --out") from error
    except SafetensorError as error:  # its text contains the system error
        if f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error):
            raise HeadcountError(f"no space left to write {path}", fix=_ELSEWHERE) from error
        raise HeadcountError(f"cannot write {path}: {error}", fix="choose another --out") from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise early if the disk of ``folder`` has less than ``needed_bytes`` free."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise HeadcountError(
            f"no space left on the device of {folder}: {needed_bytes / 2**20:,.0f} MiB are needed, "
            f"{free / 2**20:,.0f} MiB are free",
            fix=_ELSEWHERE,
        )


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary path beside ``path``, then rename, so that readers never see a partial file."""
    with named_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda place: _fill(place, text))


def _fill(place: Path, text: str) -> None:
    place.write_text(text, encoding="utf-8")


def write_json(path: Path, value: pydantic.BaseModel | Mapping[str, Any]) -> None:
    """Write a pydantic object or a mapping as JSON atomically."""
    text = value.model_dump_json(indent=1) if isinstance(value, pydantic.BaseModel) else json.dumps(value, indent=1)
    write_text(path, text + "\n")


def read_json(path: Path, schema: type[Schema]) -> Schema:
    """Read and validate a JSON file; the error names the first field that does not match the schema."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HeadcountError(f"{path} does not exist", fix="check the path") from None
    except IsADirectoryError:
        raise HeadcountError(f"{path} is a folder, not a file", fix="check the path") from None
    except UnicodeDecodeError:
        raise HeadcountError(f"{path} is not UTF-8 text", fix="give a file that headcount wrote") from None
    except (OSError, ValueError) as error:
        raise HeadcountError(f"{path} cannot be read ({error})", fix="check the path") from error
    try:
        return schema.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise HeadcountError(f"{path} is not valid: {field}: {first['msg']}", fix="make it again") from None


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically, after checking for enough disk space."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    require_space(path.parent, sum(t.numel() * t.element_size() for t in contiguous.values()) + 2**20)
    write_atomic(path, lambda place: save_file(contiguous, place, metadata=metadata))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; the error for a truncated or invalid file names it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise HeadcountError(f"{path} does not exist", fix="check the path") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise HeadcountError(f"{path} is not a readable safetensors file ({error})", fix="make it again") from None


def open_run_folder(path: Path, kind: str, inputs: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Create the run folder, or resume in one that this command created from the same inputs.

    ``inputs`` is everything that the content depends on (JSON values). A folder that headcount or this command did
    not create is never modified; a folder of this command with other inputs is replaced only with ``overwrite``.
    Temporary files of a killed run are deleted.
    """
    path = Path(path)
    record = {"kind": kind, "inputs": json.loads(json.dumps(dict(inputs)))}
    marker = path / MARKER
    with named_disk_errors(path):
        if path.exists() and not path.is_dir():
            raise HeadcountError(f"{path} exists and is not a folder", fix="choose another --out")
        if path.is_dir() and any(not _is_leftover(file, MARKER) for file in path.iterdir()):
            existing = _read_marker(marker)
            if existing is None or existing["kind"] != kind:
                made = "was not made by headcount" if existing is None else f"was made by {existing['kind']!r}"
                raise HeadcountError(f"{path} exists and {made}", fix="choose another --out")
            if existing == record:
                for file in path.rglob(".*.tmp"):
                    if _is_leftover(file):
                        file.unlink(missing_ok=True)
                return path
            if not overwrite:
                raise HeadcountError(
                    f"{path} holds a run made from other inputs ({_difference(existing['inputs'], record['inputs'])})",
                    fix="choose another --out, or pass --overwrite",
                )
            # If the replacement is interrupted, the folder still belongs to headcount, but no run resumes from it.
            write_json(marker, {"kind": kind, "inputs": {"replaced": True}})
            for file in path.iterdir():
                if file.is_dir() and not file.is_symlink():
                    shutil.rmtree(file)
                elif file.name != MARKER:
                    file.unlink()
        write_json(marker, record)
    return path


def run_kind(path: Path) -> str | None:
    """The command that created a run folder; ``None`` for any other path."""
    record = _read_marker(Path(path) / MARKER)
    return record["kind"] if record else None


def _is_leftover(file: Path, name: str = "") -> bool:
    """Whether this is a temporary file for ``name`` (``""``: any) left by ``write_atomic`` in a killed run."""
    return re.fullmatch(rf"\.{re.escape(name) or '.+'}\.[a-z0-9_]{{8}}\.tmp", file.name) is not None


def _read_marker(marker: Path) -> JsonObject | None:
    """The record in a run folder's marker file; ``None`` if it is missing or not in the expected format."""
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(record, dict) and isinstance(record.get("kind"), str) and isinstance(record.get("inputs"), dict):
        return record
    return None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A short description of the differences between the inputs of two runs."""
    names = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    shown = ", ".join(f"{key}: {_short(old.get(key))} then, {_short(new.get(key))} now" for key in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def digest(*parts: str | bytes) -> str:
    """A short stable hash (blake2b, 16 hex digits) of texts or bytes."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()
