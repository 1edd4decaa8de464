"""Each explicit bound against brute force at sizes where everything can be enumerated."""

from __future__ import annotations

import itertools
import math
from typing import cast

import numpy as np
import pytest

from headcount import bounds, tasks


def value(id: str, **sizes: int) -> int:
    return cast(int, bounds.get(id).evaluate(**sizes).value)


@pytest.mark.parametrize(("n", "q"), [(4, 1), (5, 2), (7, 3), (8, 4)])
def test_qsa_bits_every_pair_of_subsets_needs_two_embeddings(n: int, q: int) -> None:
    """The witness of the argument, for every pair, with exact targets; so no two subsets may share a code."""
    query = n - 1
    subsets = list(itertools.combinations(range(n - 1), q))
    for first, second in itertools.combinations(subsets, 2):
        z = np.zeros(n)
        z[list(set(first) - set(second))] = 1
        z[list(set(second) - set(first))] = -1
        assert z[query] == 0
        distance = abs(z[list(first)].mean() - z[list(second)].mean())
        assert distance >= 2 / q - 1e-15
    for p in (1, 3, 8):
        m = value("qsa-bits", tokens=n, sparsity=q, precision_bits=p)
        assert 2 ** (m * p) >= len(subsets) > 2 ** ((m - 1) * p)
    assert 2 ** value("qsa-bits", tokens=n, sparsity=q) >= len(subsets)


def test_qsa_bits_says_nothing_when_every_token_is_averaged() -> None:
    assert value("qsa-bits", tokens=5, sparsity=5, precision_bits=4) == 0


@pytest.mark.parametrize(("n", "q"), [(2, 1), (4, 1), (5, 2), (6, 4), (7, 3), (8, 7)])
def test_qsa_bits_all_every_pair_of_subsets_with_the_query_token_too(n: int, q: int) -> None:
    """The witness for every pair of q-subsets of [N], with z = 0 at the query token and the targets by the task."""
    query = n - 1
    task = tasks.get("qsa", tokens=n, sparsity=q, dim=1)
    subsets = list(itertools.combinations(range(n), q))
    distances = []
    for first, second in itertools.combinations(subsets, 2):
        z = np.zeros((n, 1))
        z[list(set(first) - set(second))] = 1
        z[list(set(second) - set(first))] = -1
        z[query] = 0
        one, two = (task.batch(z=z, y=np.array([subsets[0]] * query + [y])).targets[0, query] for y in (first, second))
        distances.append(float(np.linalg.norm(one - two)))
    assert min(distances) == pytest.approx(1 / q, rel=1e-12)  # not below 1/q, and reached: eps < 1/(2q) is the limit
    for p in (1, 3, 8):
        m = value("qsa-bits-all", tokens=n, sparsity=q, precision_bits=p)
        assert 2 ** (m * p) >= len(subsets) > 2 ** ((m - 1) * p)
    bits = value("qsa-bits-all", tokens=n, sparsity=q)
    assert 2**bits >= len(subsets) > 2 ** (bits - 1)
    assert bits >= value("qsa-bits", tokens=n, sparsity=q)


def top_sets(keys: np.ndarray, q: int, directions: np.ndarray) -> set[frozenset[int]]:
    """The strict top-q sets that these queries see."""
    found = set()
    for logits in directions @ keys.T:
        order = np.argsort(-logits)
        if logits[order[q - 1]] - logits[order[q]] > 1e-12:
            found.add(frozenset(order[:q].tolist()))
    return found


def all_plane_directions(keys: np.ndarray) -> np.ndarray:
    """A direction inside every region of the arrangement of the differences, in the plane: exhaustive."""
    differences = [a - b for a, b in itertools.combinations(keys, 2)]
    across = [math.atan2(d[1], d[0]) + turn for d in differences for turn in (np.pi / 2, -np.pi / 2)]
    angles = sorted({angle % (2 * math.pi) for angle in across})
    middles = [(a + b) / 2 for a, b in itertools.pairwise([*angles, angles[0] + 2 * math.pi])]
    return np.array([[math.cos(a), math.sin(a)] for a in middles])


