"""Rounding to p-bit formats against ml_dtypes, NumPy and definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.core.errors import HeadcountError
from headcount.pbit.formats import get_format

NATIVE = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


def cases(name: str) -> np.ndarray:
    """Numbers of all magnitudes, the edges of the formats, exact ties. float32 but for fp32 itself, since
    ml_dtypes converts float64 by way of float32, which rounds twice."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(40_000) * np.exp(rng.uniform(-70, 70, 40_000))
    edges = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        448,
        464,
        464.1,
        480,
        57344,
        61439.9,
        61440,
        65504,
        65519.9,
        65520,
    ]
    tiny = [2.0**-e * f for e in (9, 10, 14, 16, 17, 24, 25, 126, 133, 149) for f in (1, 1.25, 1.5, 1.75, 0.5)]
    ties = [1 + 2.0**-e * odd for e in range(2, 26) for odd in (1, 3)]
    values = np.array([*drawn, *edges, *tiny, *ties])
    values = np.concatenate([values, -values])
    return values if name == "fp32" else values.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", NATIVE)
def test_rounding_equals_the_native_type(name: str) -> None:
    values = cases(name)
    with np.errstate(over="ignore"):
        source = values if name == "fp32" else values.astype(np.float32)
        want = source.astype(NATIVE[name]).astype(np.float64)
    got = get_format(name).round(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


@settings(max_examples=300, deadline=None)
@given(x=st.floats(allow_nan=False, allow_infinity=False), p=st.integers(2, 53))
def test_float_p_is_the_nearest_number_ties_to_even(x: float, p: int) -> None:
    got = get_format(f"float:{p}").round(torch.tensor([x], dtype=torch.float64)).item()
    if x == 0 or abs(x) < 2.0**-960:
        return  # float64's own gradual underflow
    if math.isinf(got):
        assert abs(x) >= (2 - 2.0**-p) * 2.0**1023
        return
    _, exponent = math.frexp(x)
    spacing = Fraction(2) ** (exponent - p)
    steps = Fraction(x) / spacing
    assert Fraction(got) == round(steps) * spacing  # Fraction rounds half to even


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    p=st.integers(2, 30),
)
def test_fixed_p_is_two_complement_of_p_bits(values: list[float], p: int) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    got = get_format(f"fixed:{p}").round(x)
    largest = float(x.abs().max())
    if largest < 2.0**-900:  # the spacing would leave float64
        assert (got - x).abs().max() < 2.0**-900
        return
    exponent = math.frexp(largest)[1]  # the binary point: largest < 2^exponent
    steps = got / 2.0 ** (exponent - p + 1)
    assert (steps == steps.round()).all()
    assert steps.min() >= -(2 ** (p - 1)) and steps.max() <= 2 ** (p - 1) - 1
    # Half a step of error, or a whole one where the largest number saturates.
    assert ((got - x).abs() <= 2.0 ** (exponent - p + 1)).all()


@pytest.mark.parametrize("name", [*NATIVE, "tf32", "float:7", "fixed:9"])
def test_rounding_twice_changes_nothing(name: str) -> None:
    x = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    once = get_format(name).round(x)
    assert torch.equal(get_format(name).round(once), once)


def test_named_formats_are_float_p_in_their_range() -> None:
    x = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name, p in (("tf32", 11), ("bf16", 8), ("fp32", 24)):
        assert torch.equal(get_format(name).round(x), get_format(f"float:{p}").round(x))
        assert get_format(name).unit_roundoff == 2.0**-p
    assert torch.equal(get_format("fp64").round(x), x)


def test_fixed_point_of_infinities_is_no_number() -> None:
    assert get_format("fixed:8").round(torch.tensor([1.0, math.inf], dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("name", ["fp99", "fixed", "fixed:1", "float:54", "float:x", "float:-1", ""])
def test_unknown_precision_is_named(name: str) -> None:
    with pytest.raises(HeadcountError, match="precision"):
        get_format(name)


@pytest.mark.parametrize(
    "alias, name", [("FP8_E4M3", "e4m3"), ("float32", "fp32"), ("bfloat16", "bf16"), ("fixed12", "fixed:12")]
)
def test_aliases(alias: str, name: str) -> None:
    assert get_format(alias).name == name
