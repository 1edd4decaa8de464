"""Tasks for which one attention layer must grow with the sequence length: induction and composition."""

from __future__ import annotations

from headcount.bounds.base import Bound, Quantity, Sizes
from headcount.bounds.counting import power_bits
from headcount.pbit.widths import VALUE_WIDTH

HEAD_BITS = "bits of all heads (H * (d_v + 1) * p)"


def composition_value_width(sizes: Sizes) -> Quantity:
    """H (d_v + 1) p >= n log2 n, d_v the value width of a head; checked here for exact composition.

    The prompt lists f on a domain of n elements, then g, then asks for f(g(x)). Fix x and let b = g(x) run
    over the n elements. A party that knows f and x, and the query token with it, computes the sums of every
    head over the tokens of f: d_v numerators and a denominator of p bits each, H (d_v + 1) p bits in all. From
    them and from g the answer follows. If two functions f gave the same bits, they would differ at some b,
    and g(x) = b would get one answer for both. There are n^n functions f, so H (d_v + 1) p >= n log2 n. The
    paper shows more: a layer below it errs with probability at least R / (3 n log n), R the missing bits,
    over random f and g.

    What is bounded is the number of values that a head sums (the paper calls it the embedding dimension of
    the head). The width of the token embedding does not occur in the argument.
    """
    n = sizes.need("domain")
    bits = power_bits(n, n)
    if sizes.precision_bits is None:
        return Quantity(bits, HEAD_BITS)
    return Quantity(max(0, -(-bits // (sizes.heads * sizes.precision_bits)) - 1), VALUE_WIDTH)


INDUCTION = Bound(
    id="induction-one-layer",
    task="induction",
    limits="H m p of one layer of attention",
    status="proved in arXiv 2408.14332, constant unknown",
    source="Sanford, Hsu, Telgarsky 2024, arXiv 2408.14332",
    statement="one layer that solves induction heads on n tokens has H m p = Omega(n)",
    hypotheses=("one layer", "p-bit arithmetic"),
    shape="n / (H p), up to an unknown constant; two layers need O(1) heads and width",
    argument=(
        "One-way communication of the index function: one party knows which symbol follows each place, the "
        "other knows at which place the only earlier copy of the last token stands."
    ),
)

COMPOSITION = Bound(
    id="composition-one-layer",
    task="composition",
    limits="value width d_v of each head of one layer of attention: H (d_v + 1) p",
    status="proved in arXiv 2402.08164 (Theorem 1)",
    source="Peng, Narayanan, Papadimitriou 2024, arXiv 2402.08164, Theorem 1",
    statement="one layer fails function composition over a domain of n when n log2 n > H (d_v + 1) p",
    hypotheses=(
        "one layer",
        "numerators and denominators of the softmax are numbers of p bits",
        "d_v the value width of a head (not the embedding dimension)",
    ),
    shape="n log2 n / (H p) - 1",
    formula=composition_value_width,
)
