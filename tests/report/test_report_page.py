"""The page as a file: the same bytes for the same view, nothing fetched, nothing foreign run, sound HTML."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_cases import measured_view, tiny_run

from headcount.report.page.document import figures_of, render, write_report
from headcount.report.saturation_view import SaturationView, SelectionView
from headcount.report.view import AuditView, EvaluationView, ReportView

HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert(2)"><!-- '&amp; {{ 7 * 7 }} %{x}"""
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """Elements with their attributes and text; every tag must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


def hostile_view() -> ReportView:
    """Everything that a user or a model can name or write is hostile."""
    view = tiny_run().view()
    assert view.evaluation is not None
    audit = dataclasses.replace(
        view.audit,
        model=HOSTILE,
        family=HOSTILE,
        texts=tuple(dataclasses.replace(text, kind=HOSTILE, digest=HOSTILE) for text in view.audit.texts),
    )
    models = tuple(
        dataclasses.replace(
            model, name=HOSTILE, how=HOSTILE, sample=HOSTILE, perplexity={HOSTILE: model.perplexity["prose"]}
        )
        for model in view.evaluation.models
    )
    evaluation = dataclasses.replace(
        view.evaluation,
        models=models,
        kinds=(dataclasses.replace(view.evaluation.kinds[0], name=HOSTILE, digest=HOSTILE),),
        measures=tuple(
            dataclasses.replace(measure, group=HOSTILE, label=HOSTILE, unit=HOSTILE)
            for measure in view.evaluation.measures
        ),
        prompt=HOSTILE,
        notes=(HOSTILE,),
        speed_setting=HOSTILE,
    )
    plans = tuple(dataclasses.replace(plan, name=HOSTILE, allocator=HOSTILE) for plan in view.plans)
    made = dataclasses.replace(view.made, commands=(HOSTILE,), versions={HOSTILE: HOSTILE}, notes=(HOSTILE,))
    return ReportView(audit, plans, evaluation, made, *hostile_measurements())


def hostile_measurements() -> tuple[SaturationView, SelectionView]:
    """What the records of saturation and selection hold as text, and the names of their folders, is hostile too."""
    view = measured_view()
    assert view.saturation and view.selection
    contexts = tuple(
        dataclasses.replace(
            context, losses=tuple(dataclasses.replace(loss, name=loss.name + HOSTILE) for loss in context.losses)
        )
        for context in view.saturation.contexts
    )
    claims = tuple(
        claim.model_copy(update=dict.fromkeys(("name", "claim", "measured", "needed"), HOSTILE))
        for claim in view.saturation.claims
    )
    told = {"folder": HOSTILE, "kinds": (HOSTILE,), "matmul_dtype": HOSTILE}
    found = dataclasses.replace(view.saturation, contexts=contexts, claims=claims, **told)
    return found, dataclasses.replace(view.selection, folder=HOSTILE)


def test_equal_views_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (write_report(tmp_path / f"{i}.html", tiny_run().view()).read_bytes() for i in range(2))
    assert first == second
    assert 4e6 < len(first) < 8e6  # plotly.js is 4.8 MB of it


def test_nothing_is_fetched() -> None:
    page = Page(render(tiny_run().view()))
    for name in ("src", "href", "action", "data", "poster", "srcset", "background", "http-equiv"):
        for value in page.attributes(name):
            assert value.startswith("#") or (name == "http-equiv" and value == "Content-Security-Policy"), (name, value)
    (style,) = page.texts["style"]
    assert "url(" not in style and "@import" not in style
    (policy,) = [attrs["content"] or "" for tag, attrs in page.elements if "http-equiv" in attrs]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert rules["img-src"] == "data: blob:" and "unsafe" not in rules["script-src"]


def test_the_policy_names_exactly_the_scripts_of_the_page() -> None:
    text = render(tiny_run().view())
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(hashes) == 2
    (policy,) = [attrs["content"] or "" for _, attrs in Page(text).elements if "http-equiv" in attrs]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes


@pytest.mark.parametrize("make", [lambda: tiny_run().view(), measured_view, hostile_view])
def test_the_html_is_sound(make: Any) -> None:
    page = Page(render(make()))
    ids = Counter(page.attributes("id"))
    assert max(ids.values()) == 1
    for name in ("for", "aria-labelledby"):
        assert set(page.attributes(name)) <= set(ids)
    for target in page.attributes("href"):
        assert target.removeprefix("#") in ids
    for tag, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs), tag
        if attrs.get("role") == "img":
            assert attrs.get("aria-label")


def test_foreign_text_stays_text() -> None:
    view = hostile_view()
    page, text = Page(render(view)), render(view)
    tags = Counter(tag for tag, _ in page.elements)
    harmless = Counter(tag for tag, _ in Page(render(tiny_run().view())).elements)
    assert tags["script"] == harmless["script"] == 5
    assert tags["img"] == 0
    assert "alert(1)</script>" not in text and 'onerror="' not in text
    assert HOSTILE in "".join(page.texts["pre"]) and HOSTILE in "".join(page.texts["h3"])
    assert "{{ 7 * 7 }}" in "".join(page.texts["h1"])


def test_data_of_the_figures_survives_its_trip_through_html() -> None:
    view = hostile_view()
    text = render(view)
    figures, extras = figures_of(view)
    for name, value in (("figures", figures), ("extras", extras)):
        (found,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)
        assert json.loads(found) == json.loads(json.dumps(value))
    # plotly reads a subset of HTML in its labels.
    names = [trace["name"] for trace in figures["pareto-curve"]["data"]]
    names += [name for trace in figures["saturation-heads"]["data"] for name in trace["x"]]
    assert all("<" not in name for name in names)
    assert "&lt;/script&gt;" in names[0] and "&lt;/script&gt;" in names[-1]


def test_every_figure_has_one_place_and_every_place_a_figure() -> None:
    alone = dataclasses.replace(tiny_run().view(), plans=(), evaluation=None)
    for view in (tiny_run().view(), alone, measured_view()):
        page = Page(render(view))
        places = [attrs["id"] for _, attrs in page.elements if attrs.get("class") == "plot"]
        assert sorted(map(str, places)) == sorted(figures_of(view)[0])


def headings(view: ReportView) -> list[str]:
    return Page(render(view)).texts["h2"]


def test_sections_without_data_are_left_out() -> None:
    view = tiny_run().view()
    everything = ["Comparison", "Loss against cache", "Ranks", "Spectra", "Heads", "How it was made"]
    assert headings(view) == everything  # no prompt, no samples
    assert headings(dataclasses.replace(view, plans=(), evaluation=None)) == ["Spectra", "Heads", "How it was made"]
    assert headings(dataclasses.replace(view, evaluation=None)) == everything[1:]
    unpredicted = dataclasses.replace(tiny_run("output").view(), evaluation=None)
    assert headings(unpredicted) == ["Ranks", "Spectra", "Heads", "How it was made"]


def test_the_numbers_of_the_run_are_on_the_page() -> None:
    run, view = tiny_run(), tiny_run().view()
    assert isinstance(view.evaluation, EvaluationView) and isinstance(view.audit, AuditView)
    page = Page(render(view))
    cells = page.texts["td"]
    for model in run.evaluation.record.models:
        assert f"{model.cache_bytes_per_token:,}" in cells
        assert f"{model.spec.attention_params:,}" in cells
        for kind in ("prose", "licences", "mail"):
            assert f"{model.text(kind).perplexity:,.2f}" in cells
    for layer in run.plans["half"].record.layers:
        assert {str(layer.k_rank), str(layer.v_rank)} <= set(cells)
    assert any("0.50" in number for number in page.texts["span"])


def test_what_a_model_writes_like_the_first_one_is_set_apart() -> None:
    view = tiny_run().view()
    assert view.evaluation is not None
    said = ("one two three", "one two four", "one two three")
    models = tuple(
        dataclasses.replace(model, sample=sample) for model, sample in zip(view.evaluation.models, said, strict=True)
    )
    text = render(dataclasses.replace(view, evaluation=dataclasses.replace(view.evaluation, models=models)))
    assert "<pre>\none two three</pre>" in text
    assert '<pre>\n<span class="same">one two </span>four</pre>' in text
    assert '<pre>\n<span class="same">one two three</span></pre>' in text
