"""Statuses and shape of the table: a bound with an unknown constant has no number, whatever is asked."""

from __future__ import annotations

import pytest

from headcount import bounds
from headcount.bounds.base import Bound, Quantity, Sizes
from headcount.core.errors import HeadcountError

SECTION_3 = {  # THEORY.md section 3: id, constant explicit?
    "qsa-bits": True,
    "qsa-bits-paper": False,
    "qsa-regions": True,
    "qsa-mlp": True,
    "qsa-mlp-q1": True,
    "qsa-rnn": True,
    "qsa-rnn-q1": True,
    "match3-heads": False,
    "match3-depth": False,
    "induction-one-layer": False,
    "composition-one-layer": True,
    "low-rank-attention": True,
}
HERE = {"qsa-radon", "qsa-mlp-any-q", "qsa-rnn-any-q", "match3-protocol", "qsa-bits-all", "qsa-rnn-any-dim"}
EVERYTHING = Sizes(tokens=65, sparsity=1, dim=4, modulus=101, precision_bits=8, heads=2, domain=16, epsilon=0.01)


def test_every_row_of_the_theory_is_there() -> None:
    assert set(bounds.ids()) == set(SECTION_3) | HERE


@pytest.mark.parametrize("id", bounds.ids())
def test_numbers_only_with_explicit_constants(id: str) -> None:
    bound = bounds.get(id)
    answer = bound.evaluate(EVERYTHING)
    assert (bound.constant == "explicit") == SECTION_3.get(id, True)
    if bound.constant == "unknown":
        assert answer.value is None and answer.unit is None
        assert "unknown" in str(answer.why_not)
    else:
        assert isinstance(answer.value, int) and answer.unit
    assert bound.status and bound.source and bound.hypotheses and bound.shape and bound.statement
    assert len(bound.argument) > 40


@pytest.mark.parametrize("id", ["qsa-bits", "qsa-regions", "qsa-mlp-q1", "qsa-rnn-q1", "match3-protocol"])
def test_what_is_derived_here_says_so(id: str) -> None:
    assert bounds.get(id).status == "proved here"
    assert bounds.get("match3-depth").status == "conjectured"


def test_a_bound_without_an_argument_cannot_be_made() -> None:
    def bare(sizes: Sizes) -> Quantity:
        return Quantity(1, "things")

    with pytest.raises(AssertionError, match="no argument"):
        Bound(
            id="x",
            task="qsa",
            limits="",
            status="proved here",
            source="",
            statement="",
            hypotheses=(),
            shape="",
            formula=bare,
        )


def test_unknown_ids_name_a_neighbour() -> None:
    with pytest.raises(HeadcountError, match="did you mean qsa-bits"):
        bounds.get("qsa-bit")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tokens": 4, "sparsity": 5}, "sparsity 5 is larger than tokens 4"),
        ({"tokens": 0}, "tokens is 0"),
        ({"dim": 0}, "dim is 0"),
        ({"modulus": 1}, "modulus is 1"),
        ({"precision_bits": 0}, "precision_bits is 0"),
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
    ],
)
def test_bad_sizes_are_refused(sizes: dict[str, float], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        Sizes(**sizes)  # type: ignore[arg-type]


def test_a_missing_size_is_named() -> None:
    with pytest.raises(HeadcountError, match="sparsity"):
        bounds.get("qsa-bits").evaluate(tokens=8)


@pytest.mark.parametrize(
    ("id", "limit", "value"),
    [
        ("qsa-bits", 1 / 4, 2),  # C(15, 4) = 1,365 subsets in words of 8 bits
        ("qsa-regions", 1 / 8, 3),  # 2 (1 + 119 + 7,021) >= C(16, 4) = 1,820 > 2 (1 + 119)
        ("qsa-radon", 1 / 8, 9),  # d' + 2q
        ("qsa-mlp-any-q", 1 / 8, 16),  # N d'
        ("qsa-bits-all", 1 / 8, 2),  # C(16, 4) = 1,820
    ],
)
def test_hypotheses_are_checked_against_epsilon(id: str, limit: float, value: int) -> None:
    bound = bounds.get(id)
    below = bound.evaluate(tokens=16, sparsity=4, precision_bits=8, epsilon=limit * 0.999)
    at = bound.evaluate(tokens=16, sparsity=4, precision_bits=8, epsilon=limit)
    assert below.value == bound.evaluate(tokens=16, sparsity=4, precision_bits=8).value == value
    assert at.value is None and "epsilon <" in str(at.why_not)


def test_the_limit_of_vectors_of_signs_falls_with_their_dimension() -> None:
    bound = bounds.get("qsa-rnn-any-dim")
    limit = 1 / (3 * 2)  # q = 3, sqrt d' = 2
    assert bound.evaluate(tokens=10, sparsity=3, dim=4, epsilon=0.999 * limit).value == 7 * 4
    at = bound.evaluate(tokens=10, sparsity=3, dim=4, epsilon=limit)
    assert at.value is None and "1/(q sqrt d') = 0.166667" in str(at.why_not)
    assert (
        bound.evaluate(tokens=10, sparsity=3).value == bounds.get("qsa-rnn-any-q").evaluate(tokens=10, sparsity=3).value
    )
    assert "q < N" in str(bound.evaluate(tokens=3, sparsity=3, dim=4).why_not)


def test_sizes_that_no_proof_covers_are_refused() -> None:
    assert bounds.get("qsa-rnn-q1").evaluate(tokens=10**18, sparsity=1).value == 10**18 - 1
    for name in ("tokens", "dim", "modulus", "precision_bits", "heads", "domain"):
        with pytest.raises(HeadcountError, match="of at most 1000000000000000000"):
            Sizes(**{name: 10**18 + 1})


def test_the_bounds_for_one_element_say_so() -> None:
    for id in ("qsa-mlp-q1", "qsa-rnn-q1"):
        assert "q = 1" in str(bounds.get(id).evaluate(tokens=16, sparsity=2).why_not)
