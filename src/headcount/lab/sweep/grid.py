"""Sweep files: fixed fields, a grid over other fields, and seeds, all validated before any run starts."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from headcount.core.errors import HeadcountError
from headcount.lab.specs.run import RunSpec, flattened

MANY_RUNS = 10_000
TABLES = ("fixed", "grid", "seeds")
T = TypeVar("T")
SPELLINGS = {"params": "parameters"}
"""Options of ``learn`` that have a different name in a run spec."""


def read_grid(path: Path, allow_many: bool = False) -> list[RunSpec]:
    """Read the runs of a sweep's TOML file.

    ::

        seeds = 3                 # 0, 1, 2; or a list

        [fixed]                   # fields of every run, see RunSpec; may be grouped in parts ([fixed.training] ...)
        task = "match3"
        tokens = 8

        [grid]                    # every combination of these
        model = ["attention", "third-order"]
        depth = [1, 2]

    Raises HeadcountError for invalid TOML, unknown tables or fields (which it names), values out of range, an
    empty grid, and a grid of more than 10,000 runs unless ``allow_many``.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HeadcountError(f"{path} cannot be read ({error.strerror})", fix="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HeadcountError(f"{path} is no TOML file ({error})", fix="see headcount sweep --help") from error
    unknown = sorted(set(tables) - set(TABLES))
    if unknown:
        raise HeadcountError(
            f"{path} has {', '.join(map(repr, unknown))} at its top", fix=f"it may hold {', '.join(TABLES)}"
        )
    for table in ("fixed", "grid"):
        if not isinstance(tables.get(table, {}), dict):
            raise HeadcountError(f"{table} in {path} is no table", fix=f"write [{table}] above its fields")
    return runs(tables.get("fixed", {}), tables.get("grid", {}), tables.get("seeds", 1), allow_many)


def runs(
    fixed: Mapping[str, Any], grid: Mapping[str, Any], seeds: int | list[int] = 1, allow_many: bool = False
) -> list[RunSpec]:
    """Every combination of the grid's values with the fixed fields, for each seed; seeds vary fastest.

    >>> [spec.seed for spec in runs({"task": "qsa"}, {"model": ["lstm", "gru"]}, seeds=2)]
    [0, 1, 0, 1]
    """
    fixed, grid = _spelled(flattened(fixed)), _spelled(grid)
    named = {*fixed, *grid, "seed"}
    unknown = sorted(named - set(RunSpec.fields()))
    if unknown:
        raise HeadcountError(
            f"{', '.join(map(repr, unknown))} is no field of a run",
            fix=f"the fields are {', '.join(RunSpec.fields())}",
        )
    twice = sorted((set(fixed) & set(grid)) | ({"seed"} & {*fixed, *grid}))
    if twice:
        raise HeadcountError(
            f"{twice[0]} is given twice" if twice != ["seed"] else "seed is a field of the sweep, not of a run",
            fix="write it under [fixed] or under [grid]" if twice != ["seed"] else "write seeds = [...] at the top",
        )
    for name, values in grid.items():
        if not isinstance(values, list):
            raise HeadcountError(
                f"{name} in the grid is {values!r}", fix="give a list of values, or move it to [fixed]"
            )
    if (
        isinstance(seeds, bool)
        or not isinstance(seeds, int | list)
        or not all(
            isinstance(seed, int) and not isinstance(seed, bool)
            for seed in ([seeds] if isinstance(seeds, int) else seeds)
        )
    ):
        raise HeadcountError(f"seeds is {seeds!r}", fix="give a number of seeds, or a list of them")
    chosen = list(range(seeds)) if isinstance(seeds, int) else seeds
    size = math.prod(len(values) for values in grid.values()) * len(chosen)
    if size == 0:
        empty = next((name for name, values in grid.items() if not values), "seeds")
        raise HeadcountError(f"the grid is empty: {empty} has no values", fix="give one value or more")
    if size > MANY_RUNS and not allow_many:
        raise HeadcountError(f"the grid has {size:,} runs, more than {MANY_RUNS:,}", fix="pass --yes to run it all")
    combinations = itertools.product(*grid.values())
    return [
        RunSpec.checked({**fixed, **dict(zip(grid, values, strict=True)), "seed": seed})
        for values in combinations
        for seed in chosen
    ]


def _spelled(fields: Mapping[str, T]) -> dict[str, T]:
    for option, name in SPELLINGS.items():
        if option in fields and name in fields:
            raise HeadcountError(f"{option} and {name} are one field", fix=f"leave out {name}")
    return {SPELLINGS.get(name, name): value for name, value in fields.items()}
