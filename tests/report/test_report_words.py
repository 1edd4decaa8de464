"""Numbers and sentences of the report; every docstring example holds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import tiny_run

from headcount.report import words


@settings(deadline=None, max_examples=200)
@given(st.floats(min_value=1e-4, max_value=1e9))
def test_significant_digits_lose_less_than_half_a_unit_of_the_last(number: float) -> None:
    shown = float(words.significant(number).replace(",", ""))
    # Three digits: at most 0.5 in 100, plus rounding of numbers just below a power of ten.
    assert abs(shown - number) <= 0.00501 * number + (0.5 if number >= 999 else 0)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_cleaned_text_encodes_and_steers_no_terminal(text: str) -> None:
    found = words.clean(text)
    assert len(found) == len(text)
    found.encode("utf-8")
    assert all(ch in "\n\t" or (ch >= " " and ch != "\x7f") for ch in found)


@pytest.mark.parametrize(
    ("number", "form", "shown"),
    [
        (None, "nats", "–"),  # noqa: RUF001
        (math.nan, "rate", "–"),  # noqa: RUF001
        (math.inf, "perplexity", "–"),  # noqa: RUF001
        (12.506, "perplexity", "12.51"),
        (123456.0, "perplexity", "123,456"),
        (0.5, "ratio", "0.50"),
        (0.9996, "share", "100.0%"),
        (26_542_080, "count", "26,542,080"),
        (12.94, "rate", "12.9"),
        (1234.5, "rate", "1,234"),
        (3 * 2**20, "bytes", "3.00 MiB"),
        (-0.0123, "nats", "−0.0123"),  # noqa: RUF001
        (0.0, "nats", "0"),
    ],
)
def test_numbers_are_written_as_their_kind_is(number: float | None, form: str, shown: str) -> None:
    assert words.value(number, form) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/me/out/half/", "half"),
        ("C:\\models\\half", "half"),
        ("~/half", "half"),
        ("owner/model", "owner/model"),
        ("demo", "demo"),
        ("/", "/"),
        ("a\x1b[2Jb", "a\ufffd[2Jb"),
    ],
)
def test_names_lose_the_place_and_nothing_else(name: str, shown: str) -> None:
    assert words.display_name(name) == shown


def test_the_prediction_is_told_with_the_measurement_beside_it() -> None:
    view = tiny_run().view()
    assert view.plan is not None and view.evaluation is not None
    told = words.prediction_words(view.plan, view.evaluation, view.evaluation.models[1])
    ratio = view.evaluation.ratios(view.evaluation.models[1], "calibrated")["prose"]
    assert words.significant(math.log(ratio)) in told
    assert "after repair" in told and "to second order" in told


def test_a_metric_that_predicts_nothing_says_so() -> None:
    view = tiny_run("output").view()
    assert view.plan is not None and view.plan.predicted_loss_increase is None
    assert "no predicted curve" in words.prediction_words(view.plan, None, None)
