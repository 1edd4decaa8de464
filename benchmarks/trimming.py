"""The README's table: forms and budgets, allocators, and the core of the public methods, in one run.

    python benchmarks/trimming.py --out headcount-runs/demo [--model demo] [--decode 8x4096]

Resumes: what --out has already is taken from there. One evaluation measures all models on the same windows; speed is
measured for the dense model and the two repaired models at half the cache only (--rows speed). Prints Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from headcount.cli.common import progress_bars
from headcount.pipeline import Choice, make_trimmed
from headcount.pretrained.opening.loading import open_model
from headcount.trimming.evaluate.result import summary_json
from headcount.trimming.evaluate.run import evaluate

REPAIRED = [Choice(cache, form) for cache in (0.5, 0.75) for form in ("fast", "small")]  # type: ignore[arg-type]
ALLOCATORS = [
    Choice(0.5, form, allocator, repair=False)  # type: ignore[arg-type]
    for form in ("fast", "small")
    for allocator in ("greedy", "uniform", "per-head")
]
PUBLIC = [
    Choice(cache, form, "uniform", "whitened", repair=False)  # type: ignore[arg-type]
    for cache in (0.5, 0.75)
    for form in ("fast", "small")
]
PUBLIC_REPAIRED = [replace(choice, repair=True) for choice in PUBLIC]
ROWS = {"repaired": REPAIRED, "allocators": ALLOCATORS, "public": PUBLIC, "public-repaired": PUBLIC_REPAIRED}


def main() -> None:
    """Create missing models, measure all of them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, default=Path("headcount-runs/demo"))
    parser.add_argument("--decode", default="8x4096")
    parser.add_argument("--windows", type=int, default=12, help="windows of each kind of text")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "speed"], default=[*ROWS, "speed"])
    options = parser.parse_args()
    opened = open_model(options.model)
    rows = [row for row in options.rows if row != "speed"]
    choices = [choice for row in rows for choice in ROWS[row]]
    with progress_bars() as progress:
        if choices:
            made = [make_trimmed(opened, options.out, choice, progress=progress) for choice in choices]
            quality = evaluate(
                [opened, *(model for _, _, model in made)],
                windows=options.windows,
                decode=None,
                sample_prompt=None,
                out=options.out / f"table-quality-{options.windows}-{'-'.join(rows)}",
                progress=progress,
            )
            for choice, (_, planned, _), row in zip(choices, made, summary_json(quality)["models"][1:], strict=True):
                print(row_text(choice, planned.record.predicted_loss_increase, row), flush=True)
        if "speed" not in options.rows:
            return
        halved = [make_trimmed(opened, options.out, choice, progress=progress)[2] for choice in REPAIRED[:2]]
        place = options.out / "table-speed"
        speed = evaluate([opened, *halved], windows=1, decode=options.decode, out=place, progress=progress)
    for model in summary_json(speed)["models"]:
        print(
            f"{model['name']}: decode {model['decode_tokens_per_s']:.1f} tokens/s"
            f" ({model['decode_speedup']:.2f} x stock), attention step {model['attention_speedup']:.2f} x stock,"
            f" {model['attention_speedup_same_path']:.2f} x dense on our path;"
            f" prefill {model['prefill_tokens_per_s']:.0f} tokens/s; {torch.get_num_threads()} threads"
        )


def row_text(choice: Choice, predicted: float | None, model: dict) -> str:  # type: ignore[type-arg]
    """One Markdown row."""
    kinds = " / ".join(f"{value:.3f}" for value in model["perplexity_ratio"].values())
    repaired = "yes" if choice.repair else "no"
    return (
        f"| {choice.form} | {choice.cache:.0%} | {choice.metric}, {choice.allocator} | {repaired} "
        f"| {model['cache_ratio']:.3f} | **{model['perplexity_ratio_calibrated']:.3f}** "
        f"| **{model['perplexity_ratio_unseen']:.3f}** | {kinds} | {model['kl']:.4f} | {model['top1_agreement']:.3f} "
        f"| {model['attention_parameters']:,} | {'' if predicted is None else f'{predicted:.4f}'} |"
    )


if __name__ == "__main__":
    main()
