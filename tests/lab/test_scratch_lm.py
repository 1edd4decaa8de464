"""Figure scratch-lm: which runs belong to which setting, paired differences by hand, verdicts that follow the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcount.core import store
from headcount.lab.figures import scratch_lm
from headcount.lab.figures.base import Inputs
from headcount.lab.figures.scratch_lm import Arm
from headcount.lab.specs.text import TextSpec
from headcount.lab.sweep.runner import Row

FIXED: dict[str, Any] = {
    "layers": 3, "hidden": 32, "context": 16, "vocab": 300, "parameters": 60_000, "kinds": ("prose",), "steps": 10,
}  # fmt: skip
LOSSES = {
    Arm("uniform"): [3.0, 3.1, 3.2],
    Arm("openelm"): [3.2, 3.2, 3.3],
    Arm("planned"): [2.9, 3.01, 3.1],
    Arm("openelm", 1.0): [3.1, 3.1, 3.3],
    Arm("planned", 1.0): [3.0, 3.2, 3.1],
    Arm("planned-heads"): [3.3, 3.4, 3.52],
    Arm("uniform", 0.5): [3.05, 3.2, 3.28],
    Arm("planned", 0.5): [3.0, 3.1, 3.2],
    Arm("uniform", start="plain"): [3.5, 3.6, 3.7],
    Arm("openelm", start="plain"): [3.4, 3.51, 3.6],
}


def rows() -> list[Row]:
    result_rows = []
    for arm, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            spec = TextSpec(model=arm.model, cache_share=arm.cache_share, start=arm.start, seed=seed, **FIXED)
            scores = {"text": {"loss": loss, "bits_per_byte": loss / 2}}
            result_rows.append(Row(spec=spec.inputs(), result={"scores": scores, "parameters": spec.design.params}))
    return result_rows


@pytest.fixture
def data(tmp_path: Path) -> list[dict[str, Any]]:
    """Speeds by hand: the planned models take half the uniform model's time, the others as much."""
    names = {str(arm) for arm in LOSSES}
    step = [0.1, 0.2, 0.4]
    seconds = {
        name: {way: [s / 2 if name.startswith("planned") else s for s in step] for way in ("stock", "own")}
        for name in names
    }
    speed = scratch_lm._Speed(batch=2, context=64, threads=1, seconds=seconds)
    store.write_json(tmp_path / scratch_lm.SPEED, speed)
    return scratch_lm.data(Inputs(rows(), tmp_path))


def test_runs_belong_to_their_settings(data: list[dict[str, Any]]) -> None:
    schemes = {setting: [row["scheme"] for row in data if row["setting"] == setting] for setting in scratch_lm.SETTINGS}
    assert schemes["parameters"] == ["uniform", "openelm", "planned", "planned-heads"]
    assert schemes["cache"] == ["uniform", "openelm", "planned", "planned-heads"]
    assert schemes["half"] == ["uniform", "planned"]
    assert schemes["start"] == ["uniform", "openelm"]
    at_cache = [row for row in data if row["setting"] == "cache"]
    assert len({row["losses"] for row in at_cache}) == 4
    limit = at_cache[0]["cache_bytes_per_token"]
    assert all(row["cache_bytes_per_token"] <= limit for row in at_cache)
    assert all(2 * row["cache_bytes_per_token"] <= limit for row in data if row["setting"] == "half")


