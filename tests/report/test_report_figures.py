"""Figures are valid plotly, carry the view's numbers, and use colours that can be told apart."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import pytest
from report_cases import measured_view, tiny_run

from headcount.report.charts.heads import HEAD_FIELDS, head_maps
from headcount.report.charts.ranks import APART, pareto, rank_bars
from headcount.report.charts.spectra import DECADES, POINTS, exponents, heat_map, sides_of, spectrum_lines
from headcount.report.page import style
from headcount.report.page.document import figures_of


def every_figure() -> dict[str, Any]:
    measured = measured_view()
    view = dataclasses.replace(tiny_run().view(), saturation=measured.saturation, selection=measured.selection)
    figures, extras = figures_of(view)
    return figures | {f"plan {index}": figure for index, figure in enumerate(extras["ranks"])}


@pytest.mark.parametrize("name", sorted(every_figure()))
def test_plotly_accepts_every_property(name: str) -> None:
    """plotly's own schema refuses a misspelt property or a value of the wrong kind."""
    figure = every_figure()[name]
    made = go.Figure(data=figure["data"], layout=figure["layout"])
    assert len(made.data) == len(figure["data"]) > 0


def test_bars_are_the_ranks_in_front_of_the_dense_width() -> None:
    view = tiny_run().view()
    bars = rank_bars(view.audit, view.plans[0])["data"]
    kept_k, spare_k, kept_v, spare_v = (trace["y"] for trace in bars)
    assert list(zip(kept_k, kept_v, strict=True)) == list(view.plans[0].ranks)
    assert [a + b for a, b in zip(kept_k, spare_k, strict=True)] == [32, 32, 32]
    assert [a + b for a, b in zip(kept_v, spare_v, strict=True)] == [32, 32, 32]


def test_measured_points_are_log_perplexity_ratios_at_the_live_cache_share() -> None:
    view = tiny_run().view()
    assert view.evaluation is not None
    traces = {trace["name"]: trace for trace in pareto(view.plans, view.evaluation)["data"]}
    half = view.evaluation.models[1]
    (ratio,) = view.evaluation.ratios(half, "unseen").values()
    assert traces["half: unseen"]["y"] == [float(f"{math.log(ratio):.4g}")]
    assert traces["half: unseen"]["x"] == [0.5 + APART]
    assert traces["half: calibrated"]["x"] == [0.5 - APART]
    predicted = traces["predicted: fast, greedy"]
    plan = view.plans[0]
    assert predicted["x"] == [share for share, _ in plan.pareto]
    assert predicted["y"] == [float(f"{loss:.4g}") for _, loss in plan.pareto if loss is not None]


def test_without_the_fisher_metric_there_is_no_predicted_curve() -> None:
    view = tiny_run("output").view()
    assert pareto(view.plans, None)["data"] == []
    assert not any("predicted" in trace["name"] for trace in pareto(view.plans, view.evaluation)["data"])


def test_maps_hold_the_logarithms_and_the_cut_follows_the_ranks() -> None:
    view = tiny_run().view()
    low, high = exponents(view.audit)
    largest = max(max(e) for layer in view.audit.layers for e in layer.spectra.values())
    assert 10.0 ** (high - 1) < largest <= 10.0**high and high - low == DECADES
    picture, dark, bright = heat_map(view.audit, "values", view.plans[0])["data"]
    for row, layer in zip(picture["z"], view.audit.layers, strict=True):
        assert row == [round(max(math.log10(e), low), 2) if e > 0 else low for e in layer.spectra["values"]]
    assert dark["x"] == bright["x"]
    assert bright["x"][1:-1] == [v + 0.5 for _, v in view.plans[0].ranks]
    # The fast form projects rotated keys: the other side has no cut.
    assert len(heat_map(view.audit, "rotated_keys", view.plans[0])["data"]) == 3
    assert len(heat_map(view.audit, "keys", view.plans[0])["data"]) == 1


def test_wide_sides_are_thinned_evenly_and_still_match_their_axis() -> None:
    view = tiny_run().view()
    wide = tuple(2.0**-i for i in range(1000))
    layers = tuple(
        dataclasses.replace(layer, spectra={"keys": wide, "values": wide[:500]}) for layer in view.audit.layers
    )
    audit = dataclasses.replace(view.audit, layers=layers)
    picture = heat_map(audit, "keys", None)["data"][0]
    assert len(picture["x"]) == POINTS == len(picture["z"][0])
    assert (picture["x"][0], picture["x"][-1]) == (1, 1000)
    figure, frames = spectrum_lines(audit, None)
    for trace, y in zip(figure["data"], frames[0]["y"], strict=True):
        assert len(trace["x"]) == len(y) == POINTS
        for place, energy in zip(trace["x"], y, strict=True):
            assert energy == float(f"{2.0 ** -(place - 1):.3g}")


def test_a_side_that_nothing_depends_on_is_drawn() -> None:
    view = tiny_run().view()
    nothing = dict.fromkeys(sides_of(view.audit), (0.0,) * 32)
    audit = dataclasses.replace(
        view.audit, layers=tuple(dataclasses.replace(layer, spectra=nothing) for layer in view.audit.layers)
    )
    assert set(heat_map(audit, "keys", None)["data"][0]["z"][0]) == {float(exponents(audit)[0])}
    assert spectrum_lines(audit, None)[0]["data"][0]["y"] == [None] * 32


def test_head_maps_hold_each_heads_statistic_and_leave_gaps_where_layers_have_fewer() -> None:
    view = tiny_run().view()
    fewer = dataclasses.replace(view.audit.layers[1], heads=view.audit.layers[1].heads[:2])
    audit = dataclasses.replace(view.audit, layers=(view.audit.layers[0], fewer))
    for name in HEAD_FIELDS:
        z = head_maps(audit)[name]["data"][0]["z"]
        assert [len(row) for row in z] == [2] * 4
        assert [row[1] is None for row in z] == [False, False, True, True]
        assert z[3][0] == float(f"{getattr(view.audit.layers[0].heads[3], name):.3g}")


def test_every_axis_says_what_it_shows() -> None:
    for name, figure in every_figure().items():
        for key, value in figure["layout"].items():
            if key.startswith(("xaxis", "yaxis")):
                assert value["title"]["text"], (name, key)


def colours_in(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield from re.findall(r"#[0-9a-f]{6}", part)
    elif isinstance(part, dict):
        for value in part.values():
            yield from colours_in(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from colours_in(value)


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_colour_has_a_dark_partner() -> None:
    maps = {colour for _, colour in style.VIRIDIS}
    assert set(colours_in(every_figure())) - maps <= set(style.DARK)


def test_marks_and_labels_stand_out_in_both_schemes() -> None:
    """4.5 to 1 is what WCAG 2 asks of text; labels take the marks' colours."""
    marks = [style.INK, style.MUTED, *style.SIDE_COLOURS.values(), *style.GROUP_COLOURS.values()]
    for colour in marks:
        assert contrast(colour, style.SURFACE) >= 4.5, colour
        assert contrast(style.DARK[colour], style.DARK[style.SURFACE]) >= 4.5, colour
