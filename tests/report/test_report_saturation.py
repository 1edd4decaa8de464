"""Saturation and selection in the report: the records' numbers in view, figures, page, table and drawing."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
from report_cases import MADE, measured_view, tiny_measured, tiny_run
from test_report_page import Page

from headcount.core.errors import HeadcountError
from headcount.lab.figures import saturation as figure
from headcount.probes.saturation.changepoint import Boundary
from headcount.probes.saturation.record import Saturation, SaturationRecord, summary_json
from headcount.probes.selection.capacity import KINDS
from headcount.report import words
from headcount.report.charts.saturation import range_lines, rank_lines, saturation_figures
from headcount.report.charts.selection import LEAST, half_point_lines, selection_figures
from headcount.report.collect import from_run
from headcount.report.page.document import render
from headcount.report.saturation_collect import saturation_view, selection_view
from headcount.report.saturation_view import SaturationView, SelectionView
from headcount.report.terminal.grid import Grid
from headcount.report.terminal.saturation import saturation_tables


def views() -> tuple[SaturationView, SelectionView]:
    found, capacity = tiny_measured()
    return saturation_view(found), selection_view(capacity)


def with_boundaries(*layers: int | None) -> Saturation:
    """The tiny run, as if it had looked for boundary layers and found these."""
    found = tiny_measured()[0]
    contexts = [
        context.model_copy(
            update={
                "boundary": Boundary(
                    layer=layer, candidate=2, low=1, high=2, before=9.5, after=3.25, advantage=4.5, share=0.915
                )
            }
        )
        for context, layer in zip(found.record.contexts, layers, strict=True)
    ]
    return dataclasses.replace(found, record=found.record.model_copy(update={"contexts": contexts}))


def test_views_hold_the_means_of_the_records_heads() -> None:
    (found, capacity), (view, selected) = tiny_measured(), views()
    assert (view.folder, selected.folder) == ("saturation", "selection")
    assert view.dims == (16, 16, 16) and view.tolerances == (0.01, 0.05, 0.1)
    for own, context in zip(view.contexts, found.record.contexts, strict=True):
        for ranks, spread, layer in zip(own.ranks, own.ranges, context.layers, strict=True):
            for place in range(3):
                assert ranks[place] == sum(head.ranks[place] for head in layer.heads) / 4
            assert spread == pytest.approx(sum(head.logit_range for head in layer.heads) / 4, rel=1e-12)
        assert {loss.name: loss.increase for loss in own.losses} == {
            loss.name: loss.increase for loss in context.losses if loss.name != "dense"
        }
        assert own.boundary is None  # three layers are too few
    assert [claim.verdict for claim in view.claims] == [claim.verdict for claim in found.record.claims]
    for index, layer in enumerate(capacity.record.layers):
        halves = [head.trimmed.selected_half["contiguous"] for head in layer.heads]
        assert selected.mean(index, "trimmed", "selected", "contiguous") == pytest.approx(sum(halves) / 4, rel=1e-12)
        assert selected.heads[index][1]["dense", "separable", "random"] == layer.heads[1].dense.separable_half["random"]


def test_a_boundary_is_in_the_json_and_comes_back_from_the_record() -> None:
    found = with_boundaries(2, None)
    told = [context["boundary"] for context in summary_json(found)["contexts"]]
    assert [boundary["layer"] for boundary in told] == [2, None] and told[0]["share"] == 0.915
    assert SaturationRecord.model_validate_json(found.record.model_dump_json()) == found.record


def test_rank_lines_are_the_views_ranks_a_row_a_tolerance() -> None:
    view, _ = views()
    traces = rank_lines(view)["data"]
    assert [trace["yaxis"] for trace in traces] == ["y"] * 3 + ["y2"] * 3 + ["y3"] * 3
    for row in range(3):
        width, *lines = traces[3 * row : 3 * row + 3]
        assert width["y"] == [16, 16, 16]
        for line, context in zip(lines, view.contexts, strict=True):
            assert line["y"] == [float(f"{ranks[row]:.4g}") for ranks in context.ranks]


def test_only_boundaries_that_were_found_are_drawn_where_they_were_looked_for() -> None:
    shapes = rank_lines(saturation_view(with_boundaries(None, 2)))["layout"]["shapes"]
    assert [(shape["x0"], shape["x1"], shape["yref"]) for shape in shapes] == [(1.5, 1.5, "y2 domain")]
    assert rank_lines(views()[0])["layout"]["shapes"] == []


def test_ranges_stand_beside_a_growth_of_one_per_logarithm() -> None:
    view, _ = views()
    *layers, bound, mean = range_lines(view)["data"]
    assert [line["y"][1] for line in layers] == [float(f"{spread:.4g}") for spread in view.contexts[1].ranges]
    means = [sum(context.ranges) / 3 for context in view.contexts]
    assert mean["y"] == [float(f"{number:.4g}") for number in means]
    assert bound["y"] == [mean["y"][0], float(f"{means[0] + math.log(2):.4g}")]


def test_losses_are_drawn_with_their_intervals_and_left_out_where_there_are_none() -> None:
    view, _ = views()
    figures = saturation_figures(view)
    drawn = {}
    for place in ("saturation-heads", "saturation-halves"):
        for trace, context in zip(figures[place]["data"], view.contexts, strict=True):
            ends = zip(trace["x"], trace["y"], trace["error_y"]["arrayminus"], trace["error_y"]["array"], strict=True)
            drawn |= {(name, context.context): (y, y - below, y + above) for name, y, below, above in ends}
    assert len(drawn) == 2 * 8
    for context in view.contexts:
        for loss in context.losses:
            # Each of the three was rounded to four digits.
            shown = drawn[loss.name, context.context]
            scale = abs(loss.increase) + loss.high - loss.low
            assert shown == pytest.approx((loss.increase, loss.low, loss.high), abs=2e-3 * scale)
    without = dataclasses.replace(
        view, contexts=tuple(dataclasses.replace(context, losses=()) for context in view.contexts)
    )
    assert set(saturation_figures(without)) == {"saturation-ranks", "saturation-range"}
    assert "All heads and layers at once" not in render(dataclasses.replace(measured_view(), saturation=without))


def test_half_points_below_the_axis_are_drawn_at_its_end_and_told_as_they_are() -> None:
    _, selected = views()
    nothing = dict.fromkeys(selected.heads[0][0], 0.0)
    first = (nothing,) * len(selected.heads[0])
    figure = half_point_lines(dataclasses.replace(selected, heads=(first, *selected.heads[1:])))
    lines = [trace for trace in figure["data"] if "markers" in trace["mode"]]
    assert len(lines) == 8 and all((line["y"][0], line["customdata"][0]) == (LEAST, 0.0) for line in lines)
    dense = next(line for line in lines if line["name"] == "separable, dense" and line["yaxis"] == "y")
    mean = selected.mean(1, "dense", "separable", "random")
    assert dense["customdata"][1] == float(f"{mean:.4g}") and dense["y"][1] == max(LEAST, dense["customdata"][1])


def test_theory_stands_beside_each_kind_of_subsets() -> None:
    capacity, (_, selected) = tiny_measured()[1], views()
    traces = [trace for trace in half_point_lines(selected)["data"] if trace["mode"] == "lines"]
    shown = {(trace["name"], trace["yaxis"]): trace["customdata"][0] for trace in traces}
    for line in capacity.record.theory:
        assert shown[f"at best, m = {line.dim}", "y"] == line.dim // 2
        for kind, place in zip(KINDS, ("y", "y2"), strict=True):
            assert shown[f"Gaussian, m = {line.dim}", place] == float(f"{line.gaussian_half[kind]:.4g}")


def test_head_maps_of_one_kind_share_their_colours() -> None:
    _, selected = views()
    figures = selection_figures(selected)
    for kind in KINDS:
        dense, trimmed = (figures[f"selection-{kind}-{form}"]["data"][0] for form in ("dense", "trimmed"))
        assert dense["zmax"] == trimmed["zmax"] > 0
        assert dense["z"][3][1] == float(f"{selected.heads[1][3]['dense', 'selected', kind]:.3g}")


def test_the_page_has_the_sections_their_numbers_and_where_they_are_from() -> None:
    view = measured_view()
    assert view.saturation and view.selection
    page = Page(render(view))
    assert page.texts["h2"] == ["Spectra", "Heads", "Saturation", "Selection capacity", "How it was made"]
    cells = page.texts["td"]
    for claim in view.saturation.claims:
        assert claim.verdict in cells and claim.name in page.texts["th"]
        assert words.value(claim.estimate, "nats") in cells
    for context in view.saturation.contexts:
        for ranks in context.ranks:
            assert {words.significant(rank) for rank in ranks} <= set(cells)
        assert {words.signed(loss.increase) for loss in context.losses} <= set(cells)
    assert cells.count("too few layers to look for a boundary") == 2
    for layer in range(3):
        for kind in KINDS:
            assert words.significant(view.selection.mean(layer, "trimmed", "selected", kind)) in cells
    assert {"saturation", "saturation.json", "selection", "selection.json"} <= set(page.texts["code"])


def test_boundaries_are_told_with_their_interval() -> None:
    run = tiny_run()
    page = Page(render(from_run(run.audit, made=MADE, saturation=with_boundaries(None, 2))))
    cells = page.texts["td"]
    assert cells.count("1 to 2") == 2 and "no boundary" in cells and "layer 2" in cells and "91.5%" in cells


def test_the_page_has_errors_bounds_and_components() -> None:
    view = measured_view()
    assert view.saturation
    page = Page(render(view))
    cells, ends = page.texts["td"], page.texts["span"]
    for context in view.saturation.contexts:
        assert [error.rank for error in context.errors] == [bound.rank for bound in context.bounds] == [2, 4, 8, 12]
        for error, bound in zip(context.errors, context.bounds, strict=True):
            assert error.absolute is not None
            shown = {error.relative, error.absolute, bound.output_error_bound, bound.total_variation_bound}
            assert {words.significant(number) for number in shown} <= set(cells)
            assert f"{bound.squared_bound:.3g}" in cells and f"0 of {bound.rows:,}" in cells
        counts = context.components
        assert counts is not None
        spreads = (counts.window, counts.pooled, counts.weights, counts.output, counts.error)
        for spread in spreads:
            assert words.significant(spread.mean) in cells
            assert f"{words.significant(spread.low)} to {words.significant(spread.high)}" in ends


def test_a_record_of_an_older_version_opens_and_is_shown_without_what_it_lacks(tmp_path: Path) -> None:
    found = tiny_measured()[0]
    record = json.loads(found.record.model_dump_json())
    del record["weight_ranks"]
    record["claims"] = [claim for claim in record["claims"] if claim["name"] != "the absolute error falls"]
    for context in record["contexts"]:
        del context["bounds"]
        for layer in context["layers"]:
            del layer["bounds"]
            for head in layer["heads"]:
                for name in ("output_rms", "energy_rank", "energy_error", "pooled_energy_rank"):
                    del head[name]
    (tmp_path / "saturation.json").write_text(json.dumps(record))
    older = Saturation.open(tmp_path)
    assert list(older.to_pandas()) == ["context", "layer", "head", "rank_0.01", "rank_0.05", "rank_0.1", "logit_range"]
    told = summary_json(older)["contexts"][0]
    assert told["bounds"] == [] and told["components"] is None and told["errors"][3]["absolute"] is None
    names = [table.title for table in saturation_tables(older) if isinstance(table, Grid)]
    assert names == ["Saturation ranks and ranges of logits", "The whole model with its heads cut", "Claims"]
    assert {row["part"] for row in figure.rows(older)} == {"head", "error", "loss", "claim"}
    figure.draw(older)
    page = render(from_run(tiny_run().audit, made=MADE, saturation=older))
    assert "saturation-ranks" in page and "Output errors, relative and absolute" not in page


def test_runs_of_another_model_are_refused() -> None:
    found, capacity = tiny_measured()
    for run in (found, capacity):
        other = dataclasses.replace(run, record=run.record.model_copy(update={"fingerprint": "0" * 16}))  # type: ignore[type-var]
        name = "saturation" if run is found else "selection"
        with pytest.raises(HeadcountError, match=rf"{name} was measured on another model, tiny, than the audit, tiny"):
            from_run(tiny_run().audit, **{name: other})  # type: ignore[arg-type]


def test_the_rows_of_the_figure_are_the_records_numbers(tmp_path: Path) -> None:
    found = with_boundaries(None, 2)
    files = figure.FIGURE.write(found, tmp_path)
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = {part: [row for row in rows if row["part"] == part] for part in dict.fromkeys(row["part"] for row in rows)}
    assert {part: len(own) for part, own in parts.items()} == {
        "head": 2 * 3 * 4, "error": 2 * 17, "bound": 2 * 4, "components": 2 * 5, "loss": 2 * 8, "boundary": 2,
        "claim": 10,
    }  # fmt: skip
    head = next(row for row in parts["head"] if (row["context"], row["layer"], row["head"]) == ("32", "2", "3"))
    own = found.record.contexts[1].layers[2].heads[3]
    assert [int(head[f"rank_{tolerance:g}"]) for tolerance in (0.01, 0.05, 0.1)] == own.ranks
    assert float(head["logit_range"]) == float(f"{own.logit_range:.4g}")
    errors = [h.errors[5] for layer in found.record.contexts[0].layers for h in layer.heads]
    (error,) = [row for row in parts["error"] if (row["context"], row["name"]) == ("16", "5")]
    assert float(error["value"]) == pytest.approx(sum(errors) / 12, rel=1e-3)
    absolutes = [h.absolute(5) or 0.0 for layer in found.record.contexts[0].layers for h in layer.heads]
    assert float(error["absolute"]) == pytest.approx(sum(absolutes) / 12, rel=1e-3)
    (bound,) = [row for row in parts["bound"] if (row["context"], row["name"]) == ("16", "4")]
    assert float(bound["half_range"]) == found.record.contexts[0].bounds[1].half_range
    assert [(row["layer"], row["verdict"], row["low"]) for row in parts["boundary"]] == [
        ("", "no boundary", "1"),
        ("2", "boundary", "1"),
    ]
    assert [row["verdict"] for row in parts["claim"]] == [claim.verdict for claim in found.record.claims]
    before = files["svg"].read_bytes()
    assert figure.FIGURE.write(found, tmp_path)["svg"].read_bytes() == before


def test_one_context_without_losses_is_drawn(tmp_path: Path) -> None:
    found = tiny_measured()[0]
    only = found.record.contexts[0].model_copy(update={"losses": []})
    alone = dataclasses.replace(found, record=found.record.model_copy(update={"contexts": [only]}))
    files = figure.FIGURE.write(alone, tmp_path)
    drawn = files["svg"].read_text()
    assert "range of logits" in drawn and "loss increase" not in drawn
    assert "\nloss," not in files["csv"].read_text()
    page = render(from_run(tiny_run().audit, made=MADE, saturation=alone))
    assert "saturation-range" in page and "All heads and layers at once" not in page
