"""The reference itself, against loops over plain numbers."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from headcount.attention.machinery import reference
from headcount.core.errors import HeadcountError

N, D, E = 3, 2, 2


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(queries: int, logit, values, inside) -> list[list[float]]:
    """softmax-weighted products of values, tuple by tuple."""
    rows = []
    for i in range(queries):
        tuples = [t for t in product(range(N), repeat=len(values)) if inside(i, t)]
        weights = [math.exp(logit(i, t)) for t in tuples]
        rows.append(
            [
                sum(
                    weight * math.prod(float(v[j][c]) for v, j in zip(values, t, strict=True))
                    for weight, t in zip(weights, tuples, strict=True)
                )
                / sum(weights)
                if tuples
                else 0.0
                for c in range(E)
            ]
        )
    return rows


def dot(*vectors: torch.Tensor) -> float:
    return float(torch.stack(vectors).prod(0).sum())


def head(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[None, None]


@pytest.mark.parametrize("sides", [1, 2, 3])
@pytest.mark.parametrize(("causal", "window", "pad"), [(False, None, None), (True, None, 0), (False, 2, None)])
def test_order_s(sides: int, causal: bool, window: int | None, pad: int | None) -> None:
    q = numbers(N, D, seed=0)
    ks, vs = (
        [numbers(N, D, seed=1 + s) for s in range(sides)],
        [numbers(N, E, seed=9 + s) for s in range(sides)],
    )

    def inside(i: int, t: tuple[int, ...]) -> bool:
        ordered = causal or window is not None
        return all(j != pad and (not ordered or j <= i) and (window is None or i - j < window) for j in t)

    wanted = by_hand(N, lambda i, t: 0.7 * dot(q[i], *(k[j] for k, j in zip(ks, t, strict=True))), vs, inside)
    padding = None if pad is None else torch.arange(N)[None] == pad
    found = reference.order_s(
        head(q),
        [head(k) for k in ks],
        [head(v) for v in vs],
        scale=0.7,
        causal=causal,
        window=None if window is None else (window,) * sides,
        key_padding_mask=padding,
    )
    torch.testing.assert_close(found[0, 0], torch.tensor(wanted, dtype=torch.float64))


def test_strassen() -> None:
    q1, q2, k1, k2 = (numbers(N, D, seed=s) for s in range(4))
    v1, v2 = (numbers(N, E, seed=s) for s in (4, 5))
    wanted = by_hand(
        N,
        lambda i, t: 0.7 * (dot(q1[i], k1[t[0]]) + dot(k1[t[0]], k2[t[1]]) + dot(k2[t[1]], q2[i])),
        [v1, v2],
        lambda i, t: t[0] <= i and t[1] <= i,
    )
    found = reference.strassen(*map(head, (q1, q2, k1, k2, v1, v2)), scale=0.7, causal=True)
    torch.testing.assert_close(found[0, 0], torch.tensor(wanted, dtype=torch.float64))


def test_tree() -> None:
    q = numbers(N, D, seed=0)
    ks, vs = [numbers(N, D, seed=1 + s) for s in range(3)], [numbers(N, E, seed=5 + s) for s in range(3)]
    wanted = by_hand(
        N,
        lambda i, t: 0.7 * (dot(q[i], ks[0][t[0]]) + dot(ks[0][t[0]], ks[1][t[1]]) + dot(q[i], ks[2][t[2]])),
        vs,
        lambda i, t: t[0] <= i and t[1] <= t[0] and t[2] <= i,
    )
    found = reference.tree(head(q), [*map(head, ks)], [*map(head, vs)], [0, 1, 0], scale=0.7, causal=True)
    torch.testing.assert_close(found[0, 0], torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("causal", [False, True])
def test_triangular(causal: bool) -> None:
    q, k, v1, v2 = (numbers(N, N, D, seed=s) for s in range(4))
    wanted = torch.zeros(N, N, E, dtype=torch.float64)
    for i, j in product(range(N), repeat=2):
        middles = [m for m in range(N) if not causal or m <= max(i, j)]
        weights = [math.exp(0.7 * dot(q[i, m], k[m, j])) for m in middles]
        for weight, m in zip(weights, middles, strict=True):
            wanted[i, j] += weight / sum(weights) * v1[i, m] * v2[m, j]
    found = reference.triangular(*map(head, (q, k, v1, v2)), scale=0.7, causal=causal)
    torch.testing.assert_close(found[0, 0], wanted)


def test_positions_of_a_few_queries() -> None:
    q, k1, k2, v1, v2 = (numbers(1, 2, 6, 3, seed=s) for s in range(5))
    whole = reference.third_order(q, k1, k2, v1, v2, causal=True)
    places = torch.tensor([4, 1])
    part = reference.third_order(q[:, :, places], k1, k2, v1, v2, causal=True, positions=places)
    torch.testing.assert_close(part, whole[:, :, places])


def test_too_large() -> None:
    x = torch.zeros(1, 1, 500, 1)
    with pytest.raises(HeadcountError, match=r"\(1, 1, 500, 500, 500\) means 125,000,000 logits, more than 67,108,864"):
        reference.third_order(x, x, x, x, x)
    with pytest.raises(HeadcountError, match="pass fewer queries"):
        reference.order_s(x, [x] * 3, [x] * 3)
