"""Sparse averaging with a recurrent net: its state must store every z before the query is read."""

from __future__ import annotations

import math

from headcount.bounds.base import PROVED_HERE, Bound, Quantity, Sizes, epsilon_below, first_obstacle
from headcount.bounds.statements.qsa_mlp import _sparsity_at_most_half, _sparsity_below_tokens, _sparsity_is_one

STATE_BITS = "bits of state"
_NET = "a recurrent net that reads the tokens in order and answers for the last one from its state"


def state_bits_one(sizes: Sizes) -> Quantity:
    """State >= N-1 bits, for q = 1 and eps < 1, the query read last.

    Let z_j be e1 or -e1 for the first N-1 tokens: 2^(N-1) histories. If two of them leave the same state,
    they differ at some j; let the last token ask for the subset {j}. The net gives the same answer twice,
    and the targets e1 and -e1 are at distance 2, too far for eps < 1. So the state takes 2^(N-1) values.
    """
    return Quantity(sizes.need("tokens") - 1, STATE_BITS)


def state_bits_any_sparsity(sizes: Sizes) -> Quantity:
    """State >= N-q bits, for every q < N and eps < 1/q, the query read last.

    As for q = 1: fix q-1 of the first N-1 tokens, S, with z = 0, and let the other N-q be e1 or -e1. Two
    histories that leave the same state differ at some j; the last token asks for S + {j}. The targets e1/q
    and -e1/q are at distance 2/q, too far for eps < 1/q. For q <= (N+1)/2 it is at least [A]'s (N-1)/2.
    """
    return Quantity(sizes.need("tokens") - sizes.need("sparsity"), STATE_BITS)


def state_bits_any_dim(sizes: Sizes) -> Quantity:
    """State >= (N-q) d' bits, for every q < N and eps < 1/(q sqrt d'), the query read last.

    As for ``qsa-rnn-any-q``, with every coordinate of a vector used: fix q-1 of the first N-1 tokens, S, with
    z = 0, and let each of the other N-q be one of the 2^d' vectors with entries +-1/sqrt d', which have norm
    1. Two histories that leave the same state differ at some token j in some coordinate; the last token asks
    for S + {j}. The targets z_j/q and z'_j/q differ by at least 2/(q sqrt d') in that coordinate, too far for
    eps < 1/(q sqrt d'). So the state takes 2^((N-q) d') values. For d' = 1 it is ``qsa-rnn-any-q``.
    """
    bits = (sizes.need("tokens") - sizes.need("sparsity")) * (sizes.dim or 1)
    return Quantity(bits, STATE_BITS)


def _epsilon_tells_signs(sizes: Sizes) -> str | None:
    q, dim = sizes.need("sparsity"), sizes.dim or 1
    limit = 1 / (q * math.sqrt(dim))
    if sizes.epsilon is None or sizes.epsilon < limit:
        return None
    return f"it needs epsilon < 1/(q sqrt d') = {limit:g}, not {sizes.epsilon:g}"


def state_bits_paper(sizes: Sizes) -> Quantity:
    """State >= (N-1)/2 bits, even for q = 1: Theorem 11 of [A].

    Its proof was not at hand; ``qsa-rnn-any-q`` proves at least as much here for the same q.
    """
    return Quantity(sizes.need("tokens") // 2, STATE_BITS)


PAPER = Bound(
    id="qsa-rnn",
    task="qsa",
    limits="state of a recurrent net",
    status="proved in A (Theorem 11)",
    source="Sanford, Hsu, Telgarsky 2023, arXiv 2306.02896, Theorem 11",
    statement="state >= (N-1)/2 bits",
    hypotheses=(_NET, "q <= N/2", "eps < 1/(2q)"),
    shape="(N-1) / 2",
    formula=state_bits_paper,
    obstacle=first_obstacle(_sparsity_at_most_half, epsilon_below("1/(2q)", lambda q: 1 / (2 * q))),
)

ONE = Bound(
    id="qsa-rnn-q1",
    task="qsa",
    limits="state of a recurrent net",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="state >= N-1 bits",
    hypotheses=(_NET, "the query is read last", "q = 1", "eps < 1"),
    shape="N - 1",
    formula=state_bits_one,
    obstacle=first_obstacle(_sparsity_is_one, epsilon_below("1", lambda q: 1.0)),
)

ANY_SPARSITY = Bound(
    id="qsa-rnn-any-q",
    task="qsa",
    limits="state of a recurrent net",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="state >= N-q bits",
    hypotheses=(_NET, "the query is read last", "q < N", "eps < 1/q"),
    shape="N - q",
    formula=state_bits_any_sparsity,
    obstacle=first_obstacle(_sparsity_below_tokens, epsilon_below("1/q", lambda q: 1 / q)),
)

ANY_DIM = Bound(
    id="qsa-rnn-any-dim",
    task="qsa",
    limits="state of a recurrent net",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="state >= (N-q) d' bits",
    hypotheses=(_NET, "the query is read last", "q < N", "eps < 1/(q sqrt d')"),
    shape="(N - q) d'",
    formula=state_bits_any_dim,
    obstacle=first_obstacle(_sparsity_below_tokens, _epsilon_tells_signs),
)
