"""Triple matching with ordinary attention: set disjointness must be communicated through the softmax sums."""

from __future__ import annotations

from headcount.bounds.base import CONJECTURED, PROVED_HERE, Bound, Quantity, Sizes
from headcount.pbit.widths import VALUE_WIDTH, denominator_bits, numerator_bits

_PAPER = "Sanford, Hsu, Telgarsky 2023, arXiv 2306.02896"


def least_value_width(sizes: Sizes) -> Quantity:
    """H (2p + D + d_v B) >= n, with n = (N-1)//2, for one layer in the arithmetic of ``headcount.pbit.layer``.

    Instance (``headcount.protocols.disjointness``): a public query token, n tokens that say which elements are
    in the first party's set, n for the second's; for M >= N + 1 the query token is positive exactly when
    the sets meet. Protocol (``headcount.protocols.two_party``): for each head the first party sends the largest
    logit of its tokens (p bits), learns the largest of all (p bits), and sends the sum of its softmax
    weights (D bits) and of its weighted values (d_v numbers of B bits). These sums are exact integers, so
    adding the two parties' halves gives the layer's own output at the query token, bit for bit. The second
    party then knows the label and tells it with one more bit. Both know it only after n + 1 bits: the 2^n
    pairs (a set, its complement) are a fooling set of positive answers to "disjoint", and there is a
    negative answer. So the count is at least n.

    D = bits of n (2^p - 1); B = 1 + bits of n (2^p - 1) 2^(p-1): p-bit weights and values, n of them. The
    paper's bound is stronger by its log N (it sends sums of p log log N bits) but has an unknown constant.

    The bound is on the value width d_v of a head. It is none on the embedding dimension m: values are rounded
    and saturated after the value map, so d_v of them can hold more than m numbers, and
    ``layers.threshold_layer`` solves Match3 with m = 2 and d_v = M + 1. (Were the values exact linear images
    of the embedding, the sums of its m numbers could be sent instead, and m would obey the bound too.)
    """
    n = (sizes.need("tokens") - 1) // 2
    p, heads = sizes.need("precision_bits"), sizes.heads
    fixed = 2 * p + denominator_bits(n, p)
    per_head = -(-n // heads)
    return Quantity(max(0, -(-(per_head - fixed) // numerator_bits(n, p))), VALUE_WIDTH)


def _modulus_is_large(sizes: Sizes) -> str | None:
    n = sizes.need("tokens")
    if sizes.modulus is not None and sizes.modulus <= n:
        return f"it needs M >= N + 1 = {n + 1}, not {sizes.modulus}"
    if sizes.precision_bits is None:
        return "it needs a precision p"
    return "it needs N >= 3" if n < 3 else None


HEADS = Bound(
    id="match3-heads",
    task="match3",
    limits="m p H of one layer of attention",
    status="proved in A (Theorem 7)",
    source=f"{_PAPER}, Theorem 7",
    statement="m p H <= c N / log log N implies that no single layer of H heads computes Match3",
    hypotheses=(
        "one layer of pairwise attention",
        "M >= N + 1",
        "N large",
        "p-bit arithmetic",
        "values linear in the m-dimensional embedding, not rounded after the value map",
    ),
    shape="N / (p H log log N), up to an unknown constant",
    argument=(
        "Set disjointness on N/2 elements: the sums of each head over one party's tokens are sent with "
        "O(p log log N) bits a number. match3-protocol does it for a concrete arithmetic, every bit counted."
    ),
)

DEPTH = Bound(
    id="match3-depth",
    task="match3",
    limits="sizes of a Transformer of several layers",
    status=CONJECTURED,
    source=f"{_PAPER}, the conjecture on several layers",
    statement="more layers do not help unless some size is polynomial in N",
    hypotheses=("pairwise attention",),
    shape="some of m, p, H, D polynomial in N",
    argument="Conjectured only: the two-party argument stops at one layer, where both halves mix.",
)

PROTOCOL = Bound(
    id="match3-protocol",
    task="match3",
    limits="value width of each head of one attention layer of p bits",
    status=PROVED_HERE,
    source="headcount, docs/bounds.md",
    statement="H (2p + D + d_v B) >= (N-1)//2, d_v the value width, D and B the bits of the softmax sums",
    hypotheses=(
        "one layer of pairwise attention",
        "M >= N + 1",
        "logits, values and softmax weights of p bits, exact sums (headcount.pbit.layer)",
    ),
    shape="N / (2 H (2p + log2 N))",
    formula=least_value_width,
    obstacle=_modulus_is_large,
)
