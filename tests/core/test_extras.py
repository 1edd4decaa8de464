"""Without the extras: trimming runs, and every command that needs one says which to install, before any long work."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path

import pytest
from conftest import ROOT

from headcount import constructions
from headcount.constructions.verify import verify_kinds
from headcount.core.errors import HeadcountError
from headcount.core.extras import EXTRA_OF, optional_imports, require
from headcount.lab.train.corpus import learn_vocabulary
from headcount.pretrained.opening.gguf_file import read_once

# transformers cannot be imported without tokenizers, nor parts of torch without mpmath (through sympy).
BLOCKED = tuple(package for package in (*EXTRA_OF, "jaxtyping") if package not in ("mpmath", "tokenizers"))


def without(packages: Collection[str], code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process that cannot import ``packages``; ``run`` is a command line that gives its exit code."""
    start = f"""
import sys
for package in {sorted(packages)!r}:
    sys.modules[package] = None
from headcount.cli import main
def run(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return stopped.code
"""
    command = [sys.executable, "-c", start + code]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_without_extras_trimming_runs_and_other_commands_name_what_they_need(
    tiny_folder: Path, text: Path, tmp_path: Path
) -> None:
    audit = ["--tokens", "192", "--context", "32", "--matmul-dtype", "model", "--text", str(text)]
    evaluate = ["--windows", "2", "--context", "32", "--decode", "2x16"]
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    grid = '[fixed]\ntask = "qsa"\ntokens = 6\nsparsity = 2\ndim = 2\nsteps = 4\n[grid]\nmodel = ["gru"]\n'
    (tmp_path / "grid.toml").write_text(grid)
    saturated = ["--saturation", "--contexts", "16,32", "--out", "s"]
    code = f"""
tiny = {str(tiny_folder)!r}
assert run("audit", tiny, *{audit!r}, "--out", "a") == 0
assert run("plan", "a", "--cache", "0.5", "--out", "p") == 0
assert run("trim", tiny, "p", "--out", "m") == 0
assert run("evaluate", tiny, "m", *{evaluate!r}, "--out", "e") == 0
sys.stderr.write("REFUSED\\n")

import headcount
for record, folder in (headcount.Audit, "a"), (headcount.Plan, "p"), (headcount.Evaluation, "e"):
    try:
        record.open(folder).to_pandas()
    except headcount.HeadcountError as error:
        sys.stderr.write(f"headcount: {{error}}\\n")
assert run("report", "a", "p", "e") == 2
assert run("demo", "--model", tiny, "--out", "d") == 2
assert run("audit", tiny, *{saturated!r}) == 2
assert run("figure", "cliff", "--out", "f") == 2
assert run("figure", "memory", "--out", "f", "--work", "w") == 2
assert run("sweep", "grid.toml", "--out", "w") == 2
assert run("audit", "model.gguf", "--out", "g") == 2
"""
    done = without(BLOCKED, code, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "m" / "model.safetensors").is_file() and (tmp_path / "e" / "evaluation.json").is_file()
    needs = [*["pandas"] * 3, "jinja2", "jinja2", "matplotlib", "matplotlib", "matplotlib", "joblib", "gguf"]
    lines = [f"headcount: this needs {package}; pip install 'headcount[{EXTRA_OF[package]}]'" for package in needs]
    assert done.stderr.partition("REFUSED\n")[2].splitlines() == lines
    assert not [name for name in "dsfwg" if any((tmp_path / name).glob("*"))], "refused before anything was made"


def test_what_torch_and_transformers_bring_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpmath", None)
    built = constructions.build("qsa-polytope", tokens=8, sparsity=2)
    with pytest.raises(HeadcountError, match=r"this needs mpmath; pip install 'headcount\[lab\]'"):
        verify_kinds(built, count=1, precision="wide:64")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(HeadcountError, match=r"this needs tokenizers; pip install 'headcount\[lab\]'"):
        learn_vocabulary(["a text"], 257)


def test_a_gguf_file_needs_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(HeadcountError, match=r"this needs accelerate; pip install 'headcount\[gguf\]'"), read_once():
        raise AssertionError("refused before anything is read")


def test_other_import_errors_are_passed_on() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), optional_imports():
        importlib.import_module("no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        require("json", "no_such_package")
    with pytest.raises(ImportError, match="cannot import name"), optional_imports():
        from json import no_such_name  # type: ignore[attr-defined]  # noqa: F401


def test_the_table_of_extras_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for package, extra in EXTRA_OF.items():
        assert package in {name_of(requirement) for requirement in extras[extra]}, package
    assert {name_of(requirement) for requirement in project["dependencies"]}.isdisjoint(EXTRA_OF)
    assert extras["all"] == [f"headcount[{','.join(sorted({*EXTRA_OF.values()}))}]"]


def test_every_import_is_a_dependency() -> None:
    """What the package imports is installed with it, or is an optional package of the table."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {name_of(requirement).replace("-", "_") for requirement in project["dependencies"]} | EXTRA_OF.keys()
    # jaxtyping: for type checkers alone. pydantic_core: a part of pydantic. ray: lab/sweep refuses it in its own words.
    known = declared | sys.stdlib_module_names | {"headcount", "jaxtyping", "pydantic_core", "ray"}
    imported: dict[str, Path] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported[node.module.partition(".")[0]] = path
    assert {name: str(path) for name, path in imported.items() if name not in known} == {}
    assert declared - imported.keys() == {"accelerate"}, "declared and not imported, but by transformers' GGUF loader"


def name_of(requirement: str) -> str:
    """The package of a requirement: ``jinja2>=3.1`` is ``jinja2``."""
    return re.split(r"[<>=\[]", requirement)[0]
