"""The house rules of ARCHITECTURE.md: imports point down, files form no circles, records are named by their owners."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

SOURCE = ROOT / "src" / "headcount"

ROOMS = (
    ("core",),
    ("tasks", "attention", "pretrained"),
    ("pbit", "trimming"),
    ("constructions", "probes"),
    ("bounds", "lags", "shapes"),
    ("protocols",),
    ("refutation", "lab"),
    ("report",),
    ("pipeline",),
    ("cli",),
)
"""Rooms from the ground up; those of one row do not import each other."""
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
FREE = {"__init__", "__main__"}
"""The public face: it names things of every room, and imports them when they are used."""

TRAVELLING = ("modeling_headcount.py", "headcount_attention.py", "headcount_cache.py")
"""Files that are written into checkpoints, where there is no package: they import each other as neighbours."""

RECORDS = {
    "audit.json": "trimming/audit",
    "plan.json": "trimming/plan",
    "trim.json": "trimming/trim",
    "evaluation.json": "trimming/evaluate",
    "saturation.json": "probes/saturation",
    "selection.json": "probes/selection",
    "scratch.json": "shapes",
    "construction.json": "constructions",
    "runs.json": "lab/sweep",
    "result.json": "lab/train",
}
"""Files of run folders, and where alone their names stand: everybody else asks the owner's schema."""

FILES = sorted(path for path in SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = ("headcount", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports_of(path: Path) -> set[str]:
    """The modules of headcount that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                assert path.name in TRAVELLING and node.level == 1, f"{path}: relative imports hide the room"
                assert f"{package}.py" in TRAVELLING, f"{path} travels without {package}"
                package = f"{module_of(path).rpartition('.')[0]}.{package}"
            names = {f"{package}.{alias.name}" for alias in node.names}
            modules |= names & MODULES or {package}
    return modules & MODULES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room in FREE:
        return
    assert room in LEVEL, f"{room} is no room: add it to the table here and in ARCHITECTURE.md"
    for name in imports_of(path):
        target = [*name.split("."), ""][1]
        if target and target != room:
            assert LEVEL[target] < LEVEL[room], f"{path.name} ({room}) imports {name}, which is not below it"


def test_no_files_import_each_other_in_circles() -> None:
    graph = {module_of(path): imports_of(path) - {module_of(path), "headcount"} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        raise AssertionError(f"files import each other in a circle: {' <- '.join(circle.args[1])}") from circle


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_record_files_are_named_by_their_owner_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and node.value in RECORDS:
            owner = RECORDS[node.value]
            assert str(path.relative_to(SOURCE)).startswith(owner), f"{node.value} belongs to {owner}: use its RECORD"
