"""Every example in a docstring of the package is run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
from conftest import ROOT

import headcount

# `__main__` runs the command line when it is imported.
MODULES = [
    name for _, name, _ in pkgutil.walk_packages(headcount.__path__, "headcount.") if not name.endswith("__main__")
]
DOCS = ROOT / "docs"
PAGES = sorted(page.stem for page in DOCS.glob("*.md") if ">>> " in page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_the_pages_hold(page: str) -> None:
    result = doctest.testfile(str(DOCS / f"{page}.md"), module_relative=False)
    assert result.failed == 0 < result.attempted


def test_the_lowest_layers_have_examples() -> None:
    """The runner finds examples at all."""
    for name in ("core.errors", "core.seeds", "core.spec", "pretrained.families"):
        assert doctest.testmod(importlib.import_module(f"headcount.{name}")).attempted > 0
