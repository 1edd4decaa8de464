"""The headline of a run: a summary and its key numbers with their baselines."""

from __future__ import annotations

from dataclasses import dataclass

from headcount.report import words
from headcount.report.view import GROUPS, ModelView, ReportView
from headcount.trimming.evaluate.result import geometric_mean


@dataclass(frozen=True)
class Tile:
    """One headline number with its label and baseline."""

    label: str
    number: str
    detail: str


def title(view: ReportView) -> str:
    """The page title."""
    if view.plan is None:
        return f"{view.audit.model}: how its attention is used"
    return f"{view.audit.model} at {100 * view.plan.cache_ratio:.0f}% of its key-value cache"


def sentences(view: ReportView) -> list[str]:
    """Sentences that describe the run."""
    return [words.attention_words(view.audit), words.done_words(view.audit, view.plan)]


def main_model(view: ReportView) -> ModelView | None:
    """The trimmed model shown in the headline: the model of the first plan, or else the second model."""
    others = view.evaluation.models[1:] if view.evaluation else ()
    if view.plan is None:
        return others[0] if others else None
    return next((model for model in others if model.name == view.plan.name), None)


def tiles(view: ReportView) -> list[Tile]:
    """Cache, quality on calibrated and unseen text, and decoding speed, as far as measured."""
    evaluation, model = view.evaluation, main_model(view)
    if evaluation is None or model is None:
        return _planned_tiles(view)
    dense = evaluation.models[0]
    headline_tiles = [
        Tile(
            "Cache per token",
            words.times(evaluation.cache_ratio(model)),
            f"{model.cache_bytes_per_token:,} bytes against {dense.cache_bytes_per_token:,}",
        )
    ]
    for group in GROUPS:
        detail = words.quality_words(evaluation, model, group)
        if detail is not None:
            mean = geometric_mean(evaluation.ratios(model, group).values())
            headline_tiles.append(Tile(f"Perplexity, {group} text", words.times(mean), detail))
    speedup = evaluation.speedup(model)
    if speedup is not None:
        rates = [words.value(timed.decode_tokens_per_s, "rate") for timed in (model, dense)]
        detail = f"{rates[0]} tokens/s against {rates[1]}"
        setting = f"; {evaluation.speed_setting}" if evaluation.speed_setting else ""
        headline_tiles.append(Tile("Decoding speed", words.times(speedup), detail + setting))
    return headline_tiles


def _planned_tiles(view: ReportView) -> list[Tile]:
    if view.plan is None:
        return []
    numbers = sum(k + v for k, v in view.plan.ranks)
    detail = f"{numbers:,} numbers per token against {view.audit.cache_numbers_per_token:,}; planned, not measured"
    planned_tiles = [Tile("Cache per token", words.times(view.plan.cache_ratio), detail)]
    if view.plan.predicted_loss_increase is not None:
        number = words.signed(view.plan.predicted_loss_increase)
        planned_tiles.append(
            Tile("Predicted loss", number, "nats per token, to second order, before repair; not measured")
        )
    return planned_tiles
