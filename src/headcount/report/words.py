"""Formatting of quantities and wording of results, in one place.

Sentences state what was measured, the baseline and the unit, without judgement.
"""

from __future__ import annotations

import math
from pathlib import PurePosixPath

from headcount.core.labels import clean as clean
from headcount.core.labels import display_name as display_name
from headcount.report.view import AuditView, EvaluationView, ModelView, PlanView
from headcount.trimming.evaluate.record import Group
from headcount.trimming.evaluate.result import geometric_mean

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}"
"""Prefix of a ratio, joined by a no-break space."""
MISSING = "\N{EN DASH}"

METRICS = {
    "fisher": "Fisher metric (curvature of the loss)",
    "output": "output metric (error of the attention's output)",
    "whitened": "whitened metric (the baseline: energy of the activations)",
}
ENERGY_UNITS = {"fisher": "nats per token", "output": "relative squared error", "whitened": "squared activation"}
"""Unit of the energies of a spectrum, by metric."""
SIDES = {"keys": "keys before rotation", "rotated_keys": "keys after rotation", "values": "values"}


def metric_name(metric: str) -> str:
    """A metric's name in a sentence.

    >>> metric_name("fisher"), metric_name("output")
    ('Fisher metric', 'output metric')
    """
    return f"{'Fisher' if metric == 'fisher' else metric} metric"


def side_name(side: str, rotary: bool) -> str:
    """A side in words; without a rotary embedding there is only one kind of keys."""
    return "keys" if side == "keys" and not rotary else SIDES[side]


def significant(number: float, digits: int = 3) -> str:
    """A number with ``digits`` significant digits and thousands separators; tiny numbers use an exponent.

    >>> significant(0.048865), significant(12.5061), significant(23456.0)
    ('0.0489', '12.5', '23,456')
    """
    if not math.isfinite(number):
        return MISSING
    if number == 0:
        return "0"
    if abs(number) < 1e-4:
        return power(number)
    places = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{places}f}".replace("-", MINUS)


def power(number: float) -> str:
    """A small or large number in scientific notation.

    >>> power(2.5e-7)
    '2.5e\N{MINUS SIGN}7'
    """
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def signed(number: float, digits: int = 3) -> str:
    """A number with an explicit sign, for differences."""
    return significant(number, digits) if number < 0 else "+" + significant(number, digits)


def value(number: float | None, form: str) -> str:
    """A measured number in the given format (see ``view.Format``).

    >>> value(12.5061, "perplexity"), value(0.79687, "share"), value(23040, "count"), value(None, "nats")
    ('12.51', '79.7%', '23,040', '\N{EN DASH}')
    """
    if number is None or not math.isfinite(number):
        return MISSING
    if form == "perplexity":
        return f"{number:,.2f}" if number < 1000 else significant(number, 4)
    if form == "ratio":
        return f"{number:.2f}" if number >= 0.1 else significant(number)
    if form == "share":
        return f"{100 * number:.1f}%"
    if form == "count":
        return f"{number:,.0f}"
    if form == "bytes":
        return size(number)
    if form == "rate":
        return f"{number:,.0f}" if number >= 100 else significant(number)
    return significant(number)


def size(number: float) -> str:
    """Bytes in the largest binary unit for which the number is at least one.

    >>> size(1.5 * 2**30), size(512)
    ('1.50 GiB', '512 B')
    """
    for exponent, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 2**exponent:
            return f"{significant(number / 2**exponent)} {unit}"
    return f"{number:,.0f} B"


def times(ratio: float | None) -> str:
    """A ratio to the dense model.

    >>> times(1.1934)
    '\N{MULTIPLICATION SIGN}\xa01.19'
    """
    return MISSING if ratio is None or not math.isfinite(ratio) else TIMES + value(ratio, "ratio")


def listed(parts: list[str]) -> str:
    """Parts as a list in a sentence.

    >>> listed(["prose", "code", "self"])
    'prose, code and self'
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def without_paths(argument: str) -> str:
    """A command-line argument with absolute paths reduced to their last component.

    >>> without_paths("--out=/tmp/run/half"), without_paths("bible=/data/kjv.txt"), without_paths("8x4096")
    ('--out=half', 'bible=kjv.txt', '8x4096')
    """
    before, equals, after = argument.partition("=")
    if equals and not PurePosixPath(before).is_absolute():
        return f"{before}={display_name(after)}" if after else argument
    return display_name(argument)


def attention_words(audit: AuditView) -> str:
    """A sentence describing the model's attention."""
    heads = sorted({len(layer.heads) for layer in audit.layers})
    widths = sorted({layer.k_width + layer.v_width for layer in audit.layers})
    shown = " to ".join(f"{n:,}" for n in (heads if len(heads) == 1 else [heads[0], heads[-1]]))
    cached = " to ".join(f"{n:,}" for n in (widths if len(widths) == 1 else [widths[0], widths[-1]]))
    return (
        f"A {audit.family} model of {len(audit.layers)} layers with {shown} query heads each; its cache holds "
        f"{cached} numbers per token and layer."
    )


def plan_words(plan: PlanView) -> str:
    """A short description that distinguishes the plans of one model."""
    return (
        f"{plan.form}, {plan.allocator} ranks, {metric_name(plan.metric)}, {100 * plan.cache_ratio:.0f}% of the cache"
    )


def done_words(audit: AuditView, plan: PlanView | None) -> str:
    """One or two sentences describing the run."""
    texts = f" ({listed([text.kind for text in audit.texts])})" if audit.texts else ""
    said = f"Audited on {audit.tokens:,} tokens{texts} in the {METRICS.get(audit.metric, audit.metric)}."
    if plan is None:
        return said
    repair = {True: " and its output matrices were refitted (repair)", False: ", without repair", None: ""}
    return (
        f"{said} Every layer's keys and values were projected onto fewer numbers: form {plan.form}, ranks by "
        f"{plan.allocator} allocation, {100 * plan.cache_ratio:.1f}% of the dense cache{repair[plan.repaired]}. "
        "No weights were trained."
    )


def quality_words(evaluation: EvaluationView, model: ModelView, group: Group) -> str | None:
    """Perplexity relative to the first model on one group of kinds, with the loss difference in nats."""
    ratios = evaluation.ratios(model, group)
    mean = geometric_mean(ratios.values())
    if mean is None:
        return None
    each = ", ".join(f"{kind} {times(ratio)}" for kind, ratio in ratios.items())
    nats = f"{signed(math.log(mean))} nats per token"
    return f"{nats}; {each}" if len(ratios) > 1 else f"{nats}; {next(iter(ratios))} only"


def prediction_words(plan: PlanView, evaluation: EvaluationView | None, model: ModelView | None) -> str:
    """A neutral comparison of prediction and measurement."""
    if plan.predicted_loss_increase is None:
        return (
            f"The {metric_name(plan.metric)} does not know what a direction is worth in loss, "
            "so there is no predicted curve; only the Fisher metric gives one."
        )
    said = f"Predicted for this plan: {significant(plan.predicted_loss_increase)} nats per token"
    measured = None
    if evaluation is not None and model is not None:
        measured = geometric_mean(evaluation.ratios(model, "calibrated").values())
    if measured is None:
        return said + "."
    repaired = " after repair" if plan.repaired else ""
    return (
        f"{said}; measured{repaired} on calibrated kinds: {significant(math.log(measured))}. The prediction is to "
        "second order, before any repair, and on the text that statistics came from: it serves to rank plans "
        "against each other."
    )
