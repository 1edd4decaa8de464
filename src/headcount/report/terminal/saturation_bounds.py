"""Further terminal tables of a saturation audit: output errors, perturbation bounds, component counts."""

from __future__ import annotations

from headcount.probes.saturation.record import SaturationRecord, Spread, component_counts, mean_errors
from headcount.report.terminal.grid import Grid
from headcount.report.words import significant


def error_table(record: SaturationRecord) -> Grid | None:
    """Relative and absolute output errors at a few ranks, by context; ``None`` for an older record."""
    rows = []
    for context in record.contexts:
        errors = mean_errors(context)
        for bound in context.bounds:
            error = errors[bound.rank]
            rows.append(
                [
                    str(context.context),
                    str(bound.rank),
                    f"{error.relative:.4f}",
                    "" if error.absolute is None else significant(error.absolute),
                    significant(bound.output_error),
                    significant(bound.output_error_bound),
                    significant(bound.independent_output_error),
                ]
            )
    if not rows:
        return None
    columns = [
        "context",
        "rank",
        "relative\nerror",
        "absolute\nerror",
        "absolute\nmedian",
        "at most\n(median)",
        "if values are\nindependent",
    ]
    note = (
        "Errors: root mean squares over the queries of a head, averaged over the heads; absolute in units of values. "
        "Medians: over rows (one query of one head). At most: 2 tanh(delta/2) max|v - mean v|. "
        "If values are independent of logits: sqrt(tr S) |p - p'|."
    )
    return Grid("Output errors at fixed ranks, relative and absolute", columns, rows, note)


def bound_table(record: SaturationRecord) -> Grid | None:
    """The two softmax perturbation inequalities on measured rows; ``None`` for an older record."""
    rows = [
        [
            str(context.context),
            str(bound.rank),
            significant(bound.half_range),
            significant(bound.total_variation),
            significant(bound.total_variation_bound),
            significant(bound.squared_distance),
            f"{bound.squared_bound:.3g}",
            f"{bound.long_context_says_more:.1%}",
        ]
        for context in record.contexts
        for bound in context.bounds
    ]
    if not rows:
        return None
    counted = sum(bound.rows for context in record.contexts for bound in context.bounds)
    broken = sum(bound.violations for context in record.contexts for bound in context.bounds)
    columns = [
        "context",
        "rank",
        "delta",
        "TV",
        "tanh\n(delta/2)",
        "|p - p'|^2",
        "e^(2b)/L\nbound",
        "second\nsays more",
    ]
    note = (
        f"Medians over rows. Both inequalities, TV <= tanh(delta/2) and |p - p'|^2 <= 2 tanh(delta/2) e^(2b)/L, hold "
        f"on {counted - broken:,} of {counted:,} rows. Second says more: share of rows where the second is below "
        "2 tanh(delta/2)^2, which the first gives alone."
    )
    return Grid("Softmax perturbation: what it does and its bounds", columns, rows, note)


def component_table(record: SaturationRecord) -> Grid | None:
    """Dimensions by logit energy, weight-product energy and output error; ``None`` for an older record."""
    rows = []
    for context in record.contexts:
        counts = component_counts(record, context)
        if counts is not None:
            spreads = (counts.window, counts.pooled, counts.weights, counts.output)
            rows.append([str(context.context), *map(_counted, spreads), f"{counts.error.mean:.2f}"])
    if not rows:
        return None
    columns = [
        "context",
        "logit energy,\none window",
        "logit energy,\nall windows",
        "weights\nW_q' W_k",
        "5% output\nerror",
        "error\nleft",
    ]
    note = (
        "Components that hold 90% of the energy, or the rank for a relative output error of 5%: mean over all heads "
        "(smallest to largest). Error left: relative, of the output when each window's logits keep only their own "
        "components that hold 90% of the energy, those of the first column."
    )
    return Grid("Dimensions of a head: energy of logits, spectrum of weights, error of outputs", columns, rows, note)


def _counted(spread: Spread) -> str:
    return f"{spread.mean:.1f} ({spread.low:.0f} to {spread.high:.0f})"
