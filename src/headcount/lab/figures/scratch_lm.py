"""Figure: language models trained from scratch, planned versus uniform and OpenELM, at equal parameters and cache.

Settings: *parameters*, all models have the same number of parameters, regardless of their cache; *cache*, the same
parameters and at most the uniform model's cache; *half*, at most half of it; *start*, the first setting with
transformers' plain initial weights, in which the layers' contributions dominate the embedding, to measure the effect on
the comparison. For each seed, all models see the same batches, so schemes are compared by paired differences. The
source paper's rule is also trained, alone and combined with the planner's, as well as ``uniform-heads``, to separate
the effect of early heads from that of more heads.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic

from headcount.attention.bench.measure import thread_count
from headcount.core import store
from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, PINK, Canvas, canvas
from headcount.lab.figures.base import Data, Figure, Inputs, Scale, Training, mean_and_half_width
from headcount.lab.specs.text import TextSpec
from headcount.lab.sweep.runner import Row
from headcount.shapes.decoder import build_decoder
from headcount.trimming.evaluate.size import Size, Subject
from headcount.trimming.evaluate.speed import measure_speed

NAME = "scratch-lm"
SETTINGS = {
    "parameters": "equal parameters",
    "cache": "equal parameters and cache",
    "half": "equal parameters and half the cache",
    "start": "equal parameters, plain start",
}
SHARES = {"cache": 1.0, "half": 0.5}
"""Settings that limit the cache to this share of the uniform model's."""
BASELINES = ("uniform", "openelm")


class Arm(NamedTuple):
    """Configuration shared by all seeds: scheme, allowed share of the uniform model's cache, initial weights."""

    model: str
    cache_share: float | None = None
    start: Literal["scaled", "plain"] = "scaled"

    def __str__(self) -> str:
        return self.model + ("" if self.cache_share is None else f" at {self.cache_share:g} of the cache")


UNIFORM = Arm("uniform")
MAIN = (UNIFORM, Arm("planned"), Arm("planned", 1.0), Arm("openelm"), Arm("openelm", 1.0))
SEEDS = {
    **dict.fromkeys((*MAIN, Arm("planned-heads"), Arm("uniform-heads"), Arm("planned-both")), 3),
    **dict.fromkeys((Arm("uniform", 0.5), Arm("planned", 0.5)), 3),
    **dict.fromkeys((Arm(model, start="plain") for model in BASELINES), 3),
    **dict.fromkeys((UNIFORM, Arm("planned")), 4),
}
"""Number of seeds of every arm at full scale; the main comparison has the most. ``planned-heads`` and
``uniform-heads`` have the uniform model's cache without a limit."""
COLOURS = {"openelm": ORANGE, "planned": BLUE, "planned-heads": GREEN, "planned-both": PINK}

SPEED = "speed.json"
DECODE = {"full": Size(8, 1024), "quick": Size(2, 64)}
ROUNDS = 15


def plan(scale: Scale) -> list[TextSpec]:
    """The same text, steps and budget for all models; ``full`` adds individual rules, controls and more seeds."""
    if scale == "quick":
        fixed: dict[str, Any] = {
            "layers": 4, "hidden": 64, "context": 64, "vocab": 512, "parameters": 250_000, "kinds": ("prose", "code"),
            "steps": 150, "batch": 8, "learning_rate": 3e-3, "warmup": 30, "evaluate_every": 75,
        }  # fmt: skip
        seeds = dict.fromkeys(MAIN, 2)
    else:
        fixed = {
            "layers": 6, "hidden": 192, "context": 256, "vocab": 1024, "parameters": 2_000_000, "autocast": True,
            "steps": 900, "batch": 8, "learning_rate": 3e-3, "warmup": 100, "evaluate_every": 150,
        }  # fmt: skip
        seeds = SEEDS
    return [
        TextSpec(model=arm.model, cache_share=arm.cache_share, start=arm.start, seed=seed, **fixed)
        for seed in range(max(seeds.values()))
        for arm, count in seeds.items()
        if seed < count
    ]


class _Speed(pydantic.BaseModel):
    """Seconds of one decoding step by model and way, in the interleaved order of measurement."""

    batch: int
    context: int
    threads: int
    seconds: dict[str, dict[str, list[float]]]


