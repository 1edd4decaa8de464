"""Running an evaluation: check that the models are comparable, measure, resume, write the run folder.

Results of each kind of text, samples and timings are stored in the run folder when completed: a killed run resumes
after the last completed kind, and produces the same ``evaluation.json``.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.core.errors import CheckFailedError
from headcount.core.progress import Progress, silent
from headcount.core.store import digest, open_run_folder, read_json, write_json
from headcount.pretrained.families import family_of, read_spec
from headcount.pretrained.opening.fingerprint import fingerprint
from headcount.pretrained.opening.loading import OpenModel
from headcount.pretrained.runtimes.origin import origin_of
from headcount.trimming.evaluate.cache import measure_cache
from headcount.trimming.evaluate.checks import check_ids, check_models
from headcount.trimming.evaluate.kinds import Texts, Windows, cut, default_texts, regrouped
from headcount.trimming.evaluate.quality import Quality, compare
from headcount.trimming.evaluate.record import (
    RECORD,
    TIMING,
    EvaluationRecord,
    ModelRecord,
    QualityRecord,
    SampleRecord,
    TextRecord,
    TimingRecord,
)
from headcount.trimming.evaluate.result import Evaluation
from headcount.trimming.evaluate.sample import NEW_TOKENS, PROMPT, greedy_sample
from headcount.trimming.evaluate.size import Size, Subject
from headcount.trimming.evaluate.speed import measure_speed

Given = OpenModel | tuple[str, PreTrainedModel, PreTrainedTokenizerBase | None]
Schema = TypeVar("Schema", bound=BaseModel)

WINDOWS, CONTEXT, DECODE = 12, 512, "8x4096"


def evaluate(
    models: Sequence[Given],
    *,
    texts: Texts | None = None,
    windows: int = WINDOWS,
    context: int = CONTEXT,
    decode: str | None = DECODE,
    sample_prompt: str | None = PROMPT,
    sample_tokens: int = NEW_TOKENS,
    seed: int = 0,
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Compare models with the first one: quality on several kinds of text, cache, speed, memory, a sample.

    Args:
        models: opened models, or (name, model, tokenizer); the others are compared with the first.
        texts: by kind, documents or windows of token ids; ``None``: the built-in kinds (``default_texts``).
        windows: number of windows of each kind to cut from documents.
        context: tokens per window.
        decode: batch and context for timing, such as ``8x4096``; ``None``: no timing.
        sample_prompt: prompt of the greedy sample; ``None``: no sample.
        sample_tokens: maximum length of the sample.
        seed: random seed for the selection of windows and the tokens used for timing.
        out: run folder; ``None`` keeps everything in memory.
        overwrite: replace a run folder that was made from other inputs.
        progress: progress callback.

    Returns:
        The ``Evaluation``; with ``out`` it is also on disk.

    Raises:
        HeadcountError: models with different vocabularies, encoders, models in training mode, text too short.
        CheckFailedError: a cache that does not match the spec, a model whose loss is not finite.

    Example:
        >>> found = evaluate([open_model("demo"), ("half", trimmed, None)], decode=None)     # doctest: +SKIP
        >>> found.to_pandas()                                                                # doctest: +SKIP
    """
    opened = [_opened(entry) for entry in models]
    check_models(opened)
    first = opened[0]
    size = None if decode is None else Size.parse(decode)
    origins = [origin_of(model.model.config) for model in opened]
    kinds = cut(default_texts() if texts is None else texts, first.tokenizer, windows, context, seed)
    kinds = regrouped(kinds, [origin for origin in origins if origin])
    for text in kinds:
        check_ids(opened, text)
    inputs: dict[str, Any] = {
        "models": {model.name: model.fingerprint for model in opened},
        "dtypes": [str(model.model.dtype) for model in opened],
        "texts": {text.kind: digest(text.ids.numpy().tobytes()) for text in kinds},
        "windows": {text.kind: list(text.ids.shape) for text in kinds},
        "decode": decode,
        "prompt": [sample_prompt, sample_tokens],
        "seed": seed,
    }
    folder = None
    if out is not None:
        folder = open_run_folder(Path(out), "evaluation", inputs, overwrite)
        if (folder / RECORD).is_file():
            return Evaluation.open(folder)
    caches = [measure_cache(model.model, model.spec, model.name) for model in opened]
    work = None if folder is None else folder / "work"
    qualities = _qualities(opened, kinds, work, progress)
    samples = [_sample(model, first, sample_prompt, sample_tokens, work, index) for index, model in enumerate(opened)]
    timing = None
    if size is not None:
        subjects = [Subject(model.name, model.model, model.spec) for model in opened]
        timing = _load_or_make(
            None if folder is None else folder / TIMING,
            TimingRecord,
            lambda: measure_speed(subjects, size, seed=seed, progress=progress),
        )
    record = EvaluationRecord(
        seed=seed,
        texts=[
            TextRecord(
                kind=text.kind,
                group=text.group,
                windows=text.ids.shape[0],
                window=text.ids.shape[1],
                stride=text.stride,
                digest=inputs["texts"][text.kind],
                control_tokens=text.control_tokens,
            )
            for text in kinds
        ],
        prompt=sample_prompt,
        models=[
            ModelRecord(
                name=model.name,
                fingerprint=model.fingerprint,
                dtype=str(model.model.dtype).removeprefix("torch."),
                device=str(model.model.device),
                spec=model.spec,
                cache_bytes_per_token=caches[index].bytes_per_token,
                texts=[qualities[text.kind][index] for text in kinds],
                sample=samples[index],
                origin=origins[index],
            )
            for index, model in enumerate(opened)
        ],
    )
    if folder is not None:
        write_json(folder / RECORD, record)
        shutil.rmtree(folder / "work", ignore_errors=True)
    return Evaluation(record, timing, folder)


