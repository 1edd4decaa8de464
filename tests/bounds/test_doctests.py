"""The examples in the docstrings of ``headcount.bounds`` run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import headcount.bounds

MODULES = [module.name for module in pkgutil.iter_modules(headcount.bounds.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"headcount.bounds.{name}")
    assert doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL).failed == 0
