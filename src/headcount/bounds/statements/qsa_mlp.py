"""Sparse averaging with a fully connected net on vec(X): its first layer must have full rank on z."""

from __future__ import annotations

from headcount.bounds.base import PROVED_HERE, Bound, Quantity, Sizes, epsilon_below, first_obstacle

RANK = "rank of the first layer on z"
_NET = "a fully connected net on vec(X): everything after the first linear layer sees X through it alone"


def full_rank(sizes: Sizes) -> Quantity:
    """rank W_z >= N d', for q = 1 and eps < 1.

    W_z, width x N d', holds the columns of the first layer's weight matrix that multiply the z's. If its
    rank is below N d', some delta != 0 has W_z delta = 0. Scale it so that its largest block delta_j has
    norm 1; then z = delta and z = -delta are both allowed inputs. Give every token the subset {j}. The
    subsets and positions are the same in both inputs, so the first layer, and with it every output, is the
    same; the targets are delta_j and -delta_j, at distance 2. No output is within eps < 1 of both.

    The width is at least the rank, so it must be N d' or more too; but a wide layer of low rank obeys the
    bound as a narrow one does. A layer that is applied to each token by itself counts as the block-diagonal
    matrix that it is on vec(X): its rank on z is N times that on one z_i.
    """
    return Quantity(sizes.need("tokens") * (sizes.dim or 1), RANK)


def full_rank_any_sparsity(sizes: Sizes) -> Quantity:
    """rank W_z >= N d', for every q < N and eps < 1/(2q).

    As for q = 1, with delta in the kernel and its largest block delta_j = e of norm 1; let a_l = <delta_l,
    e>, so a_j = 1. Some q-subset y has |sum_{l in y} a_l| >= 1/2: if some a_l <= 0, take any q-1 further
    elements S, for the sums over S + {j} and S + {l} differ by at least 1; otherwise all a are positive and
    any y with j will do. The targets at z = delta and z = -delta are then 1/q apart or more, so eps <
    1/(2q) fails. It is twice the number of [A]'s Theorem 10, without its q <= N/2, and it bounds the rank.
    """
    return Quantity(sizes.need("tokens") * (sizes.dim or 1), RANK)


def half_rank(sizes: Sizes) -> Quantity:
    """rank W_z >= N d'/2, for q <= N/2: Theorem 10 of [A], which states it for the width.

    Its proof was not at hand; ``qsa-mlp-any-q`` proves twice the number here, for every q < N and for the
    rank, and the width is at least the rank.
    """
    return Quantity(-(-sizes.need("tokens") * (sizes.dim or 1) // 2), RANK)


def _sparsity_is_one(sizes: Sizes) -> str | None:
    q = sizes.need("sparsity")
    return None if q == 1 else f"it is for q = 1, not {q}"


def _sparsity_below_tokens(sizes: Sizes) -> str | None:
    n, q = sizes.need("tokens"), sizes.need("sparsity")
    return None if q < n else f"it needs q < N, not q = N = {n}"


def _sparsity_at_most_half(sizes: Sizes) -> str | None:
    n, q = sizes.need("tokens"), sizes.need("sparsity")
    return None if 2 * q <= n else f"it needs q <= N/2, not q = {q}, N = {n}"


HALF = Bound(
    id="qsa-mlp",
    task="qsa",
    limits="rank of the first layer's weight matrix of a fully connected net on vec(X)",
    status="proved in A (Theorem 10)",
    source="Sanford, Hsu, Telgarsky 2023, arXiv 2306.02896, Theorem 10",
    statement="first-layer width >= N d'/2 (and so its rank on z: qsa-mlp-any-q)",
    hypotheses=(_NET, "q <= N/2", "eps < 1/(2q)"),
    shape="N d' / 2",
    formula=half_rank,
    obstacle=first_obstacle(_sparsity_at_most_half, epsilon_below("1/(2q)", lambda q: 1 / (2 * q))),
)

FULL = Bound(
    id="qsa-mlp-q1",
    task="qsa",
    limits="rank of the first layer's weight matrix of a fully connected net on vec(X)",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="rank W_z >= N d', W_z the columns of the first layer's weight matrix that multiply z",
    hypotheses=(_NET, "q = 1", "eps < 1"),
    shape="N d'",
    formula=full_rank,
    obstacle=first_obstacle(_sparsity_is_one, epsilon_below("1", lambda q: 1.0)),
)

ANY_SPARSITY = Bound(
    id="qsa-mlp-any-q",
    task="qsa",
    limits="rank of the first layer's weight matrix of a fully connected net on vec(X)",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="rank W_z >= N d', W_z the columns of the first layer's weight matrix that multiply z",
    hypotheses=(_NET, "q < N", "eps < 1/(2q)"),
    shape="N d'",
    formula=full_rank_any_sparsity,
    obstacle=first_obstacle(_sparsity_below_tokens, epsilon_below("1/(2q)", lambda q: 1 / (2 * q))),
)
