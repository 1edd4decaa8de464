"""A completed evaluation: ratios to the first model, tables, and the JSON output of the command."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.core.errors import HeadcountError
from headcount.core.extras import optional_imports
from headcount.core.store import read_json
from headcount.trimming.evaluate.record import RECORD, TIMING, EvaluationRecord, Group, TimingRecord

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Speed:
    """Medians of one model in one way."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    attention_step_seconds: float


def speeds(timing: TimingRecord, model: int) -> dict[str, Speed]:
    """Speeds by way; the first is the default one."""
    prefill_tokens = math.prod(map(int, timing.prefill.split("x")))
    batch = int(timing.decode.split("x")[0])
    return {
        way.way: Speed(
            prefill_tokens / statistics.median(way.prefill_seconds),
            batch / statistics.median(way.decode_seconds),
            statistics.median(way.attention_seconds),
        )
        for way in timing.models[model].ways
    }


def geometric_mean(ratios: Iterable[float]) -> float | None:
    """The geometric mean; ``None`` for no ratios.

    >>> geometric_mean([1.0, 4.0]), geometric_mean([])
    (2.0, None)
    """
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else None


@dataclass(frozen=True)
class Evaluation:
    """A completed evaluation; all comparisons are with the first model."""

    record: EvaluationRecord
    timing: TimingRecord | None = None
    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path | str) -> Evaluation:
        """Read an evaluation folder; the error names any missing or invalid file."""
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise HeadcountError(f"{folder} holds no finished evaluation", fix="run headcount evaluate first")
        timing = read_json(folder / TIMING, TimingRecord) if (folder / TIMING).is_file() else None
        return cls(read_json(folder / RECORD, EvaluationRecord), timing, folder)

    def perplexity_ratios(self, model: int, group: Group | None = None) -> dict[str, float]:
        """Perplexity divided by that of the first model, by kind of text."""
        first, compared = self.record.models[0], self.record.models[model]
        return {
            text.kind: compared.text(text.kind).perplexity / first.text(text.kind).perplexity
            for text in self.record.texts
            if group is None or text.group == group
        }

    def to_pandas(self) -> pd.DataFrame:
        """The qualities, one row per model and kind of text."""
        with optional_imports():
            import pandas as pd

        rows = [
            {"model": model.name, **model.text(text.kind).model_dump(), "perplexity_ratio": ratios[text.kind]}
            for index, model in enumerate(self.record.models)
            for ratios in (self.perplexity_ratios(index),)
            for text in self.record.texts
        ]
        return pd.DataFrame(rows).set_index(["model", "kind"])

    def table(self) -> pd.DataFrame:
        """The scalar entries of ``summary_json``, one row per model."""
        with optional_imports():
            import pandas as pd

        rows = []
        for row in summary_json(self)["models"]:
            for kind, value in row["perplexity"].items():
                row[f"perplexity {kind}"] = value
            rows.append({key: value for key, value in row.items() if not isinstance(value, dict)})
        return pd.DataFrame(rows).drop(columns="sample").set_index("name")

    def _repr_html_(self) -> str:
        return str(self.table().T.to_html(float_format="{:,.4g}".format))


def _rate(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def summary_json(evaluation: Evaluation) -> dict[str, Any]:
    """The output of ``headcount evaluate --json``. Ratios and speedups are relative to the first model.

    ``decode_speedup`` and ``attention_speedup`` compare each model in its default way (dense: transformers' cache and
    attention); the ``_same_path`` variants compare all models with headcount's cache and attention.
    """
    record, timing = evaluation.record, evaluation.timing
    models = []
    of_first = speeds(timing, 0) if timing else {}
    for index, model in enumerate(record.models):
        ratios = evaluation.perplexity_ratios(index)
        row: dict[str, Any] = {
            "name": model.name,
            "perplexity": {text.kind: text.perplexity for text in model.texts},
            "perplexity_ratio": ratios,
        }
        for group in ("calibrated", "unseen", "other"):
            row[f"perplexity_ratio_{group}"] = geometric_mean(evaluation.perplexity_ratios(index, group).values())
        row |= {
            "kl": model.mean("kl"),
            "kl_by_kind": {text.kind: text.kl for text in model.texts},
            "top1_agreement": model.mean("top1_agreement"),
            "top1_agreement_by_kind": {text.kind: text.top1_agreement for text in model.texts},
            "cache_bytes_per_token": model.cache_bytes_per_token,
            "cache_ratio": model.cache_bytes_per_token / record.models[0].cache_bytes_per_token,
            "attention_parameters": model.spec.attention_params,
            "dtype": model.dtype,
            "device": model.device,
        }
        row |= _speed_json(speeds(timing, index) if timing else {}, of_first)
        row["peak_memory_bytes"] = timing.models[index].peak_memory_bytes if timing else None
        row["sample"] = model.sample
        models.append(row)
    windows, strides = {text.window for text in record.texts}, {text.stride for text in record.texts}
    return {
        "models": models,
        "window": windows.pop() if len(windows) == 1 else {text.kind: text.window for text in record.texts},
        "stride": strides.pop() if len(strides) == 1 else {text.kind: text.stride for text in record.texts},
        "windows": {text.kind: text.windows for text in record.texts},
        "texts": {text.kind: text.group for text in record.texts},
        "control_tokens": {text.kind: text.control_tokens for text in record.texts},
        "prompt": record.prompt,
        "seed": record.seed,
        "decode": timing.decode if timing else None,
        "decode_asked": timing.decode_asked if timing else None,
        "decode_note": timing.decode_note if timing else None,
        "prefill": timing.prefill if timing else None,
        "threads": timing.threads if timing else None,
        "memory_method": timing.memory_method if timing else None,
        "folder": str(evaluation.folder) if evaluation.folder else None,
    }


def _speed_json(by_way: dict[str, Speed], first: dict[str, Speed]) -> dict[str, Any]:
    """The speed entries of one model; the first way is the default one, the last way is headcount's path."""

    def get(ways: dict[str, Speed], which: int, what: str) -> float | None:
        return float(getattr(list(ways.values())[which], what)) if ways else None

    row: dict[str, Any] = {
        what: get(by_way, 0, what) for what in ("prefill_tokens_per_s", "decode_tokens_per_s", "attention_step_seconds")
    }
    for suffix, which in (("", 0), ("_same_path", -1)):
        for name, what in (("prefill", "prefill_tokens_per_s"), ("decode", "decode_tokens_per_s")):
            row[f"{name}_speedup{suffix}"] = _rate(get(by_way, which, what), get(first, which, what))
        step = "attention_step_seconds"
        row[f"attention_speedup{suffix}"] = _rate(get(first, which, step), get(by_way, which, step))
    row["ways"] = {way: dict(vars(speed)) for way, speed in by_way.items()}
    return row
