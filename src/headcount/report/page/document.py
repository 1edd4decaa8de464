"""The page: one self-contained HTML file, drawn by the browser from embedded data.

The file contains plotly.js, the figures as JSON, and a content security policy that forbids all connections and all
scripts except the two listed by hash: neither a model name nor a sample can load or run anything. The content does not
depend on the time or the machine: equal views give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

from headcount.core.errors import HeadcountError
from headcount.core.extras import optional_imports
from headcount.core.store import write_text
from headcount.probes.selection.capacity import KINDS as SELECTION_KINDS
from headcount.report import words
from headcount.report.charts.heads import HEAD_FIELDS, head_maps
from headcount.report.charts.ranks import pareto, rank_bars
from headcount.report.charts.saturation import saturation_figures
from headcount.report.charts.selection import selection_figures
from headcount.report.charts.spectra import DECADES, POINTS, heat_map, sides_of, spectrum_lines
from headcount.report.page.headline import main_model, sentences, tiles, title
from headcount.report.page.style import DARK, Figure, Part
from headcount.report.saturation_view import BOUNDARY_TOLERANCE
from headcount.report.view import EvaluationView, Measure, ReportView


@dataclass(frozen=True)
class Cell:
    """A number of the comparison as text, with its ratio to the first model where meaningful."""

    text: str
    ratio: str


GENERATOR = '<meta name="generator" content="headcount">'
"""Marks a page as written by headcount."""


def write_report(path: Path | str, view: ReportView) -> Path:
    """Write ``view`` as one self-contained page; returns its path. The file is written atomically.

    Raises ``HeadcountError`` if ``path`` exists and was not written by headcount.

    >>> write_report("out/report.html", view)          # doctest: +SKIP
    PosixPath('out/report.html')
    """
    path = Path(path)
    if path.exists() and not (path.is_file() and GENERATOR in _head(path)):
        raise HeadcountError(f"{path} exists and was not made by headcount", fix="choose another --out")
    write_text(path, render(view))
    return path


def render(view: ReportView) -> str:
    """The page as text."""
    with optional_imports():
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("headcount.report.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":"), "allow_nan": False}
    scripts = [get_plotlyjs(), _asset("report.js")]
    figures, extras = figures_of(view)
    return environment.get_template("report.html.j2").render(
        view=view,
        title=title(view),
        headline=sentences(view),
        tiles=tiles(view),
        groups=comparison(view.evaluation),
        samples=samples(view.evaluation),
        main=main_model(view),
        prediction=prediction(view),
        predicted=any(plan.predicted_loss_increase is not None for plan in view.plans),
        sections=sections(view),
        figures=figures,
        extras=extras,
        sides=[(side, words.side_name(side, "rotated_keys" in sides_of(view.audit))) for side in sides_of(view.audit)],
        head_fields=HEAD_FIELDS,
        uniform_entropy=words.significant(math.log(view.audit.context)),
        energy_unit=words.ENERGY_UNITS.get(view.audit.metric, "energy"),
        thinned=any(len(s) > POINTS for layer in view.audit.layers for s in layer.spectra.values()),
        points=POINTS,
        decades=DECADES,
        boundary_tolerance=BOUNDARY_TOLERANCE,
        selection_kinds=SELECTION_KINDS,
        words=words,
        colours=DARK,
        style=Markup(_asset("report.css")),
        scripts=[Markup(script) for script in scripts],
        policy=policy(scripts),
    )


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(2**12).decode("utf-8", errors="replace")


@cache
def _asset(name: str) -> str:
    return (files("headcount.report.page") / "templates" / name).read_text(encoding="utf-8")


def policy(scripts: list[str]) -> str:
    """The content security policy: only these scripts run, and nothing is fetched.

    Inline styles and data images are allowed because plotly uses them.
    """
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def comparison(evaluation: EvaluationView | None) -> list[tuple[str, list[tuple[Measure, list[Cell]]]]]:
    """The comparison rows by group, as text."""
    groups: dict[str, list[tuple[Measure, list[Cell]]]] = {}
    for measure in evaluation.measures if evaluation else ():
        first = measure.values[0]
        cells = []
        for index, number in enumerate(measure.values):
            ratio = number / first if measure.compared and index and number is not None and first else None
            cells.append(Cell(words.value(number, measure.form), "" if ratio is None else words.times(ratio)))
        groups.setdefault(measure.group, []).append((measure, cells))
    return list(groups.items())


def samples(evaluation: EvaluationView | None) -> list[tuple[str, str, str]]:
    """(model, the prefix shared with the first model's sample, the rest)."""
    if evaluation is None or not any(model.sample for model in evaluation.models):
        return []
    first = evaluation.models[0].sample
    rows = [(evaluation.models[0].name, "", first)]
    for model in evaluation.models[1:]:
        same = next((i for i, (a, b) in enumerate(zip(first, model.sample, strict=False)) if a != b), None)
        same = min(len(first), len(model.sample)) if same is None else same
        rows.append((model.name, model.sample[:same], model.sample[same:]))
    return rows


def prediction(view: ReportView) -> str:
    """A comparison of prediction and measurement."""
    return words.prediction_words(view.plan, view.evaluation, main_model(view)) if view.plan else ""


def sections(view: ReportView) -> list[tuple[str, str]]:
    """(anchor, heading) of each section for which the view has data."""
    has_evaluation = view.evaluation is not None and bool(view.evaluation.measures)
    offered = (
        ("comparison", "Comparison", has_evaluation),
        ("pareto", "Loss against cache", bool(pareto(view.plans, view.evaluation)["data"])),
        ("ranks", "Ranks", bool(view.plans)),
        ("spectra", "Spectra", True),
        ("heads", "Heads", True),
        ("saturation", "Saturation", view.saturation is not None),
        ("selection", "Selection capacity", view.selection is not None),
        ("samples", "Samples", bool(samples(view.evaluation))),
        ("made", "How it was made", True),
    )
    return [(anchor, heading) for anchor, heading, there in offered if there]


class Choices(TypedDict):
    """Data selected by the controls of the page: spectra by layer and side, ranks by plan."""

    frames: list[Part]
    ranks: list[Figure]


def figures_of(view: ReportView) -> tuple[dict[str, Figure], Choices]:
    """All figures by element id, and the data selected by the page controls."""
    lines, frames = spectrum_lines(view.audit, view.plan)
    figures = {f"heat-{side}": heat_map(view.audit, side, view.plan) for side in sides_of(view.audit)}
    figures |= {"lines": lines}
    figures |= {f"head-{name}": figure for name, figure in head_maps(view.audit).items()}
    extras: Choices = {"frames": frames, "ranks": []}
    if view.plans:
        extras["ranks"] = [rank_bars(view.audit, plan) for plan in view.plans]
        figures["rank-bars"] = extras["ranks"][0]
    if any(anchor == "pareto" for anchor, _ in sections(view)):
        figures["pareto-curve"] = pareto(view.plans, view.evaluation)
    if view.saturation is not None:
        figures |= saturation_figures(view.saturation)
    if view.selection is not None:
        figures |= selection_figures(view.selection)
    return figures, extras
