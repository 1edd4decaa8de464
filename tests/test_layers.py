"""The import direction of ARCHITECTURE.md holds: a file imports only lower layers or its own folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

SOURCE = ROOT / "src" / "headcount"

LAYERS = {
    "errors": 0,
    "spec": 0,
    "seeds": 0,
    "memory": 0,
    "store": 0,
    "progress": 0,
    "verbs": 0,
    "tasks": 1,
    "attention": 1,
    "pretrained": 1,
    "allocation": 1,
    "bounds": 2,  # refutations and protocols ask the tasks for their targets
    "constructions": 2,
    "models": 2,
    "audit": 2,
    "plan": 3,
    "trim": 4,
    "evaluate": 4,
    "experiments": 5,
    "report": 5,
    "pipeline": 6,
    "cli": 7,
}
FREE = {"__init__", "__main__", "py"}  # the public face re-exports from every layer, lazily

TRAVELLING = ("modeling_headcount.py", "headcount_attention.py", "headcount_cache.py")
"""Files that are written into checkpoints, where there is no package: they import each other as neighbours."""


def imports_of(path: Path) -> set[str]:
    """The headcount modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if path.name in TRAVELLING and node.level == 1:  # stays in its folder, wherever that is
                assert node.module in {name.removesuffix(".py") for name in TRAVELLING}, f"{path}: {node.module}"
                continue
            assert node.level == 0, f"{path}: relative imports hide the layer"
            module = node.module or ""
            found |= {f"headcount.{a.name}" for a in node.names} if module == "headcount" else {module}
    return {name for name in found if name.startswith("headcount.")}


def room(dotted: str) -> str:
    return dotted.split(".")[1]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own in FREE:
        return
    assert own in LAYERS, f"{own} has no layer: add it to the table here and in ARCHITECTURE.md"
    for name in imports_of(path):
        target = room(name)
        if target in FREE or target == own or target not in LAYERS:
            continue
        assert LAYERS[target] <= LAYERS[own], f"{path.name} ({own}) imports {name}, a higher layer"
        if LAYERS[target] == LAYERS[own]:
            assert LAYERS[own] == 0, f"{path.name} ({own}) imports its sibling {name}"