def data(inputs: Inputs) -> Data:
    """One row per setting and scheme: size, cache, losses, decoding speed, and paired differences from the setting's
    baselines and from the uniform model of the first setting (``minus_whole``)."""
    runs: dict[Arm, dict[int, Row]] = {}
    for row in inputs.runs:
        spec = TextSpec.checked(row.spec)
        runs.setdefault(Arm(spec.model, spec.cache_share, spec.start), {})[spec.seed] = row
    specs = {arm: TextSpec.checked(next(iter(by_seed.values())).spec) for arm, by_seed in runs.items()}
    speed = _speed(specs, inputs.work)
    entries: Data = []
    for setting in SETTINGS:
        members = {arm.model: arm for arm in runs if _belongs(arm, specs, setting)}
        for model, arm in members.items():
            design, seed_rows = specs[arm].design, runs[arm]
            losses = {seed: _score(row, "loss") for seed, row in seed_rows.items()}
            mean, half = mean_and_half_width(list(losses.values()))
            entry: dict[str, Any] = {
                "setting": setting, "scheme": model, "seeds": len(seed_rows), "parameters": design.params,
                "cache_bytes_per_token": design.cache_bytes_per_token(),
                "trained_tokens": specs[arm].steps * specs[arm].batch * specs[arm].context,
                "loss": mean, "loss_half_width": half,
                "bits_per_byte": statistics.fmean(_score(row, "bits_per_byte") for row in seed_rows.values()),
                "losses": " ".join(f"{loss:.4f}" for _, loss in sorted(losses.items())),
            }  # fmt: skip
            for name, other in {**{base: members.get(base) for base in BASELINES}, "whole": UNIFORM}.items():
                against = {} if other in (None, arm) else runs.get(other, {})
                paired = [losses[seed] - _score(against[seed], "loss") for seed in sorted(losses) if seed in against]
                difference = mean_and_half_width(paired) if paired else (None, None)
                entry |= dict(zip((f"minus_{name}", f"minus_{name}_half_width"), difference, strict=True))
            entries.append(entry | _decoding(speed, str(arm), str(members.get("uniform", arm))))
    return entries


def _belongs(arm: Arm, specs: dict[Arm, TextSpec], setting: str) -> bool:
    """Whether the arm belongs to the setting.

    A model whose unrestricted cache is within the limit, and less than 1% below it, needs no second run.
    """
    if setting == "start" or arm.start == "plain":
        return setting == "start" and arm.start == "plain"
    share = SHARES.get(setting)
    if arm.cache_share is not None or share is None:
        return arm.cache_share == share
    if UNIFORM not in specs or arm._replace(cache_share=share) in specs:
        return False
    limit = share * specs[UNIFORM].design.cache_bytes_per_token()
    return 0.99 * limit < specs[arm].design.cache_bytes_per_token() <= limit


def _score(row: Row, name: str) -> float:
    assert row.result is not None, "rows with errors are left out before"
    return float(row.result["scores"]["text"][name])


def _speed(specs: dict[Arm, TextSpec], folder: Path) -> _Speed:
    """Interleaved decoding times of all models; measured once and saved, so that redrawing gives the same figure."""
    designs = {str(arm): spec.design for arm, spec in specs.items()}
    size = DECODE["quick" if next(iter(specs.values())).hidden < 128 else "full"]
    if (folder / SPEED).is_file():
        stored = store.read_json(folder / SPEED, _Speed)
        if set(stored.seconds) == set(designs):
            return stored
    subjects = [
        Subject(name, build_decoder(design).eval().requires_grad_(False), design.attention)
        for name, design in designs.items()
    ]
    with thread_count(1):
        record = measure_speed(subjects, size, rounds=ROUNDS, prefill_tokens=size.context)
    speed = _Speed(
        batch=size.batch,
        context=size.context,
        threads=record.threads,
        seconds={model.name: {way.way: way.decode_seconds for way in model.ways} for model in record.models},
    )
    store.write_json(folder / SPEED, speed)
    return speed


def _decoding(speed: _Speed, name: str, uniform: str) -> dict[str, Any]:
    """Tokens per second (medians), and the median over rounds of the uniform model's time divided by this model's."""
    entry: dict[str, Any] = {"decode": f"{speed.batch}x{speed.context}", "decode_threads": speed.threads}
    for way in ("stock", "own"):
        seconds, base = speed.seconds[name][way], speed.seconds[uniform][way]
        entry[f"decode_tokens_per_s_{way}"] = round(speed.batch / statistics.median(seconds), 1)
        entry[f"decode_speedup_{way}"] = round(statistics.median(b / o for b, o in zip(base, seconds, strict=True)), 3)
    return entry


def decided(mean: float | None, half: float | None) -> str:
    """What a paired difference in loss and its 95% interval imply about the first model.

    >>> decided(-0.02, 0.01), decided(0.02, 0.01), decided(-0.02, 0.03), decided(-0.02, math.nan)
    ('better', 'worse', 'not decided', 'not decided')
    """
    if mean is None or half is None or math.isnan(half) or abs(mean) <= half:
        return "not decided"
    return "better" if mean < 0 else "worse"


