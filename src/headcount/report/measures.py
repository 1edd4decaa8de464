"""The rows of a model comparison, and notes on how they were measured."""

from __future__ import annotations

from headcount.pretrained.text.texts import control_words
from headcount.report.view import GROUPS, Measure
from headcount.report.words import display_name, listed, size
from headcount.trimming.evaluate.record import EvaluationRecord, ModelRecord, TimingRecord
from headcount.trimming.evaluate.result import geometric_mean, speeds

MEMORY_NOISE_BYTES = 16 * 2**20
"""Peaks below this are not meaningful: a process reuses memory it freed before without increasing its peak."""


def measures(record: EvaluationRecord, timing: TimingRecord | None = None) -> tuple[Measure, ...]:
    """All rows: perplexity by kind, divergence from the first model, cache and parameters, and speed if timed."""
    return (*_quality(record), *_cost(record, timing), *_speed(timing))


def _quality(record: EvaluationRecord) -> list[Measure]:
    models = record.models
    rows = []
    for text in record.texts:
        values = tuple(model.text(text.kind).perplexity for model in models)
        label = f"{text.kind} ({text.group})"
        rows.append(Measure("Perplexity", label, f"{text.kind}\n{text.group}", "", values, "perplexity", "lower"))
    first = models[0]
    group_title = f"Against {display_name(first.name)}"
    for group in GROUPS:
        kinds = [text.kind for text in record.texts if text.group == group]
        if kinds:
            ratios = tuple(_mean_ratio(model, first, kinds) for model in models)
            label = f"Perplexity ratio, {group} kinds"
            unit = "geometric mean" if len(kinds) > 1 else kinds[0]
            rows.append(Measure(group_title, label, f"ratio\n{group}", unit, ratios, "ratio", "lower", compared=False))
    kl = tuple(model.mean("kl") for model in models)
    rows.append(
        Measure(
            group_title,
            "KL divergence of next-token distributions",
            "KL\nnats/token",
            "nats per token",
            kl,
            "nats",
            "lower",
            False,
        )
    )
    agreement = tuple(model.mean("top1_agreement") for model in models)
    rows.append(
        Measure(
            group_title,
            "Same likeliest next token",
            "top-1\nagreement",
            "share of tokens",
            agreement,
            "share",
            "higher",
            False,
        )
    )
    return rows


def _mean_ratio(model: ModelRecord, first: ModelRecord, kinds: list[str]) -> float | None:
    return geometric_mean(model.text(kind).perplexity / first.text(kind).perplexity for kind in kinds)


def _cost(record: EvaluationRecord, timing: TimingRecord | None) -> list[Measure]:
    models, title = record.models, "Cache, parameters, memory"
    cached = tuple(float(model.cache_bytes_per_token) for model in models)
    params = tuple(float(model.spec.attention_params) for model in models)
    rows = [
        Measure(
            title, "Cache, read off the live cache", "cache\nbytes/token", "bytes per token", cached, "count", "lower"
        ),
        Measure(title, "Attention parameters", "attention\nparameters", "", params, "count", "lower"),
    ]
    if timing:
        peaks = tuple(float(model.peak_memory_bytes) for model in timing.models)
        compared = min(peaks) >= MEMORY_NOISE_BYTES
        label = "Peak memory beyond the weights"
        rows.append(Measure(title, label, "peak\nmemory", "", peaks, "bytes", "lower", compared))
    return rows


def _speed(timing: TimingRecord | None) -> list[Measure]:
    if timing is None:
        return []
    ways = [list(speeds(timing, index).values()) for index in range(len(timing.models))]
    title = f"Speed at {setting(timing.decode)}"
    prefill = tuple(way[0].prefill_tokens_per_s for way in ways)
    decode = tuple(way[0].decode_tokens_per_s for way in ways)
    same = tuple(way[-1].decode_tokens_per_s for way in ways)
    step = tuple(1e3 * way[0].attention_step_seconds for way in ways)
    same_step = tuple(1e3 * way[-1].attention_step_seconds for way in ways)
    rate, ms = "tokens/s", "ms per step, all layers"
    return [
        Measure(title, "Decoding", "decode\ntokens/s", rate, decode, "rate", "higher"),
        Measure(title, "Decoding, dense models on our path too", "same path\ntokens/s", rate, same, "rate", "higher"),
        Measure(title, "Attention step", "attention\nms/step", ms, step, "nats", "lower"),
        Measure(
            title, "Attention step, dense models on our path too", "same path\nms/step", ms, same_step, "nats", "lower"
        ),
        Measure(title, f"Prefill of {_prompt(timing.prefill)}", "prefill\ntokens/s", rate, prefill, "rate", "higher"),
    ]


def setting(size: str) -> str:
    """Batch size and context in words.

    >>> setting("8x4096")
    'batch 8, 4,096 tokens of context'
    """
    batch, context = size.split("x")
    return f"batch {int(batch):,}, {int(context):,} tokens of context"


def _prompt(size: str) -> str:
    """Prompt size in words.

    >>> _prompt("1x512"), _prompt("4x512")
    ('512 tokens', '4 rows of 512 tokens')
    """
    batch, tokens = (int(part) for part in size.split("x"))
    return f"{tokens:,} tokens" if batch == 1 else f"{batch:,} rows of {tokens:,} tokens"


def notes(record: EvaluationRecord, timing: TimingRecord | None = None) -> tuple[str, ...]:
    """Notes on the measurement: windows and stride, rounds and threads."""
    shapes = sorted({(text.window, text.stride) for text in record.texts})
    windows = listed([f"windows of {window:,} tokens at a stride of {stride:,}" for window, stride in shapes])
    tokens = sorted({quality.tokens for model in record.models for quality in model.texts})
    counted = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
    lines = [
        f"Quality: {windows}, {counted} predicted tokens a kind of text. KL and agreement are averaged over all "
        "predicted tokens of all kinds."
    ]
    control = control_words({text.kind: text.control_tokens for text in record.texts})
    if control:
        lines.append(control)
    if timing is not None:
        rounds = len(timing.models[0].ways[0].decode_seconds)
        threads = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
        lines.append(
            f"Speed: median of {rounds} rounds on {threads}, all steps at the same context. Dense models run as people "
            "run them, with the cache and fused attention of transformers; on our path they run through the cache and "
            "attention code of the trimmed models, so that the ratio is what the smaller cache alone brings."
        )
        if timing.decode_note:
            lines.append(f"Asked for {timing.decode_asked}, measured at {timing.decode}: {timing.decode_note}")
        lines.append(
            f"Peak memory: to fill the cache and decode two steps ({timing.memory_method}). Below "
            f"{size(MEMORY_NOISE_BYTES)} it is noise, since memory that was freed before counts as free."
        )
    return tuple(lines)