@pytest.mark.parametrize(("n", "q"), [(4, 1), (5, 2), (6, 2), (6, 3), (7, 3)])
def test_top_sets_in_the_plane_obey_regions_and_radon(n: int, q: int) -> None:
    """m = 2, every query enumerated: never more top sets than the count; all of them only if allowed."""
    rng = np.random.default_rng(n * 10 + q)
    lines = math.comb(n, 2)
    most = 2 * sum(math.comb(lines - 1, k) for k in range(2))
    reached = 0
    circle = np.array([[math.cos(2 * math.pi * j / n), math.sin(2 * math.pi * j / n)] for j in range(n)])
    for keys in (circle, *(rng.standard_normal((n, 2)) for _ in range(40))):
        found = top_sets(keys, q, all_plane_directions(keys))
        assert len(found) <= most
        reached = max(reached, len(found))
    key_dim = value("qsa-radon", tokens=n, sparsity=q, dim=1) - 1
    if reached == math.comb(n, q):
        assert key_dim <= 2 and value("qsa-regions", tokens=n, sparsity=q) <= 2
    if q == 1:  # the plane is enough for one element, a line is not
        assert reached == n and key_dim == 2


def test_four_points_in_the_plane_can_show_every_pair() -> None:
    """N = 4, q = 2: the bound says 2 dimensions, and a triangle with a point inside has them all: tight."""
    keys = np.array([[0.0, 0.1], [1, 0], [-0.6, 0.9], [-0.5, -1]])
    found = top_sets(keys, 2, all_plane_directions(keys))
    assert len(found) == 6
    assert value("qsa-radon", tokens=4, sparsity=2, dim=1) - 1 == 2


@pytest.mark.parametrize(("n", "q"), [(6, 2), (7, 2), (9, 3)])
def test_radon_below_the_bound_some_subset_is_never_on_top(n: int, q: int) -> None:
    """Random keys in one dimension fewer: the Radon partition of the argument blocks a subset."""
    dim = value("qsa-radon", tokens=n, sparsity=q, dim=1) - 2
    rng = np.random.default_rng(q)
    for _ in range(20):
        keys = rng.standard_normal((n, dim))
        # An affine dependence among the first dim + 2 keys: sum c = 0, sum c_j k_j = 0.
        system = np.vstack([keys[: dim + 2].T, np.ones(dim + 2)])
        c = np.linalg.svd(system)[2][-1]
        sides = [np.flatnonzero(c > 0), np.flatnonzero(c < 0)]
        small, large = sorted(sides, key=len)
        rest = [j for j in range(n) if j not in small and j not in large]
        subset = np.array([*small, *rest[: q - len(small)]])
        assert len(subset) == q and not set(subset) & set(large)
        # The hulls meet, so no query puts every key of the subset above every other one.
        weights = np.abs(c)
        meet_small = weights[small] @ keys[small] / weights[small].sum()
        meet_large = weights[large] @ keys[large] / weights[large].sum()
        assert np.allclose(meet_small, meet_large, atol=1e-9)
        others = np.setdiff1d(np.arange(n), subset)
        logits = rng.standard_normal((2000, dim)) @ keys.T
        assert not (logits[:, subset].min(1) > logits[:, others].max(1)).any()


@pytest.mark.parametrize(("n", "q"), [(6, 2), (8, 2), (9, 3), (12, 4)])
def test_radon_is_reached_by_the_moment_curve(n: int, q: int) -> None:
    """Exact integers: -prod (t - j)^2 is 0 on the subset and at most -1 elsewhere, with 2q coordinates."""
    assert value("qsa-radon", tokens=n, sparsity=q, dim=3) == 3 + 2 * q
    for subset in itertools.combinations(range(n), q):
        logits = [-math.prod((t - j) ** 2 for j in subset) for t in range(n)]
        assert all((logit == 0) == (t in subset) for t, logit in enumerate(logits))
        assert max(logit for t, logit in enumerate(logits) if t not in subset) <= -1


