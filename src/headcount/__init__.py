"""headcount: how much attention does this Transformer need, and can I have the model that has just that?

The verbs work on live objects::

    import headcount

    opened = headcount.open_model("demo")
    found = headcount.audit(opened.model, headcount.calibration_tokens(opened))
    half = headcount.plan(found, cache=0.5)
    smaller = headcount.trim(opened.model, half)
    headcount.evaluate([opened, ("half", smaller, opened.tokenizer)])

The theory is beside them: ``headcount.tasks``, ``headcount.constructions``, ``headcount.bounds``, ``headcount.refute``.

Nothing heavy is imported before a name is used. Importing headcount makes its trimmed models known to
transformers' auto classes, as soon as those are imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headcount.pretrained.runtimes.register import register_with_transformers

if TYPE_CHECKING:
    from headcount import bounds as bounds
    from headcount import constructions as constructions
    from headcount import tasks as tasks
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

_PACKAGES = (
    *("attention", "bounds", "constructions", "core", "lab", "lags", "pbit", "pretrained", "probes", "protocols"),
    *("refutation", "report", "shapes", "tasks", "trimming"),
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
__all__ = [*_PACKAGES, *_PLACES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"headcount.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'headcount' has no attribute {name!r}")


register_with_transformers()
