"""Sparse averaging with p-bit embeddings: the query token must encode its whole subset in m*p bits."""

from __future__ import annotations

from headcount.bounds.base import PROVED_HERE, Bound, Quantity, Sizes, epsilon_below
from headcount.bounds.counting import binomial_bits

EMBEDDING = "embedding dimensions"
EMBEDDING_BITS = "embedding bits (m * p)"


def least_bits(sizes: Sizes) -> Quantity:
    """m*p >= log2 C(N-1, q) for eps < 1/q.

    Fix a token i and let y run over the q-subsets of [N] without i. For two of them, y and y', give the
    tokens z_j = e1 on y minus y', -e1 on y' minus y, and 0 elsewhere (so z_i = 0 both times: the token
    (z_i; y; i) differs in its subset alone). The targets of token i are |y minus y'|/q * e1 and its
    negative, at distance at least 2/q, so one output cannot be within eps < 1/q of both. All other tokens
    are the same, hence whatever reads the tokens only through their embeddings gives the same output at i
    unless phi(0; y; i) and phi(0; y'; i) differ. So phi takes C(N-1, q) values on m numbers of p bits: 2^(m
    p) >= C(N-1, q).

    Nothing after the embedding is used: matrices of any precision, any order of attention, any number of
    heads and layers obey it, as long as no residual connection carries the raw token around the embedding.
    Where the query has an embedding of its own, m is the width of that one; H heads with one embedding each
    count m H.

    The number is the least integer m (p given), or the least integer m*p (p not given). For q = N there is no
    subset without i and the bound says nothing.
    """
    n, q = sizes.need("tokens"), sizes.need("sparsity")
    bits = binomial_bits(n - 1, q) if q < n else 0
    if sizes.precision_bits is None:
        return Quantity(bits, EMBEDDING_BITS)
    return Quantity(-(-bits // sizes.precision_bits), EMBEDDING)


def least_bits_all_subsets(sizes: Sizes) -> Quantity:
    """m*p >= log2 C(N, q) for eps < 1/(2q).

    As for ``qsa-bits``, with all q-subsets of [N], those with the query token i among them. Let y and y' be
    two of them, z_i = 0 in both inputs, and for j other than i let z_j = e1 on y minus y', -e1 on y' minus y,
    0 elsewhere. With r = |y minus y'| = |y' minus y| >= 1 the targets of token i are a/q * e1 and -b/q * e1,
    where a and b count the elements other than i of y minus y' and y' minus y. i is in at most one of the
    two, so a + b >= 2r - 1 >= 1: the targets are at distance 1/q or more, and one output cannot be within eps
    < 1/(2q) of both. (Two sets that differ by i alone, {i} + S and {j} + S, are at distance 1/q exactly, so
    this argument ends there.) Hence phi takes C(N, q) values at token i: 2^(m p) >= C(N, q).

    The same holds whatever comes after the embedding; see ``qsa-bits``. For q = N the number is 0.
    """
    bits = binomial_bits(sizes.need("tokens"), sizes.need("sparsity"))
    if sizes.precision_bits is None:
        return Quantity(bits, EMBEDDING_BITS)
    return Quantity(-(-bits // sizes.precision_bits), EMBEDDING)


BITS = Bound(
    id="qsa-bits",
    task="qsa",
    limits="embedding of any network that reads tokens through p-bit embeddings only",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="m p >= log2 C(N-1, q)",
    hypotheses=(
        "entries of the embedding phi(x_i) have p bits",
        "tokens are read through phi only (no residual around it)",
        "eps < 1/q",
    ),
    shape="log2 C(N-1, q) / p",
    formula=least_bits,
    obstacle=epsilon_below("1/q", lambda q: 1 / q),
    model="embedded",
)

BITS_ALL = Bound(
    id="qsa-bits-all",
    task="qsa",
    limits="embedding of any network that reads tokens through p-bit embeddings only",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="m p >= log2 C(N, q)",
    hypotheses=(*BITS.hypotheses[:2], "eps < 1/(2q)"),
    shape="log2 C(N, q) / p",
    formula=least_bits_all_subsets,
    obstacle=epsilon_below("1/(2q)", lambda q: 1 / (2 * q)),
    model="embedded",
)

BITS_PAPER = Bound(
    id="qsa-bits-paper",
    task="qsa",
    limits="embedding of one attention unit of p bits",
    status="proved in A (Theorem 4)",
    source="Sanford, Hsu, Telgarsky 2023, arXiv 2306.02896, Theorem 4",
    statement="if m p <= c q, no self-attention unit 1/(2q)-approximates qSA",
    hypotheses=("q large", "N >= 2q + 1", "p-bit arithmetic", "eps = 1/(2q)"),
    shape="q / p, up to an unknown constant",
    argument=(
        "Set disjointness: with N = 2q+1, the query token's subset holds one party's input (element 2k or "
        "2k+1 for its k-th bit) and the z's hold the other's, so the average is nonzero exactly when the two "
        "sets meet. The first party sends the embedded query token, m p bits; disjointness of q-bit sets "
        "needs order q. The one-way form of this argument has the constant 1, and qsa-bits is larger still "
        "(log2 C(N-1, q) >= q for N >= 2q+1), so nothing is lost by leaving the paper's constant unknown."
    ),
)