def verdict(data: Data) -> str:
    """Planned versus both baselines in each setting, then the individual rules."""
    parts = []
    for setting in ("parameters", *SHARES):
        row = next((line for line in data if line["setting"] == setting and line["scheme"] == "planned"), None)
        if row is None:
            continue
        said = " and ".join(_compared(row, baseline) for baseline in BASELINES if row[f"minus_{baseline}"] is not None)
        uniform = next((line for line in data if line["setting"] == setting and line["scheme"] == "uniform"), row)
        share = row["cache_bytes_per_token"] / uniform["cache_bytes_per_token"]
        sizes = f"{row['parameters']:,}, {row['trained_tokens']:,} tokens, {row['seeds']} seeds"
        parts.append(
            f"At {SETTINGS[setting]} ({sizes}) the planned model is {said}; its cache is {share:.2f} of uniform's and "
            f"it decodes {row['decode_speedup_own']:.2f} times as fast"
        )
    by_place = {(row["setting"], row["scheme"]): row for row in data}
    for place, title in (("parameters", "Baselines"), ("start", "From plain initial weights")):
        row = by_place.get((place, "openelm"))
        if row is not None and row["minus_uniform"] is not None:
            parts.append(f"{title}: openelm is {_compared(row, 'uniform')}")
    half = by_place.get(("half", "uniform"))
    if half is not None and half["minus_whole"] is not None:
        parts.append(f"Half the cache, uniform: {_compared(half, 'whole')}")
    rules = [row for row in data if row["setting"] == "parameters" and "-" in row["scheme"]]
    if rules:
        parts.append("More heads: " + "; ".join(f"{row['scheme']} is {_compared(row, 'uniform')}" for row in rules))
    plain, scaled = (by_place.get((place, "uniform")) for place in ("start", "parameters"))
    if plain is not None and scaled is not None:
        parts.append(
            f"Uniform from plain initial weights ends at {plain['loss']:.3f}, from scaled ones at {scaled['loss']:.3f}"
        )
    return ". ".join(parts) + "."


def _compared(row: dict[str, Any], baseline: str) -> str:
    mean, half = row[f"minus_{baseline}"], row[f"minus_{baseline}_half_width"]
    word = decided(mean, half)
    name = "uniform with the whole cache" if baseline == "whole" else baseline
    shown = f"{mean:+.4f} +- {half:.4f} nats a token against {name}"
    return f"{word} ({shown})"


def draw(data: Data) -> Canvas:
    """Loss relative to the uniform model of the first setting, cache, and decoding speed; one line per scheme."""
    settings = [setting for setting in SETTINGS if any(row["setting"] == setting for row in data)]
    counts = [sum(row["setting"] == setting for row in data) for setting in settings]
    figure = canvas(9.6, 1.6 + 0.42 * sum(counts))
    panels = figure.subplots(len(settings), 3, sharex="col", squeeze=False, height_ratios=counts)
    for setting, (left, middle, right) in zip(settings, panels, strict=True):
        rows = [row for row in data if row["setting"] == setting]
        places = range(len(rows))
        colours = [COLOURS.get(row["scheme"], GREY) for row in rows]
        for place, row, colour in zip(places, rows, colours, strict=True):
            mean, half = row["minus_whole"], row["minus_whole_half_width"]
            if mean is not None:
                width = 0.0 if half is None or math.isnan(half) else half
                left.errorbar([mean], [place], xerr=[width], color=colour, marker="o", capsize=3)
            elif row["scheme"] == "uniform":
                left.plot([0], [place], color=colour, marker="o")
        left.axvline(0, color=GREY, linewidth=1)
        left.set_yticks(list(places), [row["scheme"] for row in rows])
        left.set_ylim(len(rows) - 0.5, -0.5)
        cache = [row["cache_bytes_per_token"] / 1024 for row in rows]
        speed = [row["decode_tokens_per_s_own"] for row in rows]
        for axes, values in ((middle, cache), (right, speed)):
            axes.barh(list(places), values, color=colours, height=0.6)
            axes.set_yticks([])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            for place, value in zip(places, values, strict=True):
                axes.annotate(
                    f"{value:,.1f}" if value < 100 else f"{value:,.0f}", (value, place), xytext=(3, 0),
                    textcoords="offset points", va="center", fontsize=8,
                )  # fmt: skip
            axes.margins(x=0.2)
        left.set_title(f"{SETTINGS[setting]} ({rows[0]['parameters']:,})", fontsize=10, loc="left")
    first = data[0]
    panels[-1][0].set_xlabel("held-out loss minus the first line's,\nnats a token (mean over seeds, 95% interval)")
    panels[-1][1].set_xlabel("cache, KiB a token (float32)")
    panels[-1][2].set_xlabel(f"decoding, tokens a second\n(batch x context {first['decode']}, CPU)")
    return figure


FIGURE = Figure(
    name=NAME, title="Language models from scratch", data=data, verdict=verdict, draw=draw, training=Training(plan)
)
