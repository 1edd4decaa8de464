"""Binomials: exact against math.comb, the huge route bracketing the exact one and never above it."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.bounds import counting


@given(st.integers(0, 400), st.data())
@settings(max_examples=200, deadline=None)
def test_binomial_bits_is_the_least_exponent(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    bits = counting.binomial_bits(n, k)
    assert 2**bits >= math.comb(n, k)
    assert bits == 0 or 2 ** (bits - 1) < math.comb(n, k)


@given(st.integers(1, 3000), st.data())
@settings(max_examples=150, deadline=None)
def test_the_bracket_holds_the_exact_value(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = counting.log2_binomial_bracket(n, k)
    # Compared as integers, 2^(100 log2 C) = C^100 scaled: no floating-point logarithm is trusted here.
    hundredfold = math.comb(n, k) ** 100
    assert 2 ** math.floor(100 * low) <= hundredfold
    assert hundredfold <= 2 ** math.ceil(100 * high)
    # The gap is Robbins' gap 1/(12n) - 1/(12n+1) < 1/(144 n^2) of three factorials, over ln 2.
    if 0 < k < n:
        assert high - low < sum(Decimal(1) / (99 * j * j) for j in (n, k, n - k)) + Decimal("1e-20")


@pytest.mark.parametrize(("n", "k"), [(20_000, 10_000), (300_000, 20_000), (10**6, 30_000)])
def test_the_huge_route_is_never_above_the_exact_one(n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = counting.bits_to_name(math.comb(n, k))
    monkeypatch.setattr(counting, "EXACT_BITS", 10)
    assert not counting.is_exact(n, k)
    assert exact - 1 <= counting.binomial_bits(n, k) <= exact


@given(st.integers(2, 60), st.data())
@settings(max_examples=100, deadline=None)
def test_least_sum_by_direct_summation(n: int, data: st.DataObject) -> None:
    q = data.draw(st.integers(1, n // 2))
    a = n * (n - 1) // 2 - 1
    m = counting.least_sum_of_binomials(a, n, q)

    def realised(terms: int) -> int:
        return 2 * sum(math.comb(a, k) for k in range(terms))

    assert realised(m) >= math.comb(n, q) > realised(m - 1)


@pytest.mark.parametrize(("n", "q"), [(200, 70), (2000, 100), (5000, 900)])
def test_the_huge_sum_is_never_above_the_exact_one(n: int, q: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a = n * (n - 1) // 2 - 1
    exact = counting.least_sum_of_binomials(a, n, q)
    monkeypatch.setattr(counting, "EXACT_BITS", 10)
    assert not counting.is_exact(n, q)
    assert exact - 1 <= counting.least_sum_of_binomials(a, n, q) <= exact


@given(st.integers(1, 5000), st.integers(1, 3000))
@settings(max_examples=60, deadline=None)
def test_power_bits(base: int, exponent: int) -> None:
    exact = (base**exponent - 1).bit_length()
    assert counting.power_bits(base, exponent) == exact


def test_huge_powers_round_down(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = [counting.power_bits(base, 977) for base in (3, 64, 1000)]
    monkeypatch.setattr(counting, "EXACT_BITS", 10)
    huge = [counting.power_bits(base, 977) for base in (3, 64, 1000)]
    assert all(e - 1 <= h <= e for e, h in zip(exact, huge, strict=True))
