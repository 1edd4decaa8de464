"""Embedding collisions are real collisions; layers that the counting allows are left alone."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from headcount import refute, tasks
from headcount.core.errors import HeadcountError
from headcount.pbit.examples import histogram_layer, random_match3_layer, random_qsa_layer, sign_key_layer
from headcount.pbit.layer import PBitAttention
from headcount.refutation.witness import Refutation


def check(answer: Refutation, layer: Any, q: int) -> None:
    """The two tokens embed alike, all others are the same, and the targets are 2/q apart or more."""
    witness = answer.witness
    assert witness is not None and witness.token == 0
    n = len(witness.first["z"])
    tables = [{**w, "position": np.arange(n)} for w in (witness.first, witness.second)]
    assert (tables[0]["z"] == tables[1]["z"]).all() and (tables[0]["y"][1:] == tables[1]["y"][1:]).all()
    assert set(tables[0]["y"][0]) != set(tables[1]["y"][0])
    assert (layer.embed(tables[0]) == layer.embed(tables[1])).all()
    outputs = [layer.outputs(table) for table in tables]
    assert (outputs[0] == outputs[1]).all()
    targets = [table["z"][table["y"][0]].mean(0) for table in tables]
    distance = float(np.linalg.norm(targets[0] - targets[1]))
    assert distance >= 2 / q - 1e-12
    assert witness.target_distance == pytest.approx(distance) and witness.output_distance == 0


@pytest.mark.parametrize(("n", "q", "m", "p"), [(6, 2, 1, 2), (9, 3, 1, 5), (12, 4, 2, 4), (16, 8, 3, 4)])
def test_every_layer_below_the_count_collides(n: int, q: int, m: int, p: int) -> None:
    task = tasks.get("qsa", tokens=n, sparsity=q, dim=2)
    subsets = math.comb(n - 1, q)
    assert 2 ** (m * p) < subsets <= 2**16  # all subsets are tried: pigeonhole, for every layer
    for seed in range(5):
        layer = random_qsa_layer(n, q, 2, m, p, heads=2, seed=seed)
        answer = refute(layer, task)
        assert answer.witness_found and answer.impossible
        assert (answer.has, answer.needed) == (m * p, (subsets - 1).bit_length())
        check(answer, layer, q)


def test_at_the_count_there_is_no_witness_from_this_bound() -> None:
    task = tasks.get("qsa", tokens=12, sparsity=4, dim=1)  # C(11, 4) = 330: 9 bits
    assert refute(random_qsa_layer(12, 4, 1, 2, 4), task).witness_found
    for m, p in ((3, 3), (1, 9), (4, 4)):
        answer = refute(random_qsa_layer(12, 4, 1, m, p), task)
        assert not answer.witness_found and not answer.impossible
        assert "no witness from this bound" in answer.reason


def test_birthday_beyond_enumeration() -> None:
    task = tasks.get("qsa", tokens=128, sparsity=16, dim=1)
    layer = random_qsa_layer(128, 16, 1, 2, 12)
    answer = refute(layer, task, limit=2**15)  # 24 bits, 66 needed
    assert answer.witness_found
    check(answer, layer, 16)
    answer = refute(random_qsa_layer(128, 16, 1, 4, 16), task, limit=2**8)  # 64 bits: out of reach
    assert not answer.witness_found and answer.impossible and "by counting" in answer.reason
    assert answer.verdict == "counting"


def test_an_embedding_of_more_than_p_bits_is_outside_the_bound() -> None:
    unit = FloatUnit(12, 2, 2)
    unit.precision_bits = 1  # it rounds to 8 values
    answer = refute(unit, tasks.get("qsa", tokens=12, sparsity=4, dim=2))
    assert not answer.impossible and answer.verdict == "does not apply"
    assert answer.failing_hypothesis == "entries of the embedding phi(x_i) have p bits"


def test_units_of_unknown_type_are_not_ruled_out_by_counting() -> None:
    class Derived(PBitAttention):
        """May do anything; nothing is proved about it without a witness."""

    layer = Derived(**vars(random_qsa_layer(128, 16, 1, 4, 16)))
    answer = refute(layer, tasks.get("qsa", tokens=128, sparsity=16, dim=1), limit=2**8)
    assert answer.verdict == "undecided" and not answer.impossible
    assert "cannot be checked from outside" in answer.reason and "64 < 67" in answer.reason


def test_a_layer_that_solves_the_task_is_not_refuted() -> None:
    layer = sign_key_layer(10, 2, 1, 10, keys=200)
    assert not refute(layer, tasks.get("qsa", tokens=10, sparsity=2, dim=1)).witness_found


class FloatUnit:
    """Softmax attention in float64 on embeddings of a torch net, which alone are rounded to p bits."""

    precision_bits = 3

    def __init__(self, n: int, dim: int, width: int, residual: bool = False) -> None:
        torch.manual_seed(0)
        self.n, self.dim, self.embedding_dim, self.residual = n, dim, width, residual
        layers = torch.nn.Linear(dim + 2 * n, 16), torch.nn.Tanh(), torch.nn.Linear(16, width)
        self.phi = torch.nn.Sequential(*layers)
        self.q, self.k, self.v = (torch.randn(width, size).double().numpy() for size in (width, width, dim))

    def embed(self, tokens: Any) -> np.ndarray:
        rows = len(tokens["position"])
        hot = np.zeros((rows, 2 * self.n))
        np.put_along_axis(hot, tokens["y"], 1, axis=1)
        hot[np.arange(rows), self.n + tokens["position"]] = 1
        with torch.no_grad():
            raw = self.phi(torch.from_numpy(np.concatenate([tokens["z"], hot], 1)).float()).double().numpy()
        return np.clip(np.round(raw * 4), -4, 3) / 4

    def outputs(self, tokens: Any) -> np.ndarray:
        e = self.embed(tokens)
        logits = (e @ self.q) @ (e @ self.k).T
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out = weights / weights.sum(1, keepdims=True) @ (e @ self.v)
        return out + tokens["y"].sum(1, keepdims=True) if self.residual else out


def test_units_of_any_kind_on_p_bit_embeddings() -> None:
    task = tasks.get("qsa", tokens=12, sparsity=4, dim=2)
    unit = FloatUnit(12, 2, 2)
    answer = refute(unit, task)
    assert answer.witness_found and answer.has == 6
    check(answer, unit, 4)


def test_a_residual_around_the_embedding_gives_no_false_witness() -> None:
    answer = refute(FloatUnit(12, 2, 2, residual=True), tasks.get("qsa", tokens=12, sparsity=4, dim=2))
    assert not answer.witness_found and not answer.impossible and answer.verdict == "does not apply"
    assert "this bound does not apply (qsa-bits)" in answer.reason
    assert answer.failing_hypothesis == "tokens are read through phi only (no residual around it)"
    assert answer.has == 6 and answer.needed == 9  # log2 C(11, 4) = 8.4: it would be too small if the bound applied


def test_layers_for_another_task_are_refused() -> None:
    task = tasks.get("qsa", tokens=8, sparsity=2, dim=2)
    with pytest.raises(HeadcountError, match="vectors of 3 numbers, not 2"):
        refute(random_qsa_layer(8, 2, 3, 1, 2), task)
    with pytest.raises(HeadcountError, match="sets below 6, not 7"):
        refute(random_qsa_layer(6, 2, 2, 1, 2), task)
    unit = FloatUnit(8, 2, 1)
    unit.v = unit.v[:, :1]
    with pytest.raises(HeadcountError, match="outputs of shape"):
        refute(unit, task)


@pytest.mark.parametrize(("n", "m", "p", "heads"), [(257, 1, 2, 1), (257, 2, 4, 2), (513, 4, 6, 2)])
def test_match3_layers_with_too_few_bits(n: int, m: int, p: int, heads: int) -> None:
    task = tasks.get("match3", tokens=n, modulus=n + 1)
    for seed in range(2):
        layer = random_match3_layer(n, n + 1, m, p, heads, seed)
        answer = refute(layer, task)
        witness = answer.witness
        assert witness is not None and answer.impossible
        tables = [{**w, "position": np.arange(n)} for w in (witness.first, witness.second)]
        assert (layer(tables[0])[0] == layer(tables[1])[0]).all()
        labels = [
            any((x[0] + a + b) % (n + 1) == 0 for a, b in itertools.product(set(x), set(x)))
            for x in (table["x"].tolist() for table in tables)
        ]
        assert sorted(labels) == [False, True]
        assert witness.target_distance == 1 and witness.output_distance == 0


def test_match3_layers_with_enough_bits() -> None:
    task = tasks.get("match3", tokens=17, modulus=18)
    for layer in (histogram_layer(17, 18, 6), random_match3_layer(17, 18, 4, 8)):
        answer = refute(layer, task)
        assert not answer.witness_found and not answer.impossible


def test_match3_without_disjointness_instances_is_refused() -> None:
    layer: PBitAttention = random_match3_layer(17, 9, 1, 2)
    with pytest.raises(HeadcountError, match="no instance fits"):
        refute(layer, tasks.get("match3", tokens=17, modulus=9))
