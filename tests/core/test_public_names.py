"""``import headcount`` alone reaches every subpackage and public name, and imports nothing heavy."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import headcount

SOURCE = Path(headcount.__file__).parent
PACKAGES = sorted(
    found.name.removeprefix("headcount.") for found in pkgutil.walk_packages([str(SOURCE)], "headcount.") if found.ispkg
)
"""Every folder of the package, "trimming" and "trimming.audit" alike."""
MODULES = sorted(found.name for found in pkgutil.iter_modules([str(SOURCE)]) if found.name != "__main__")


def fresh(code: str) -> str:
    """What a new process prints, in which headcount alone is imported."""
    command = [sys.executable, "-c", f"import sys\nimport headcount\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_subpackage_and_public_name_is_an_attribute_after_the_import() -> None:
    assert len(PACKAGES) > 30  # the walk found the folders
    code = "".join(f"print(headcount.{name}.__name__)\n" for name in PACKAGES)
    code += "for name in headcount.__all__: print(getattr(headcount, name) is not None)"
    assert fresh(code).split() == [*(f"headcount.{name}" for name in PACKAGES), *["True"] * len(headcount.__all__)]


def test_type_checkers_see_every_subpackage() -> None:
    for parent in {name.rpartition(".")[0] for name in PACKAGES if "." in name}:
        source = (SOURCE / parent.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
        for name in PACKAGES:
            if name.rpartition(".")[0] == parent:
                child = name.rpartition(".")[2]
                assert f"    from headcount.{parent} import {child} as {child}\n" in source
    source = (SOURCE / "__init__.py").read_text(encoding="utf-8")
    for name in headcount.__all__:
        assert name == "__version__" or f"import {name} as {name}\n" in source


def test_dir_lists_what_is_not_imported_yet() -> None:
    listed = set(fresh("print(*dir(headcount))").split())
    assert listed >= {*MODULES, *headcount.__all__}
    for name in PACKAGES:
        parent, _, child = name.rpartition(".")
        assert child in dir(importlib.import_module(f"headcount.{parent}" if parent else "headcount")), name


@pytest.mark.parametrize("name", ["headcount", *(f"headcount.{name}" for name in PACKAGES)])
def test_unknown_names_are_attribute_errors(name: str) -> None:
    module = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = module.nothing


def test_the_import_is_light() -> None:
    heavy = {"torch", "numpy", "scipy", "pandas", "transformers", "matplotlib", "plotly", "jinja2", "pydantic", "typer"}
    imported = set(fresh("print(*sys.modules)").split())
    assert "headcount" in imported and not heavy & imported


def test_names_are_those_of_their_modules() -> None:
    from headcount.core.errors import HeadcountError
    from headcount.trimming.audit.run import audit
    from headcount.trimming.plan.make import Plan, plan
    from headcount.trimming.trim.run import trim

    assert (headcount.audit, headcount.plan, headcount.trim) == (audit, plan, trim)
    assert (headcount.Plan, headcount.HeadcountError) == (Plan, HeadcountError)


def test_the_package_says_that_it_is_typed() -> None:
    assert (SOURCE / "py.typed").read_bytes() == b""