def _opened(entry: Given) -> OpenModel:
    if isinstance(entry, OpenModel):
        return entry
    name, model, tokenizer = entry
    family_of(model.config)  # Reject an unknown family before using the model in any other way.
    return OpenModel(name, model, tokenizer, read_spec(model), fingerprint(model))


def _load_or_make(path: Path | None, schema: type[Schema], make: Callable[[], Schema]) -> Schema:
    """Load the result of an earlier run from ``path``, or make it and store it there."""
    if path is not None and path.is_file():
        return read_json(path, schema)
    made = make()
    if path is not None:
        write_json(path, made)
    return made


def _qualities(
    opened: Sequence[OpenModel], kinds: Sequence[Windows], work: Path | None, progress: Progress
) -> dict[str, list[QualityRecord]]:
    """The quality of each model, by kind; only results missing from earlier runs are computed."""
    total, done = sum(len(text.ids) for text in kinds), 0
    by_kind: dict[str, list[QualityRecord]] = {}
    for number, text in enumerate(kinds):
        paths = [work / f"quality-{number:03d}-{index:03d}.json" if work else None for index in range(len(opened))]
        known = {i: read_json(path, QualityRecord) for i, path in enumerate(paths) if path and path.is_file()}
        # If any result is missing, the first model runs too: its logits are the reference.
        missing = set(range(len(opened))) - known.keys()
        run = sorted({0, *missing}) if missing else []
        if run:
            models = [opened[index].model for index in run]
            for index, quality in zip(
                run, compare(models, text.ids, progress=_behind(progress, done, total)), strict=True
            ):
                known[index] = _quality_record(opened[index].name, text.kind, quality)
                path = paths[index]
                if path is not None:
                    write_json(path, known[index])
        by_kind[text.kind] = [known[index] for index in range(len(opened))]
        done += len(text.ids)
    progress("quality", done, total)
    return by_kind


def _behind(progress: Progress, before: int, total: int) -> Progress:
    """Report progress within one kind as progress over all kinds."""

    def tell(stage: str, done: int, _of_this_kind: int) -> None:
        progress(stage, before + done, total)

    return cast(Progress, tell)


def _quality_record(name: str, kind: str, quality: Quality) -> QualityRecord:
    if not (math.isfinite(quality.perplexity) and math.isfinite(quality.kl)):
        raise CheckFailedError(
            f"{name} has a perplexity of {quality.perplexity} and a divergence of {quality.kl} on {kind}"
        )
    return QualityRecord(kind=kind, **vars(quality))


def _sample(
    opened: OpenModel, first: OpenModel, prompt: str | None, new_tokens: int, work: Path | None, index: int
) -> str | None:
    tokenizer = opened.tokenizer or first.tokenizer
    if prompt is None or tokenizer is None:
        return None
    return _load_or_make(
        work / f"sample-{index:03d}.json" if work else None,
        SampleRecord,
        lambda: SampleRecord(text=greedy_sample(opened.model, tokenizer, prompt, new_tokens)),
    ).text
