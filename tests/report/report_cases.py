"""A miniature run for the tests of the report: audit, plans, trim and evaluation of a tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from conftest import tiny_model, tiny_tokens

import headcount
from headcount.pretrained.families import read_spec
from headcount.pretrained.opening.loading import OpenModel, fingerprint
from headcount.probes.saturation.record import Saturation
from headcount.probes.saturation.run import saturation
from headcount.probes.selection.run import Selection, selection
from headcount.report.collect import from_run
from headcount.report.view import MadeView, ReportView
from headcount.trimming.audit.record import Audit
from headcount.trimming.evaluate.result import Evaluation
from headcount.trimming.plan.make import Plan

TEXTS = {
    "prose": tiny_tokens(4, 16, seed=1),
    "licences": tiny_tokens(4, 16, seed=2),
    "mail": tiny_tokens(4, 16, seed=3),
}
MADE = MadeView(commands=("headcount demo --quick",), seed=0, versions={"torch": "2.13.0"}, threads=1)


@dataclass(frozen=True)
class Run:
    """What the verbs returned."""

    audit: Audit
    plans: dict[str, Plan]
    evaluation: Evaluation

    def view(self) -> ReportView:
        return from_run(self.audit, self.plans, self.evaluation, made=MADE)


@cache
def tiny_run(metric: str = "fisher") -> Run:
    """Two plans of a tiny Llama, trimmed, repaired, and compared with it; made once."""
    model = tiny_model("llama")
    found = headcount.audit(model, {"prose": tiny_tokens()}, metric=metric, matmul_dtype="model", name="tiny")
    plans = {
        "half": headcount.plan(found, cache=0.5),
        "three quarters": headcount.plan(found, cache=0.75, form="small"),
    }
    trimmed = [(name, headcount.trim(model, plan, matmul_dtype="model"), None) for name, plan in plans.items()]
    evaluation = headcount.evaluate([("tiny", model, None), *trimmed], texts=TEXTS, decode="1x16", sample_prompt=None)
    return Run(found, plans, evaluation)


@cache
def tiny_measured() -> tuple[Saturation, Selection]:
    """A saturation and a selection audit of the same tiny Llama at two contexts and one; made once."""
    model = tiny_model("llama")
    opened = OpenModel("tiny", model, None, read_spec(model), fingerprint(model))
    with TemporaryDirectory() as place:
        windows = {16: {"prose": tiny_tokens(6, 16)}, 32: {"prose": tiny_tokens(4, 32)}}
        first = saturation(opened, windows, out=Path(place) / "saturation", matmul_dtype="model")
        kinds = {"prose": tiny_tokens(2, 16)}
        second = selection(opened, kinds, out=Path(place) / "selection", subsets=2, matmul_dtype="model")
    return first, second


def measured_view() -> ReportView:
    """Audit, saturation and selection, without plans."""
    found, capacity = tiny_measured()
    return from_run(tiny_run().audit, made=MADE, saturation=found, selection=capacity)
