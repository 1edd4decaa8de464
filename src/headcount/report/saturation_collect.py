"""Building report views from the records of saturation and selection runs."""

from __future__ import annotations

from headcount.probes.saturation.record import (
    ClaimRecord,
    ContextRecord,
    Saturation,
    SaturationRecord,
    component_counts,
    mean_errors,
)
from headcount.probes.selection.capacity import KINDS
from headcount.probes.selection.run import Selection
from headcount.report.saturation_view import (
    FORMS,
    WHATS,
    ContextView,
    ErrorView,
    LossView,
    SaturationView,
    SelectionView,
    TheoryView,
)
from headcount.report.words import clean, display_name


def saturation_view(audit: Saturation) -> SaturationView:
    """The report view of a saturation audit. Only the last component of its folder path is kept."""
    record = audit.record
    return SaturationView(
        folder=_place(audit),
        tokens=record.tokens,
        kinds=tuple(clean(kind) for kind in record.kinds),
        seed=record.seed,
        matmul_dtype=clean(record.matmul_dtype),
        tolerances=tuple(record.tolerances),
        dims=tuple(len(layer.heads[0].errors) - 1 for layer in record.contexts[0].layers),
        contexts=tuple(_context(record, context) for context in record.contexts),
        claims=tuple(_claim(claim) for claim in record.claims),
    )


def selection_view(audit: Selection) -> SelectionView:
    """The report view of a selection audit. Only the last component of its folder path is kept."""
    record = audit.record
    return SelectionView(
        folder=_place(audit),
        seed=record.seed,
        context=record.context,
        windows=record.windows,
        subsets=record.subsets,
        largest=record.sizes[-1],
        trimmed_rank=record.trimmed_rank,
        checked=record.checked,
        agreed=record.agreed,
        heads=tuple(
            tuple(
                {
                    (form, what, kind): getattr(getattr(head, form), f"{what}_half")[kind]
                    for form in FORMS
                    for what in WHATS
                    for kind in KINDS
                }
                for head in layer.heads
            )
            for layer in record.layers
        ),
        theory=tuple(TheoryView(line.dim, line.neighbourly, dict(line.gaussian_half)) for line in record.theory),
    )


def _place(audit: Saturation | Selection) -> str:
    return display_name(str(audit.folder.absolute()))


def _context(saturation: SaturationRecord, record: ContextRecord) -> ContextView:
    ranks, ranges = [], []
    for layer in record.layers:
        columns = zip(*(head.ranks for head in layer.heads), strict=True)
        ranks.append(tuple(sum(column) / len(layer.heads) for column in columns))
        ranges.append(sum(head.logit_range for head in layer.heads) / len(layer.heads))
    errors = mean_errors(record)
    return ContextView(
        context=record.context,
        ranks=tuple(ranks),
        ranges=tuple(ranges),
        losses=tuple(
            LossView(clean(loss.name), loss.mean_rank, loss.increase, loss.low, loss.high)
            for loss in record.losses
            if loss.name != "dense"
        ),
        boundary=record.boundary,
        errors=tuple(ErrorView(*errors[bound.rank]) for bound in record.bounds),
        bounds=tuple(record.bounds),
        components=component_counts(saturation, record),
    )


def _claim(record: ClaimRecord) -> ClaimRecord:
    said = {name: clean(getattr(record, name)) for name in ("name", "claim", "measured", "needed")}
    return record.model_copy(update=said)
