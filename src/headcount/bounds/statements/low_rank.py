"""Attention matrices that a head of small dimension cannot represent: the rank of the logits."""

from __future__ import annotations

from headcount.bounds.base import Bound, Quantity, Sizes


def head_dim(sizes: Sizes) -> Quantity:
    """d >= n - 1, exactly, for n linearly independent inputs.

    Logits S = X Q K' X' have rank at most d. Softmax rows that equal P > 0 mean S = log P + c 1' for some c
    (a shift for each row), whose rank is at least rank(log P) - 1. P = softmax of the identity has S = I +
    c 1', rank at least n - 1: no head with d <= n - 2 gives it. And d = n - 1 is enough for every P > 0:
    where log P is invertible, choose c with 1' (log P)^{-1} c = -1, which makes the determinant of log P +
    c 1' zero (elsewhere c = 0 will do); a matrix of rank n - 1 factors, and independent inputs let Q and K
    be any factors.

    The paper's Theorem 1 says d < n instead of d < n - 1. Its counterexample at d = n - 1 uses dependent
    inputs (d = 1, X = [1, 0]: the zero token attends uniformly), and dependent inputs defeat every d. So
    the theorem is right as it stands ("some inputs, some matrix"), but n as a bound on d would be one too
    many for independent inputs; the number here is n - 1.
    """
    return Quantity(sizes.need("tokens") - 1, "head dimension")


LOW_RANK = Bound(
    id="low-rank-attention",
    task="any",
    limits="query-key dimension of one head",
    status="proved in Bhojanapalli et al. 2020 (Theorem 1), made exact here",
    source="Bhojanapalli, Yun, Rawat, Reddi, Kumar 2020, arXiv 2002.07028, Theorem 1",
    statement=(
        "d < n: some attention matrix over some n inputs cannot be represented by a head of dimension d; for "
        "independent inputs exactly when d < n - 1"
    ),
    hypotheses=("one head, no bias or positions in the logits", "n linearly independent inputs"),
    shape="n - 1",
    formula=head_dim,
)
