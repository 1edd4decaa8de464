"""The sizes checked by ``theory_scan.py``: corner cases of every bound and construction, and random sizes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

SMALL = 12
"""Largest number of tokens at which a certificate is checked on every set."""
ENDS = (5e-324, 1e-300, 1e-15, 0.49, 0.4999999, math.nextafter(0.5, 0))
"""Epsilons at both ends of the range that constructions accept."""


class Case(NamedTuple):
    """One set of sizes: ``group`` is bound or construct, ``name`` its subcommand."""

    group: str
    name: str
    options: dict[str, Any]


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _tokens(rng: random.Random, most: float) -> int:
    return rng.randint(1, SMALL) if rng.random() < 0.6 else int(_log_uniform(rng, 1, most))


def _sparsity(rng: random.Random, tokens: int, most: int) -> int:
    corner = rng.choice((1, tokens - 1, tokens, tokens // 2, tokens // 3, None, None, None))
    q = rng.randint(1, tokens) if corner is None else corner
    return max(1, min(q, most)) if rng.random() < 0.98 else rng.choice((0, -1, tokens + 1))


def _epsilon(rng: random.Random, sparsity: int, dim: int) -> float:
    q = max(1, sparsity)
    limits = (1 / q, 1 / (2 * q), 1 / (4 * q), 1 / (q * math.sqrt(dim)))
    near = [math.nextafter(limit, side) for limit in limits for side in (0, 1)]
    if rng.random() < 0.02:
        return rng.choice((0.0, -1.0, 0.5, math.nan, math.inf))
    return rng.choice((*near, *ENDS, rng.uniform(0, 0.5), _log_uniform(rng, 1e-14, 0.5), _log_uniform(rng, 1e-6, 0.5)))


def _modulus(rng: random.Random) -> int | None:
    return rng.choice(
        (None, 2, 3, rng.randint(2, 40), int(_log_uniform(rng, 2, 1e6)), int(_log_uniform(rng, 2, 2**58)))
    )


def draw(rng: random.Random) -> Case:
    """Draw one random set of sizes."""
    kind = rng.choices(
        (
            "qsa",
            "match3",
            "composition",
            "induction",
            "head",
            "polytope",
            "searched",
            "keys",
            "match",
            "bigram",
            "local",
        ),
        (42, 8, 3, 1, 2, 17, 0.3, 1.2, 16, 7, 0.3),
    )[0]
    if kind in ("qsa", "match3", "composition", "induction", "head"):
        return Case("bound", kind, _bound_sizes(rng, kind))
    if kind in ("match", "bigram", "local"):
        return _matching(rng, kind)
    tokens = _tokens(rng, 60 if kind == "polytope" else 40)
    q, dim = _sparsity(rng, tokens, tokens), rng.randint(1, 8)
    options: dict[str, Any] = {"tokens": tokens, "sparsity": q, "dim": dim, "epsilon": _epsilon(rng, q, dim)}
    if kind == "polytope":
        return Case("construct", "qsa-polytope", options)
    options["seed"] = rng.randint(0, 99)
    if kind == "keys":
        options["key_dim"] = rng.choice((1, 2, 4 * max(1, q), rng.randint(1, 40)))
    elif rng.random() < 0.2:
        options["guarantee"] = "all inputs"
        options["tokens"], options["sparsity"] = (tokens, min(q, 3)) if tokens > SMALL else (tokens, q)
    return Case("construct", "qsa-certificate", options)


def _bound_sizes(rng: random.Random, kind: str) -> dict[str, Any]:
    bits = rng.choice((None, 1, 2, 3, 4, 8, 16, rng.randint(1, 64), int(_log_uniform(rng, 1, 1e6))))
    heads = rng.choice((1, 1, rng.randint(1, 64)))
    if kind == "head":
        return {"tokens": int(_log_uniform(rng, 1, 1e18))}
    if kind == "composition":
        return {"domain": int(_log_uniform(rng, 1, 1e18)), "precision_bits": bits, "heads": heads}
    tokens = _tokens(rng, 1e18 if rng.random() < 0.05 else 1e6)
    if kind == "induction":
        return {"tokens": tokens, "precision_bits": bits, "heads": heads}
    if kind == "match3":
        return {"tokens": tokens, "modulus": _modulus(rng) or tokens + 1, "precision_bits": bits, "heads": heads}
    if tokens <= SMALL:  # few precisions, since every one runs all sets of the size
        bits = rng.choice((None, 1, 2, 3, 4, 8, 16, 32, 53, 64, 10**6))
    q = _sparsity(rng, tokens, 64 if rng.random() < 0.97 else 2000)
    dim = rng.choice((1, 2, rng.randint(1, 16), int(_log_uniform(rng, 1, 1e5))))
    epsilon = None if rng.random() < 0.3 else rng.choice((_epsilon(rng, q, dim), rng.uniform(0.5, 8)))
    return {
        "tokens": tokens,
        "sparsity": q,
        "dim": dim,
        "precision_bits": bits,
        "modulus": _modulus(rng),
        "heads": heads,
        "epsilon": epsilon,
    }


def _matching(rng: random.Random, kind: str) -> Case:
    options: dict[str, Any] = {"tokens": _tokens(rng, 100), "modulus": _modulus(rng), "epsilon": _epsilon(rng, 1, 1)}
    if kind == "local":
        options |= {"tokens": min(options["tokens"], 20), "window": rng.choice((0, 1, 2, rng.randint(0, 6), 50))}
        return Case("construct", "match3-local", options | {"seed": rng.randint(0, 99)})
    if kind == "bigram":
        return Case("construct", "match3-bigram", options)
    order = rng.choice((2, 2, 2, 3, 3, 4, rng.choice((1, 5, 1000))))
    if order == 2 and rng.random() < 0.5:
        return Case("construct", "match2", options)
    options["tokens"] = min(options["tokens"], (SMALL * 2) if order == 3 else SMALL if order > 3 else 100)
    return Case("construct", "match-s", options | {"order": order})


def corners(most: int = SMALL) -> Iterator[Case]:
    """N = 1..12 with q = 1, N-1, N and N/2; M = 2, 3; p = 1, 2; epsilons at both ends and around every limit."""
    for n in range(1, most + 1):
        for q in sorted({1, max(1, n - 1), n, max(1, n // 2)}):
            near = [math.nextafter(1 / k, side) for k in (q, 2 * q) for side in (0, 1)]
            for epsilon in (None, *near, *ENDS, 0.1, 2.0):
                for p in (None, 1, 2, 53):
                    yield Case("bound", "qsa", _sizes(n, q, epsilon, precision_bits=p, modulus=2, dim=1 + n % 3))
                if epsilon is not None:
                    yield Case("construct", "qsa-polytope", _sizes(n, q, epsilon, dim=1 + n % 3))
            for epsilon in (ENDS[0], 0.1, ENDS[-1]):
                yield Case("construct", "qsa-certificate", _sizes(n, q, epsilon, dim=1, key_dim=min(n, 3)))
        for m in (2, 3):
            for epsilon in (ENDS[0], 0.1, ENDS[-1]):
                size = {"tokens": n, "modulus": m, "epsilon": epsilon}
                yield Case("construct", "match2", size)
                yield Case("construct", "match3-bigram", size)
                yield from (Case("construct", "match-s", size | {"order": s}) for s in (2, 3, 4) if n < 9 or s < 4)
            if n <= 2:
                yield from (Case("construct", "match3-local", size | {"window": k}) for k in (0, 1, 50))
            for p in (None, 1, 2, 53):
                yield Case("bound", "match3", {"tokens": n, "modulus": m, "precision_bits": p})
        yield Case("bound", "head", {"tokens": n})
        yield from (Case("bound", "composition", {"domain": n, "precision_bits": p}) for p in (None, 1, 53))
    for n, q in ((1, 1), (2, 1), (2, 2), (5, 4)):
        yield Case("construct", "qsa-certificate", _sizes(n, q, 0.49, dim=1))
    for n, q in ((24, 23), (24, 22), (40, 39), (40, 36), (40, 40)):  # log(4 (N-q) / (q eps)) is negative for some
        yield Case("construct", "qsa-polytope", _sizes(n, q, 0.49, dim=2))
        yield Case("bound", "qsa", _sizes(n, q, 0.49, dim=2, precision_bits=8))
    yield Case("construct", "qsa-certificate", _sizes(24, 23, 0.49, dim=2))
    for name, size in (
        ("qsa-polytope", 10**9),
        ("qsa-certificate", 10**9),
        ("match2", 10**200),
        ("match3-local", 10**9),
    ):
        yield Case("construct", name, {"tokens": size})
    yield Case("construct", "qsa-polytope", _sizes(2000, 1500, 0.1, dim=1))
    yield Case("construct", "match-s", {"tokens": 10**200, "order": 3})
    yield Case("construct", "qsa-certificate", _sizes(40, 3, 0.1, dim=1, key_dim=10**12))
    for huge in (10**18, 10**18 + 1, 10**400):
        yield Case("bound", "qsa", _sizes(huge, 3, None, dim=1, precision_bits=4))
        yield Case("bound", "qsa", _sizes(50, 3, 0.1, dim=huge, precision_bits=huge))
        yield Case("bound", "match3", {"tokens": 50, "modulus": huge, "precision_bits": huge})


def _sizes(tokens: int, sparsity: int, epsilon: float | None, **others: Any) -> dict[str, Any]:
    return {"tokens": tokens, "sparsity": sparsity, "epsilon": epsilon, **others}
