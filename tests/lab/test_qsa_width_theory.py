"""The theory lines of the figure ``qsa-width``: the built unit with one map, and the bound that applies to one map."""

from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pytest
from conftest import ROOT

from headcount import constructions
from headcount.lab.figures import qsa_width
from headcount.lab.models import build

RESULTS = ROOT / "results"


def one_map(z: np.ndarray, keys: np.ndarray, queries: np.ndarray, tokens: list[tuple[int, ...]]) -> np.ndarray:
    """softmax(Phi Q K' Phi') Phi V in float64 with phi_i = (z_i; u_i; w(y_i)): one matrix, read three times."""
    dim, k = z.shape[1], keys.shape[1]
    phi = np.concatenate([z, keys, queries], axis=1)
    assert phi.shape == (len(tokens), dim + 2 * k)
    w_q, w_k, w_v = (np.zeros((dim + 2 * k, width)) for width in (k, k, dim))
    w_q[dim + k :] = np.eye(k)
    w_k[dim : dim + k] = np.eye(k)
    w_v[:dim] = np.eye(dim)
    logits = phi @ w_q @ (phi @ w_k).T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True) @ phi @ w_v)


@pytest.mark.parametrize("q", [1, 2, 3])
def test_the_polytope_with_one_map_solves_qsa_in_d_plus_4q_dimensions(q: int) -> None:
    """Keys and queries written out here, from the trigonometric identity, not taken from the construction."""
    n, dim, epsilon = 9, 3, 1 / (4 * q)
    generator = np.random.default_rng(q)
    angles = 2 * np.pi * np.arange(n) / n
    keys = np.concatenate(
        [np.cos(np.outer(angles, np.arange(1, q + 1))), np.sin(np.outer(angles, np.arange(1, q + 1)))], 1
    )

    def query(chosen: tuple[int, ...]) -> np.ndarray:
        """Least squares for -prod (1 - cos(theta - theta_j)) in the 2q waves and a constant, which softmax drops."""
        value = -np.prod([1 - np.cos(angles - angles[j]) for j in chosen], axis=0)
        solved, *_ = np.linalg.lstsq(np.column_stack([np.ones(n), keys]), value, rcond=None)
        gap = -np.delete(value, chosen).max()
        np.testing.assert_allclose(np.column_stack([np.ones(n), keys]) @ solved, value, atol=1e-12)  # degree q: exact
        return np.asarray(solved[1:] * math.log(4 * (n - q) / (q * epsilon)) / gap)

    subsets = list(itertools.combinations(range(n), q))
    for _ in range(20):
        chosen = [subsets[i] for i in generator.integers(len(subsets), size=n)]
        z = generator.normal(size=(n, dim))
        z /= np.maximum(1, np.linalg.norm(z, axis=1, keepdims=True))
        answer = one_map(z, keys, np.stack([query(subset) for subset in chosen]), chosen)
        target = np.stack([z[list(subset)].mean(axis=0) for subset in chosen])
        # Mass off the set at most epsilon / 4, so an error of at most epsilon / 2 in exact arithmetic.
        assert np.linalg.norm(answer - target, axis=1).max() <= epsilon / 2
    certificate = constructions.build("qsa-polytope", tokens=n, sparsity=q, dim=dim, epsilon=epsilon).certificate
    assert certificate.single_map_dim == dim + 2 * keys.shape[1] == dim + 4 * q


def test_the_bound_counts_sets_and_the_trained_map_has_these_inputs() -> None:
    for q in range(1, 9):
        told = qsa_width.theory(q)
        assert told["qsa-bits"] == math.ceil(math.log2(math.comb(19, q)) / 32) == 1
        assert told["qsa-bits-all"] == math.ceil(math.log2(math.comb(20, q)) / 32) == 1
        assert told["qsa-polytope, one map"] == 4 + 4 * q
    assert qsa_width.bound({"qsa-bits": 1, "qsa-bits-all": 2}) == 2  # the larger counts
    spec = qsa_width.plan("full")[0]
    model = build(spec.config, spec.reading, 0)
    assert model.reader.features == qsa_width.theory(1)["inputs"] == 44


def test_the_committed_rows_hold_what_theory_says_now() -> None:
    with (RESULTS / "qsa-width.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sparsity"]) for row in rows] == list(range(1, 9))
    for row in rows:
        assert {name: int(row[name]) for name in qsa_width.theory(1)} == qsa_width.theory(int(row["sparsity"]))
        assert float(row["goal"]) == qsa_width.goal(int(row["sparsity"]))
    numbers = [
        {key: (float(value) if key == "goal" else int(value)) if value else None for key, value in row.items()}
        for row in rows
    ]
    assert (RESULTS / "qsa-width.txt").read_text() == qsa_width.verdict(numbers) + "\n"
