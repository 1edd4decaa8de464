"""Where a model came from and under which licence, as far as its folder tells: what a trimmed model's card repeats."""

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
    """A model that others are made from."""

    name: str
    """Its name on the hub, or the last part of its path."""
    licence: Mapping[str, Any] = field(default_factory=dict)
    """Entries ``license``, ``license_name`` and ``license_link`` of its own model card."""
    licence_files: tuple[Path, ...] = ()
    argument: str = ""
    """What command lines call it, without a machine's path."""
    gguf: str | None = None
    """The GGUF file that its weights were read from."""


def source_of(name: str, place: Place) -> Source:
    """What is known of a model that was opened as ``name``.

    Licence files (``LICENSE*``, ``COPYING*``, ``NOTICE*``) are regular files of at most 1 MiB in the model's folder; a
    link that leads out of it is not followed. What lies beside a GGUF file may belong to anything: of one, only the
    header counts.
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
    """What the folder's own README.md says of its licence in its front matter."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    try:
        if not card.is_file() or leads_out(card, folder) or card.stat().st_size > _MOST_BYTES:
            return {}
        metadata = metadata_load(card)
    except Exception:  # what a damaged card makes a YAML reader raise is not ours to list, and a card is no model
        return {}
    values = {name: metadata.get(name) for name in _ENTRIES} if isinstance(metadata, dict) else {}
    return {name: value for name, value in values.items() if _is_short(value)}


def _is_short(value: Any) -> bool:
    """Whether it is a name, or a few."""
    if isinstance(value, list):
        return 0 < len(value) <= 8 and all(isinstance(own, str) and _is_short(own) for own in value)
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()
