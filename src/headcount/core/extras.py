"""Optional packages: if one is missing, the error names the extra to install."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

from headcount.core.errors import HeadcountError

EXTRA_OF = {
    "accelerate": "gguf",
    "gguf": "gguf",
    "jinja2": "report",
    "joblib": "lab",
    "markupsafe": "report",
    "matplotlib": "plots",
    "mpmath": "lab",
    "pandas": "lab",
    "plotly": "report",
    "tokenizers": "lab",
}
"""The extra of pyproject.toml that installs each optional package."""


@contextlib.contextmanager
def optional_imports() -> Iterator[None]:
    """Imports of optional packages go inside this block.

    Raises ``HeadcountError`` if a package of ``EXTRA_OF`` is missing; any other import error propagates.

    >>> with optional_imports():
    ...     raise ModuleNotFoundError("No module named 'plotly'", name="plotly.offline")
    Traceback (most recent call last):
    headcount.core.errors.HeadcountError: this needs plotly; pip install 'headcount[report]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        raise HeadcountError(f"this needs {package}", fix=f"pip install 'headcount[{EXTRA_OF[package]}]'") from error


def require(*packages: str) -> None:
    """Raise the error of ``optional_imports`` if one of ``packages`` is missing; call this before long work starts.

    >>> require("jinja2")
    """
    with optional_imports():
        for package in packages:
            importlib.import_module(package)
