"""The page in a real browser: every plot is drawn, nothing is fetched, nothing goes wrong, it fits a phone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser, open_page
from report_cases import measured_view, tiny_run
from test_report_page import hostile_view

from headcount.report.page.document import figures_of, write_report
from headcount.report.page.style import DARK, INK, KEYS
from headcount.report.view import ReportView

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium (Debian: apt-get install chromium)")

READY = "document.documentElement.dataset.ready === 'true'"


def sampled_view() -> ReportView:
    view = tiny_run().view()
    assert view.evaluation is not None
    models = tuple(dataclasses.replace(model, sample="a b c") for model in view.evaluation.models)
    measured = measured_view()
    return dataclasses.replace(
        view,
        evaluation=dataclasses.replace(view.evaluation, models=models, prompt="Say:"),
        saturation=measured.saturation,
        selection=measured.selection,
    )


def complaints(browser: Browser) -> list[Any]:
    """Exceptions, console errors and warnings, and whatever the browser logged (refused scripts, requests)."""
    logged = [told["args"] for told in browser.told("Runtime.consoleAPICalled") if told["type"] in ("error", "warning")]
    entries = [told["entry"]["text"] for told in browser.told("Log.entryAdded")]
    return [*browser.told("Runtime.exceptionThrown"), *logged, *entries]


def requests(browser: Browser) -> list[str]:
    """Everything that the page asked for but itself and the data that it carries."""
    urls = [told["request"]["url"] for told in browser.told("Network.requestWillBeSent")]
    return [url for url in urls if not url.startswith(("data:", "blob:", "about:"))]


DRAWN = """[...document.querySelectorAll('.plot')].map(place => ({
    id: place.id,
    drawn: place.dataset.drawn === 'true' && place.querySelectorAll('svg.main-svg').length > 0,
    marks: place.querySelectorAll('.heatmaplayer image, .scatterlayer .trace, .barlayer .point').length,
    width: place.querySelector('svg.main-svg')?.getBoundingClientRect().width ?? 0,
    room: place.clientWidth,
}))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    place = write_report(tmp_path_factory.mktemp("page") / "report.html", sampled_view())
    with open_page(place.as_uri()) as browser:
        browser.wait_for(READY)
        yield browser


def test_every_plot_is_drawn_without_a_complaint_or_a_request(page: Browser) -> None:
    figures, _ = figures_of(sampled_view())
    found = {plot["id"]: plot for plot in page.evaluate(DRAWN)}
    assert set(found) == set(figures)
    for name, plot in found.items():
        assert plot["drawn"] and plot["marks"] >= len(figures[name]["data"]), plot
        assert 0 < plot["width"] <= plot["room"] + 1, plot
    assert complaints(page) == []
    (only,) = requests(page)
    assert only.startswith("file:") and only.endswith("report.html")


def test_the_browser_found_no_fault_in_the_html(page: Browser) -> None:
    assert page.evaluate("document.compatMode") == "CSS1Compat"
    assert page.evaluate("document.querySelectorAll('section').length") == 9
    assert page.evaluate("document.querySelectorAll('p p, p div, table p').length") == 0


def test_the_slider_shows_the_layer_that_it_stands_on(page: Browser) -> None:
    shown = page.evaluate(
        """(async () => {
            const slider = document.getElementById('layer');
            slider.value = 2;
            slider.dispatchEvent(new Event('input'));
            await new Promise(done => setTimeout(done, 300));
            const place = document.getElementById('lines');
            return [document.getElementById('layer-shown').textContent, place.data.map(trace => trace.y)];
        })()"""
    )
    spectra = sampled_view().audit.layers[2].spectra
    assert shown == ["2", [[float(f"{e:.3g}") if e > 0 else None for e in spectra[side]] for side in spectra]]


def test_the_plan_chosen_is_the_plan_drawn(page: Browser) -> None:
    ranks = page.evaluate(
        """(async () => {
            const choice = document.getElementById('plan-choice');
            choice.value = '1';
            choice.dispatchEvent(new Event('change'));
            await new Promise(done => setTimeout(done, 300));
            return document.getElementById('rank-bars').data[0].y;
        })()"""
    )
    assert ranks == [k for k, _ in sampled_view().plans[1].ranks]


def test_the_logarithmic_axis_leaves_out_what_the_linear_one_shows(page: Browser) -> None:
    """The dense end of the curve has loss zero, and some ratios of the tiny model are below one."""
    counts = page.evaluate(
        """(async () => {
            const place = document.getElementById('pareto-curve');
            const count = () => place.data.flatMap(trace => trace.y).filter(y => y !== null).length;
            const before = [place.layout.yaxis.type, count()];
            const button = document.querySelector('input[name=pareto-scale][value=linear]');
            button.checked = true;
            button.dispatchEvent(new Event('change'));
            await new Promise(done => setTimeout(done, 300));
            return [before, [place.layout.yaxis.type, count()]];
        })()"""
    )
    figures, _ = figures_of(sampled_view())
    y = [number for trace in figures["pareto-curve"]["data"] for number in trace["y"]]
    above = sum(number > 0 for number in y)
    assert above < len(y)
    assert counts == [["log", above], ["linear", len(y)]]


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_the_scheme_that_is_preferred(tmp_path: Path, dark: bool) -> None:
    place = write_report(tmp_path / "report.html", sampled_view())
    with open_page(place.as_uri(), width=420, dark=dark) as browser:
        browser.wait_for(READY)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 420
        for plot in browser.evaluate(DRAWN):
            assert plot["drawn"] and 0 < plot["width"] <= plot["room"] + 1, plot
        assert browser.evaluate("document.getElementById('lines').data[0].line.color") == (DARK[KEYS] if dark else KEYS)
        wanted = DARK[INK] if dark else INK
        channels = ", ".join(str(int(wanted[i : i + 2], 16)) for i in (1, 3, 5))
        assert browser.evaluate("getComputedStyle(document.body).color") == f"rgb({channels})"
        assert complaints(browser) == []


def test_hostile_names_and_samples_do_nothing(tmp_path: Path) -> None:
    place = write_report(tmp_path / "report.html", hostile_view())
    with open_page(place.as_uri()) as browser:
        browser.wait_for(READY)
        assert browser.evaluate("document.querySelectorAll('img').length") == 0
        assert browser.told("Page.javascriptDialogOpening") == []
        assert len(requests(browser)) == 1
        assert complaints(browser) == []
        # The policy holds even for a script that gets into the page by another way.
        browser.evaluate(
            "document.body.appendChild(Object.assign(document.createElement('script'), {text: 'broken = 1'}))"
        )
        assert browser.evaluate("typeof broken") == "undefined"
