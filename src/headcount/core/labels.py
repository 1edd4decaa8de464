"""Sanitises untrusted text, such as model names, for display."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath


def clean(text: str) -> str:
    """Replace characters that control a terminal, change the text direction or cannot be encoded.

    >>> clean("a\\x1b[31mb") == "a\ufffd[31mb"
    True
    """
    return "".join(
        "\ufffd" if ch not in "\n\t" and (unicodedata.category(ch) in ("Cc", "Cs") or ch in _BIDI) else ch
        for ch in text
    )


_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def display_name(name: str) -> str:
    """A model's name without machine-specific directories: absolute paths are reduced to their last component.

    >>> display_name("/home/me/out/half"), display_name("owner/model"), display_name("runs/half/")
    ('half', 'owner/model', 'runs/half')
    """
    name = " ".join(clean(name).split())
    stripped = name.rstrip("/\\") or name
    absolute = PurePosixPath(stripped).is_absolute() or PureWindowsPath(stripped).is_absolute()
    if absolute or stripped.startswith("~"):
        return re.split(r"[/\\]", stripped)[-1] or stripped
    return stripped
