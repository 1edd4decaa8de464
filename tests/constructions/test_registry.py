"""Building by name, saving and loading, and verifying mixed kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headcount import constructions
from headcount.constructions.verify import verify_kinds
from headcount.core.errors import HeadcountError

SIZES = {
    "qsa-certificate": {"tokens": 12, "sparsity": 2, "dim": 3},
    "qsa-polytope": {"tokens": 12, "sparsity": 2, "dim": 3},
    "match2": {"tokens": 12, "modulus": 50},
    "match-s": {"tokens": 8, "modulus": 50, "order": 4},
    "match3-bigram": {"tokens": 12, "modulus": 50},
    "match3-local": {"tokens": 12, "modulus": 50, "window": 2},
}


def test_every_construction_has_a_case() -> None:
    assert set(SIZES) == set(constructions.names())


@pytest.mark.parametrize("name", SIZES)
def test_saved_weights_load_back_as_the_same_module(name: str, tmp_path: Path) -> None:
    built = constructions.build(name, **SIZES[name])
    built.save(tmp_path / "it")
    loaded = constructions.load(tmp_path / "it")
    assert isinstance(loaded.module, torch.nn.Module)
    assert loaded.certificate == built.certificate and loaded.task == built.task
    state, again = built.module.state_dict(), loaded.module.state_dict()
    assert state.keys() == again.keys() and all(torch.equal(state[key], again[key]) for key in state)
    arguments = built.module.arguments(built.task.sample(3, 2))
    assert torch.equal(built.module(*arguments), loaded.module(*arguments))


@pytest.mark.parametrize("name", SIZES)
def test_mixed_verification_covers_all_kinds(name: str) -> None:
    built = constructions.build(name, **SIZES[name])
    found = verify_kinds(built, count=4, seed=1)
    assert found.verified and found.checked == 4 * SIZES[name]["tokens"]
    with pytest.raises(HeadcountError, match="kind 'hard' is unknown"):
        verify_kinds(built, "hard")
    with pytest.raises(HeadcountError, match="count must be at least 1"):
        verify_kinds(built, count=0)


def test_failures_of_the_second_kind_are_numbered_through() -> None:
    built = constructions.build("match2", tokens=16, modulus=100_003)
    found = verify_kinds(built, count=6, precision="fp32")
    assert not found.verified
    assert found.first_failure.sequence >= 2  # the two uniform sequences hold no match at this size
    near = verify_kinds(built, "adversarial", 2, precision="fp32")
    assert near.first_failure.sequence == found.first_failure.sequence - 2


def test_unknown_names_and_options() -> None:
    with pytest.raises(HeadcountError, match="did you mean match-s"):
        constructions.build("matchs")
    with pytest.raises(HeadcountError, match="match2 has no option 'order'; its options are tokens, modulus"):
        constructions.build("match2", order=3)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(HeadcountError, match="is no folder"):
        constructions.load(tmp_path / "none")
    with pytest.raises(HeadcountError, match="does not exist"):
        constructions.load(tmp_path)
    built = constructions.build("match2", tokens=4, modulus=5)
    built.save(tmp_path)
    weights = tmp_path / "construction.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(HeadcountError, match="not a readable safetensors file"):
        constructions.load(tmp_path)
    built.save(tmp_path)
    record = tmp_path / "construction.json"
    record.write_text(record.read_text().replace('"heads": 1', '"heads": "many"'))
    with pytest.raises(HeadcountError, match="is not valid: certificate"):
        constructions.load(tmp_path)
