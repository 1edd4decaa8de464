"""A miniature run for the tests of the report: audit, plans, trim and evaluation of a tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from conftest import tiny_model, tiny_tokens

import headcount
from headcount.audit.record import Audit
from headcount.evaluate.result import Evaluation
from headcount.plan.make import Plan
from headcount.report.collect import from_run
from headcount.report.view import MadeView, ReportView

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
