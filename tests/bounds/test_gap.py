"""Both sides of the theory in one place: the largest bound that applies, held against exact counts; what is built."""

from __future__ import annotations

import math

import pytest

from headcount import bounds, constructions
from headcount.bounds.base import Sizes
from headcount.bounds.gap import ONE_MAP, TWO_MAPS, constructed, embedding_bounds, gap, largest, lower_bound


def bits(subsets: int, precision: int) -> int:
    """Numbers of so many bits that it takes to tell subsets apart."""
    return -(-math.ceil(math.log2(subsets)) // precision)  # exact: counts below 2^53 and powers of 2


@pytest.mark.parametrize(("n", "q", "p"), [(8, 4, 6), (16, 8, 13), (20, 3, 32), (9, 1, 1), (12, 11, 2)])
def test_the_larger_of_the_two_counts_is_taken(n: int, q: int, p: int) -> None:
    found = gap("qsa", Sizes(tokens=n, sparsity=q, dim=1, precision_bits=p))
    without, with_query = bits(math.comb(n - 1, q), p), bits(math.comb(n, q), p)
    assert found.embedded is not None and found.embedded.value == max(without, with_query)
    assert found.embedded.bound.id == ("qsa-bits-all" if with_query > without else "qsa-bits")


def test_some_sizes_need_the_sharper_count() -> None:
    """C(7, 4) = 35 takes 6 bits, one number; C(8, 4) = 70 takes 7 bits, two."""
    sizes = Sizes(tokens=8, sparsity=4, dim=1, precision_bits=6)
    assert embedding_bounds("qsa", sizes, ONE_MAP) == {"qsa-bits": 1, "qsa-bits-all": 2}
    coarse = Sizes(tokens=8, sparsity=4, dim=1, precision_bits=6, epsilon=0.2)  # 1/8 <= 0.2 < 1/4
    assert embedding_bounds("qsa", coarse, ONE_MAP) == {"qsa-bits": 1, "qsa-bits-all": None}
    found = gap("qsa", coarse)
    assert found.embedded is not None and (found.embedded.bound.id, found.embedded.value) == ("qsa-bits", 1)


def test_models_with_one_map_are_not_held_to_bounds_on_keys_by_position() -> None:
    sizes = Sizes(tokens=100, sparsity=3, dim=1, precision_bits=2)
    wide = embedding_bounds("qsa", sizes, TWO_MAPS)
    assert wide == {"qsa-bits": 9, "qsa-bits-all": 9, "qsa-regions": 3, "qsa-radon": 7}  # C(99, 3), C(100, 3) < 2^18
    assert embedding_bounds("qsa", sizes, ONE_MAP) == {"qsa-bits": 9, "qsa-bits-all": 9}
    unlimited = embedding_bounds("qsa", Sizes(tokens=100, sparsity=3, dim=1), TWO_MAPS)
    assert unlimited == {"qsa-bits": None, "qsa-bits-all": None, "qsa-regions": 3, "qsa-radon": 7}


def test_every_bound_on_an_embedding_says_which_models_it_is_about() -> None:
    sizes = Sizes(tokens=30, sparsity=3, dim=2, precision_bits=4, modulus=31, domain=5)
    for id in bounds.ids():
        answer = bounds.get(id).evaluate(sizes)
        assert (answer.unit == "embedding dimensions") == (answer.bound.model != "as stated"), id


def test_the_bound_of_a_construction_follows_the_precision() -> None:
    built = constructions.build("qsa-polytope", tokens=100, sparsity=3, dim=1)
    assert lower_bound(built, "fp64") == lower_bound(built, "wide:99") == 1 + 2 * 3
    few = constructions.build("qsa-polytope", tokens=8, sparsity=4, dim=1)
    assert lower_bound(few, "fp64") == 1 + 4  # N - q* = 4 < 2q
    assert lower_bound(built, "fixed:2") == bits(math.comb(99, 3), 2) == 9  # more than 7
    assert lower_bound(constructions.build("match2", tokens=4, modulus=5), "fp64") is None


def test_what_is_built_stands_on_the_other_side() -> None:
    sizes = Sizes(tokens=6, sparsity=2, dim=3, precision_bits=53)
    found = constructed("qsa", sizes)
    assert {name: own.certificate.name for name, own in found.items()} == {name: name for name in found}
    assert found["qsa-polytope"].certificate.embedding_dim == 3 + 2 * 2
    both = gap("qsa", sizes, build=True)
    assert both.built[: len(both.built) - 2] == gap("qsa", sizes).built
    assert [(row.id, row.embedding_dim) for row in both.built[-2:]] == [
        (name, own.certificate.embedding_dim) for name, own in found.items()
    ]
    assert both.hypotheses is not None and both.built_embedding_dim == both.hypotheses.value == 7
    assert constructed("match3", Sizes(tokens=5, modulus=7)) == {}


def test_match3_has_a_gap_in_the_value_width() -> None:
    found = gap("match3", Sizes(tokens=1025, modulus=1026, precision_bits=14))
    assert found.embedded is None and found.hypotheses is None
    assert (found.value_width.bound.id, found.value_width.value) == ("match3-protocol", 13)
    assert (found.built_embedding_dim, found.built_value_width) == (2, 1026)


def test_nothing_is_the_largest_of_no_numbers() -> None:
    found = gap("induction", Sizes(tokens=9))
    assert found.built == () and largest(found.answers, "embedding dimensions") is None
