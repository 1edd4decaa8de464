"""Corner sizes and some hundred random ones through every bound and construction (benchmarks/theory_scan.py)."""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT

FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def theory_scan() -> Iterator[ModuleType]:
    """The script; it imports its two neighbours."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("theory_scan")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("theory_scan", "theory_checks", "theory_sizes"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def checks(theory_scan: ModuleType) -> ModuleType:
    return sys.modules["theory_checks"]


def test_every_corner_holds(theory_scan: ModuleType) -> None:
    scan = theory_scan.Scan()
    for case in theory_scan.corners(most=6):
        scan.run(case)
    assert scan.problems == []
    for name in ("qsa-polytope, all inputs", "qsa-polytope, in its own bits", "match-s", "match3-local"):
        assert scan.counts[f"certificates run: {name}"] > 0
    assert scan.counts["built sizes against bounds"] > 1000


def test_random_sizes_hold(theory_scan: ModuleType) -> None:
    scan = theory_scan.scan(300, seed=1, with_corners=False, show=False)
    assert scan.problems == []
    assert scan.counts["certificates run"] > 150 and scan.counts["command lines"] > 0


def test_an_interrupted_scan_goes_on_where_it_stopped(theory_scan: ModuleType, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    whole = theory_scan.scan(60, seed=2, with_corners=False, show=False)
    theory_scan.scan(25, seed=2, state=state, with_corners=False, show=False)
    assert json.loads(state.read_text())["start"] == 25
    assert theory_scan.scan(60, seed=2, state=state, with_corners=False, show=False).counts == whole.counts


@pytest.mark.parametrize("what", ["depth", "bound", "certificate", "crash"])
def test_the_scan_finds_what_is_wrong(theory_scan: ModuleType, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Each kind of error, put in on purpose, is reported."""
    from headcount import bounds
    from headcount.bounds.base import Quantity
    from headcount.constructions.qsa import polytope as qsa_polytope

    case = sys.modules["theory_sizes"].Case(
        "construct", "qsa-polytope", {"tokens": 8, "sparsity": 2, "dim": 1, "epsilon": 0.01}
    )
    if what == "depth":
        monkeypatch.setattr(qsa_polytope, "depth_for", lambda *sizes: -0.1)
    elif what == "certificate":
        monkeypatch.setattr(qsa_polytope, "depth_for", lambda *sizes: 3.0)  # error 2 (N-q)/q e^-3 = 0.3
    elif what == "crash":
        monkeypatch.setattr(qsa_polytope, "depth_for", lambda *sizes: math.log(-1))
    else:
        radon = bounds.get("qsa-radon")
        monkeypatch.setitem(radon.__dict__, "formula", lambda sizes: Quantity(6, "embedding dimensions"))
    scan = theory_scan.Scan()
    scan.run(case)
    message = {"depth": "off by", "certificate": "off by", "crash": "traceback", "bound": "has 5, qsa-radon asks for 6"}
    # log2 of a negative depth may crash before the certificate is wrong: either is reported.
    assert any(message[what] in problem or what == "depth" for problem in scan.problems)


def test_worst_vectors_are_the_worst(checks: ModuleType) -> None:
    """sum |a - t| is reached by signs, and no random vectors of norm at most 1 exceed it."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(6), 4)
    inside = np.array([[1, 1, 0, 0, 0, 0]] * 4, dtype=bool)
    worst = checks._worst_error(weights, inside)
    difference = weights - inside / 2
    signs = np.sign(difference)
    assert worst == pytest.approx(float((difference * signs).sum(1).max()), rel=1e-12)
    z = rng.standard_normal((500, 6, 3))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    assert np.linalg.norm(difference @ z, axis=-1).max() <= worst


def test_sets_up_to_rotation_cover_all_sets(checks: ModuleType) -> None:
    n, q = 9, 4
    turned = {
        tuple(sorted((j + turn) % n for j in subset))
        for subset in checks._up_to_rotation(n, q).tolist()
        for turn in range(n)
    }
    assert len(turned) == math.comb(n, q)


def test_drawn_sizes_are_those_of_the_seed(theory_scan: ModuleType) -> None:
    assert theory_scan.draw(random.Random("0 5")) == theory_scan.draw(random.Random("0 5"))
