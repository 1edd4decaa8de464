"""headcount: how much attention does this Transformer need, and can I have the model that has just that?

The commands are functions on live objects. With ``out=`` they write the folders that the command line writes; without
it everything stays in memory::

    import headcount

    opened = headcount.open_model("demo")
    audit = headcount.audit(opened, out="runs/audit")
    half = headcount.plan(audit, cache=0.5, out="runs/plan")
    smaller = headcount.trim(opened, half, out="runs/model")
    headcount.evaluate([opened, ("half", smaller, opened.tokenizer)], out="runs/evaluation")

The theory is beside them: ``headcount.tasks``, ``headcount.constructions``, ``headcount.bounds``, ``headcount.refute``.

Nothing heavy is imported before a name is used. Importing headcount makes its trimmed models known to
transformers' auto classes, as soon as those are imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headcount.pretrained.runtimes.register import register_with_transformers

if TYPE_CHECKING:
    from headcount import attention as attention
    from headcount import bounds as bounds
    from headcount import cli as cli
    from headcount import constructions as constructions
    from headcount import core as core
    from headcount import lab as lab
    from headcount import lags as lags
    from headcount import pbit as pbit
    from headcount import pipeline as pipeline
    from headcount import pretrained as pretrained
    from headcount import probes as probes
    from headcount import protocols as protocols
    from headcount import refutation as refutation
    from headcount import report as report
    from headcount import shapes as shapes
    from headcount import tasks as tasks
    from headcount import trimming as trimming
    from headcount.core.errors import HeadcountError as HeadcountError
    from headcount.pretrained.families import read_spec as read_spec
    from headcount.pretrained.opening.loading import OpenModel as OpenModel
    from headcount.pretrained.opening.loading import open_model as open_model
    from headcount.pretrained.text.calibration import calibration_tokens as calibration_tokens
    from headcount.refutation.dispatch import refute as refute
    from headcount.trimming.audit.record import Audit as Audit
    from headcount.trimming.audit.run import audit as audit
    from headcount.trimming.evaluate.result import Evaluation as Evaluation
    from headcount.trimming.evaluate.run import evaluate as evaluate
    from headcount.trimming.plan.make import Plan as Plan
    from headcount.trimming.plan.make import plan as plan
    from headcount.trimming.trim.run import trim as trim

__version__ = "0.1.0.dev0"

_MODULES = (
    *("attention", "bounds", "cli", "constructions", "core", "lab", "lags", "pbit", "pipeline", "pretrained", "probes"),
    *("protocols", "refutation", "report", "shapes", "tasks", "trimming"),
)
_PLACES = {
    "Audit": "headcount.trimming.audit.record",
    "Evaluation": "headcount.trimming.evaluate.result",
    "HeadcountError": "headcount.core.errors",
    "OpenModel": "headcount.pretrained.opening.loading",
    "Plan": "headcount.trimming.plan.make",
    "audit": "headcount.trimming.audit.run",
    "calibration_tokens": "headcount.pretrained.text.calibration",
    "evaluate": "headcount.trimming.evaluate.run",
    "open_model": "headcount.pretrained.opening.loading",
    "plan": "headcount.trimming.plan.make",
    "read_spec": "headcount.pretrained.families",
    "refute": "headcount.refutation.dispatch",
    "trim": "headcount.trimming.trim.run",
}
__all__ = [*_MODULES, *_PLACES, "__version__"]

if not TYPE_CHECKING:  # type checkers take the imports above, and so notice a name that is not there

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"headcount.{name}")
        if name in _PLACES:
            return getattr(importlib.import_module(_PLACES[name]), name)
        raise AttributeError(f"module 'headcount' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


register_with_transformers()