def test_differences_are_paired_by_seed(data: list[dict[str, Any]]) -> None:
    row = next(entry for entry in data if entry["scheme"] == "planned" and entry["setting"] == "parameters")
    differences = np.array([-0.1, -0.09, -0.1])
    assert row["minus_uniform"] == pytest.approx(differences.mean())
    # Student's 97.5% point for two degrees of freedom is 4.3027.
    assert row["minus_uniform_half_width"] == pytest.approx(4.3027 * differences.std(ddof=1) / math.sqrt(3), rel=1e-3)
    assert row["minus_openelm"] == pytest.approx((-0.3 - 0.19 - 0.2) / 3)
    assert row["trained_tokens"] == 10 * 16 * 16 and row["bits_per_byte"] == pytest.approx(row["loss"] / 2)
    cache = next(entry for entry in data if entry["scheme"] == "planned" and entry["setting"] == "cache")
    assert cache["minus_openelm"] == pytest.approx((-0.1 + 0.1 - 0.2) / 3)
    uniform = next(entry for entry in data if entry["scheme"] == "uniform")
    assert uniform["minus_uniform"] is None and uniform["minus_whole"] is None
    half = next(entry for entry in data if entry["scheme"] == "uniform" and entry["setting"] == "half")
    assert half["minus_uniform"] is None and half["minus_whole"] == pytest.approx((0.05 + 0.1 + 0.08) / 3)


def test_speeds_are_medians_and_medians_of_ratios(data: list[dict[str, Any]]) -> None:
    row = next(entry for entry in data if entry["scheme"] == "planned")
    assert row["decode_tokens_per_s_own"] == 2 / 0.1 and row["decode_speedup_stock"] == 2.0


def test_the_verdict_follows_the_data(data: list[dict[str, Any]]) -> None:
    said = scratch_lm.verdict(data)
    parameters, cache, half, baselines, start, halved, rules, plain = said.removesuffix(".").split(". ")
    assert parameters.startswith("At equal parameters (") and "better (-0.0967" in parameters
    assert "decodes 2.00 times as fast" in parameters
    assert cache.startswith("At equal parameters and cache (") and "not decided (+0.0000" in cache
    assert half.startswith("At equal parameters and half the cache (") and "better (-0.0767" in half
    assert halved.startswith("Half the cache, uniform: worse (+0.0767")
    assert baselines.startswith("Baselines: openelm is not decided (+0.1333")
    assert start.startswith("From plain initial weights: openelm is better (-0.0967")
    assert rules.startswith("More heads: planned-heads is worse (+0.3067")
    assert plain == "Uniform from plain initial weights ends at 3.600, from scaled ones at 3.100"


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    """And missing baselines are left out; speeds are measured where none are kept, and kept."""
    single = [row for row in rows() if row.spec["seed"] == 0 and row.spec["model"] in ("uniform", "planned")]
    data = scratch_lm.data(Inputs(single, tmp_path))
    assert "not decided" in scratch_lm.verdict(data) and "openelm" not in scratch_lm.verdict(data)
    assert all(row["decode_tokens_per_s_stock"] > 0 for row in data)
    again = scratch_lm.data(Inputs(single, tmp_path))
    assert [row["decode_tokens_per_s_own"] for row in again] == [row["decode_tokens_per_s_own"] for row in data]


def test_the_full_plan_is_matched() -> None:
    """Parameters within 0.2%, caches of the equal-cache runs within 1% of uniform's; same text, steps and batches."""
    specs = scratch_lm.plan("full")
    assert len(specs) == 38 and {spec.seed for spec in specs} == set(range(4))
    changing = {"model", "cache_share", "start", "seed"}
    assert len({spec.model_copy(update=dict.fromkeys(changing)) for spec in specs}) == 1
    counts = [spec.design.params for spec in specs]
    assert max(counts) - min(counts) <= 0.002 * max(counts) and 2e6 * 0.998 <= min(counts) <= max(counts) <= 2e6
    uniform = next(spec.design for spec in specs if spec.model == "uniform").cache_bytes_per_token()
    for spec in specs:
        if spec.cache_share == 0.5:
            assert 0.99 * uniform / 2 <= spec.design.cache_bytes_per_token() <= uniform / 2
        if spec.cache_share == 1.0 or spec.model in ("planned-heads", "uniform-heads"):
            assert 0.99 * uniform <= spec.design.cache_bytes_per_token() <= uniform
