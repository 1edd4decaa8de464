"""Sparse averaging with keys that depend only on the position: a dimension bound for any precision.

Both bounds share one lemma. Let token i have the subset y, one head, keys k_j of the position j alone, a
query w that depends on (y, i) but not on z, values v_j = A z_j + b_j with one matrix A, weights a_j =
softmax_j <w, k_j>.

*Lemma.* eps < 1/(2q) makes the q largest logits of token i exactly those of y. Proof: the error is L(z) + b
with L(z) = sum_j (a_j A - [j in y]/q) z_j and b constant; it is at most eps at z and at -z, so |L(z)| <=
eps. Put z_j = e, a unit vector, at one j and 0 elsewhere: |a_j A e| >= 1/q - eps > 1/(2q) for j in y, and
|a_j A e| <= eps < 1/(2q) for j not in y. The common factor |A e| is positive and drops out.

The assumptions of the lemma, and how the bounds change without them:

- If the query may depend on z_i, the lemma does not constrain the weight of token i itself (the token can act as a
  sink while z_i = 0): only the N-1 other keys and the subsets without i count. Replace N by N-1 in both bounds.
- If the matrix A may vary with the position, it adds a constant to each logit, which amounts to one extra query
  dimension: subtract 1 from the required dimension of queries and keys.
"""

from __future__ import annotations

from headcount.bounds.base import PROVED_HERE, Bound, Quantity, Sizes, epsilon_below
from headcount.bounds.counting import least_sum_of_binomials
from headcount.bounds.statements.qsa_bits import EMBEDDING

HYPOTHESES = (
    "one layer, one head",
    "keys depend on the position only",
    "queries depend on the subset and the position, not on z",
    "values are one affine map of z, the same linear part at every position",
    "eps < 1/(2q)",
    "any precision",
)
_epsilon = epsilon_below("1/(2q)", lambda q: 1 / (2 * q))


def regions_dim(sizes: Sizes) -> Quantity:
    """The least m with 2 * sum_{k<m} C(C(N,2)-1, k) >= C(N, q).

    By the lemma of this file every q-subset must be the top q of some query w in R^m. "Every logit of y
    exceeds every other" is an open condition on w, so it holds on a whole region of the arrangement of the
    C(N, 2) hyperplanes <w, k_j - k_l> = 0 through the origin of R^m, and different subsets hold different
    regions. An arrangement of n hyperplanes through the origin has at most 2 * sum_{k<m} C(n-1, k) regions
    (Schlaefli; Cover 1965), fewer if some coincide. For q = N one subset is asked for and the bound says
    nothing.
    """
    n, q = sizes.need("tokens"), sizes.need("sparsity")
    if q == n:
        return Quantity(0, EMBEDDING)
    return Quantity(least_sum_of_binomials(n * (n - 1) // 2 - 1, n, min(q, n - q)), EMBEDDING)


def radon_dim(sizes: Sizes) -> Quantity:
    """m >= d' + min(2 q*, N - q*) with q* = min(q, N - q); so m >= d' + 2q as soon as N >= 3q.

    Queries and keys. Suppose the keys live in R^r and every q-subset is the top q of some query. Then each
    q-subset is separated from its complement by a hyperplane. (A query's negative puts the complement on
    top, so q* may stand for q.) Let s = min(2 q* + 1, N - q* + 1) and suppose r <= s - 2. Any s keys are at
    least r + 2 points of R^r, so by Radon's theorem they split into two nonempty parts, P and T, whose
    convex hulls meet. The smaller one, P say, has at most s // 2 <= q* elements and T has at most s - 1 <=
    N - q*: some q*-subset contains P and avoids T, and no hyperplane separates it. So r >= s - 1. The
    moment curve of ``qsa-polytope`` does it with r = 2q: for N >= 3q the bound is tight.

    Values. Keys are K' phi(z_j; y_j; j) with phi in R^m and do not change with z_j, so the differences
    phi(z; y; j) - phi(0; y; j) lie in the kernel of K', while the value matrix maps them onto A z, z in
    R^{d'}; A is injective by the lemma. So the kernel has at least d' dimensions and r <= rank K' <= m -
    d'.

    Here m is the width of the vector that keys and values are read from. If the query is read from the same
    one, the differences phi(z; y; j) - phi(z; y'; j) are in that kernel too. Queries of one token lie in a
    translate of the space S that their differences span; seen from there, keys are points of dim S + 1
    numbers, so dim S >= 2q - 1 (Radon again). The query matrix maps differences in y onto S and differences
    in z to 0: the kernel has d' + 2q - 1 dimensions or more, and m >= d' + 4q - 1 for N >= 3q.
    """
    n, q = sizes.need("tokens"), sizes.need("sparsity")
    fewer = min(q, n - q)
    return Quantity((sizes.dim or 1) + min(2 * fewer, n - fewer), EMBEDDING)


REGIONS = Bound(
    id="qsa-regions",
    task="qsa",
    limits="dimension of queries and keys, hence of the embedding",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="2 sum_{k<m} C(C(N,2)-1, k) >= C(N, q)",
    hypotheses=HYPOTHESES,
    shape="order q: up to q/2 as N grows",
    formula=regions_dim,
    obstacle=_epsilon,
    model="positional keys",
)

RADON = Bound(
    id="qsa-radon",
    task="qsa",
    limits="width of the vector that keys and values are read from",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="m >= d' + 2q for N >= 3q (in general d' + min(2q*, N-q*), q* = min(q, N-q))",
    hypotheses=HYPOTHESES,
    shape="d' + 2q",
    formula=radon_dim,
    obstacle=_epsilon,
    model="positional keys",
)