def test_rnn_and_mlp_numbers() -> None:
    assert value("qsa-mlp", tokens=9, sparsity=3, dim=3) == 14  # 27/2 rounded up
    assert value("qsa-mlp-q1", tokens=9, sparsity=1, dim=3) == 27
    assert value("qsa-mlp-any-q", tokens=9, sparsity=8, dim=3) == 27
    assert value("qsa-rnn", tokens=8, sparsity=2) == 4  # 7/2 rounded up
    assert value("qsa-rnn-q1", tokens=8, sparsity=1) == 7
    assert value("qsa-rnn-any-q", tokens=8, sparsity=3) == 5
    for n in range(2, 40):
        for q in range(1, n // 2 + 1):
            sizes = {"tokens": n, "sparsity": q, "dim": 3}
            assert value("qsa-mlp-any-q", **sizes) >= value("qsa-mlp", **sizes)
            assert value("qsa-rnn-any-q", **sizes) >= value("qsa-rnn", **sizes)


def best_mean(a: np.ndarray, q: int) -> float:
    return max(abs(a[list(y)].mean()) for y in itertools.combinations(range(len(a)), q))


@pytest.mark.parametrize(("n", "q"), [(4, 3), (5, 2), (6, 5), (7, 4)])
def test_some_subset_of_any_direction_has_a_mean_of_half_an_element(n: int, q: int) -> None:
    """The step of qsa-mlp-any-q: max |a_j| = 1 gives a q-subset with |mean| >= 1/(2q)."""
    rng = np.random.default_rng(n)
    hard = np.full(n, -1 / (q - 1) if q > 1 else 0.0)
    hard[0] = 1
    for a in (hard, *rng.uniform(-1, 1, (200, n))):
        a = a / np.abs(a).max()
        assert best_mean(a, q) >= 1 / (2 * q) - 1e-12


def test_rnn_every_pair_of_histories_is_told_apart() -> None:
    """N = 6, q = 2: all 2^(N-q) histories, each pair asked the question of the argument."""
    n, q = 6, 2
    histories = list(itertools.product((1, -1), repeat=n - q))
    assert len(histories) == 2 ** value("qsa-rnn-any-q", tokens=n, sparsity=q)
    for one, two in itertools.combinations(histories, 2):
        j = next(k for k in range(n - q) if one[k] != two[k])
        means = [(h[j] + 0) / q for h in (one, two)]  # the other element of the subset has z = 0
        assert abs(means[0] - means[1]) == 2 / q


@pytest.mark.parametrize(("n", "q", "dim"), [(4, 1, 1), (4, 2, 3), (3, 1, 4), (5, 3, 3), (2, 1, 8)])
def test_rnn_every_pair_of_histories_of_vectors_is_told_apart(n: int, q: int, dim: int) -> None:
    """All 2^((N-q) d') histories of sign vectors, each pair asked the question of the argument; targets by the task."""
    task = tasks.get("qsa", tokens=n, sparsity=q, dim=dim)
    vectors = np.array(list(itertools.product((1, -1), repeat=dim))) / math.sqrt(dim)
    histories = np.array(list(itertools.product(vectors, repeat=n - q)))
    assert len(histories) == 2 ** value("qsa-rnn-any-dim", tokens=n, sparsity=q, dim=dim)
    # Tokens n-q .. n-2 are S, with z = 0; token n-1 asks for S and j. One batch for each j, all histories in it.
    z = np.zeros((len(histories), n, dim))
    z[:, : n - q] = histories
    least = math.inf
    for j in range(n - q):
        y = np.tile(np.array([j, *range(n - q, n - 1)]), (len(histories), n, 1))
        answers = task.batch(z=z, y=y).targets[:, -1]
        differ = (histories[:, None, j] != histories[None, :, j]).any(-1)
        distances = np.linalg.norm(answers[:, None] - answers[None], axis=-1)
        least = min(least, float(distances[differ].min()))
    assert least == pytest.approx(2 / (q * math.sqrt(dim)), rel=1e-12)  # so eps < 1/(q sqrt d') is the limit


@pytest.mark.parametrize("n", [2, 3, 5])
def test_composition_counts_functions(n: int) -> None:
    functions = len(list(itertools.product(range(n), repeat=n)))
    bits = value("composition-one-layer", domain=n)
    assert 2**bits >= functions > 2 ** (bits - 1)
    for heads, p in ((1, 2), (2, 3)):
        m = value("composition-one-layer", domain=n, heads=heads, precision_bits=p)
        assert heads * (m + 1) * p >= bits
        assert m == 0 or heads * m * p < bits


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_low_rank_is_n_minus_one_exactly(n: int) -> None:
    """Softmax of the identity needs rank n-1 under every row shift, and n-1 is enough for random matrices."""
    d = value("low-rank-attention", tokens=n)
    rng = np.random.default_rng(n)
    logits = np.eye(n)
    for c in rng.standard_normal((200, n)) * 3:
        assert np.linalg.matrix_rank(logits + np.outer(c, np.ones(n)), tol=1e-9) >= n - 1
    for _ in range(20):
        p = rng.random((n, n)) + 0.05
        p /= p.sum(1, keepdims=True)
        log_p = np.log(p)
        inverse_ones = np.linalg.solve(log_p.T, np.ones(n))
        c = -inverse_ones / (inverse_ones @ inverse_ones)  # 1' (log P)^-1 c = -1
        shifted = log_p + np.outer(c, np.ones(n))
        u, s, vt = np.linalg.svd(shifted)
        assert s[-1] < 1e-9 * s[0]  # singular up to rounding: rank n-1
        low = (u[:, :d] * s[:d]) @ vt[:d]
        weights = np.exp(low) / np.exp(low).sum(1, keepdims=True)
        assert np.allclose(weights, p, atol=1e-9)
