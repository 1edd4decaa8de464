"""Origin and licence of a model according to its folder, for the model card of a trimmed model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headcount.core.payload import JsonObject
from headcount.pretrained.opening.places import DEMO_MODEL, Place, leads_out

_FILE = re.compile(r"(licen[cs]e|copying|notice)([-_. ][\w .-]*)?", re.IGNORECASE)
_ENDINGS = ("", ".txt", ".md", ".rst", ".html", ".pdf")
_MOST_BYTES, _MOST_FILES = 2**20, 16
_ENTRIES = ("license", "license_name", "license_link")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


@dataclass(frozen=True)
class Source:
    """The source model of a trimmed model."""

    name: str
    """The hub name, or the last component of the path."""
    licence: Mapping[str, Any] = field(default_factory=dict)
    """Entries ``license``, ``license_name`` and ``license_link`` of the source's model card."""
    licence_files: tuple[Path, ...] = ()
    argument: str = ""
    """The model argument for command lines, without a machine-specific path."""
    gguf: str | None = None
    """The GGUF file that the weights were read from."""


def source_of(name: str, place: Place) -> Source:
    """The source information of a model that was opened as ``name``.

    Licence files (``LICENSE*``, ``COPYING*``, ``NOTICE*``) are regular files of at most 1 MiB in the model's folder;
    links to outside the folder are not followed. Files next to a GGUF file may be unrelated, so only the header counts.
    """
    if place.gguf is not None:
        entries = {"license": place.licence} if place.licence else {}
        file = Path(name).name
        shown = DEMO_MODEL if name == "demo" else file.removesuffix(".gguf")
        return Source(shown, entries, (), file, place.gguf)
    snapshot = _SNAPSHOT.fullmatch(place.folder.resolve().parent.parent.name)
    shown = Path(name).resolve().name if Path(name).is_dir() else name
    if snapshot:
        shown = "/".join(snapshot.groups())
    files = [file for file in sorted(place.folder.iterdir()) if _is_licence(file, place.folder)]
    return Source(shown, _entries(place.folder), tuple(files[:_MOST_FILES]), shown)


def _is_licence(file: Path, folder: Path) -> bool:
    if not (_FILE.fullmatch(file.name) and file.suffix.lower() in _ENDINGS):
        return False
    return not leads_out(file, folder) and file.is_file() and file.stat().st_size <= _MOST_BYTES


def _entries(folder: Path) -> JsonObject:
    """The licence entries in the front matter of the folder's README.md."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    try:
        if not card.is_file() or leads_out(card, folder) or card.stat().st_size > _MOST_BYTES:
            return {}
        metadata = metadata_load(card)
    except Exception:  # YAML errors of a damaged card cannot be enumerated, and the card is optional
        return {}
    values = {name: metadata.get(name) for name in _ENTRIES} if isinstance(metadata, dict) else {}
    return {name: value for name, value in values.items() if _is_short(value)}


def _is_short(value: Any) -> bool:
    """Whether the value is a short string, or a short list of them."""
    if isinstance(value, list):
        return 0 < len(value) <= 8 and all(isinstance(item, str) and _is_short(item) for item in value)
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()
