"""Prefill and decode tokens per second, and time of the attention step, of several models side by side.

Models alternate (A B A B ...), so that drift on a noisy machine affects them equally; results are medians over
rounds after a warm-up. Every step is timed at the same context: caches are filled with random numbers, and the token
that a step appends is removed again (see ``paths``). A dense model is measured in three ways, a trimmed one in one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from headcount.core.memory import method_for, peak_memory
from headcount.core.progress import Progress, silent
from headcount.core.seeds import torch_generator
from headcount.trimming.evaluate.paths import (
    Way,
    attention_for,
    empty_cache,
    filled_cache,
    step_back,
    watched_attention,
    ways_of,
)
from headcount.trimming.evaluate.record import ModelTiming, TimingRecord, WayRecord
from headcount.trimming.evaluate.size import Size, Subject, fitting_size

ROUNDS = 7
WARM_UP = 2
PREFILL_ROUNDS = 3
PREFILL_TOKENS = 512
"""Length of the prompt (one row) for timing prefill: a full 8x4096 would take minutes on a CPU."""


@dataclass
class _Runner:
    """One model run in one way, with its cache and timings."""

    subject: Subject
    way: Way
    tokens: torch.Tensor
    cache: DynamicCache | None = None
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    attention: list[float] = field(default_factory=list)

    def run(self, tokens: torch.Tensor, cache: DynamicCache) -> None:
        out: Any = self.subject.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        out.logits[:, -1].argmax(-1)

    def step(self) -> None:
        """Decode one token per row, and remove it from the cache."""
        assert self.cache is not None
        self.run(self.tokens, self.cache)
        step_back(self.cache)

    def timed_step(self) -> float:
        assert self.cache is not None
        seconds = self.timed(lambda: self.run(self.tokens, self.cache))  # type: ignore[arg-type]
        step_back(self.cache)
        return seconds

    def timed_attention(self) -> float:
        """Seconds spent in the attention modules of all layers during one step."""
        total, began = 0.0, 0.0

        def before() -> None:
            nonlocal began
            self.synchronize()
            began = time.perf_counter()

        def after() -> None:
            nonlocal total
            self.synchronize()
            total += time.perf_counter() - began

        with watched_attention(self.subject.model, before, after):
            self.step()
        return total

    def timed_prefill(self, prompt: torch.Tensor) -> float:
        cache = empty_cache(self.subject.model, self.way)
        return self.timed(lambda: self.run(prompt.to(self.subject.model.device), cache))

    def timed(self, call: Callable[[], None]) -> float:
        self.synchronize()
        began = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - began

    def synchronize(self) -> None:
        if self.tokens.device.type == "cuda":
            torch.cuda.synchronize(self.tokens.device)


@torch.no_grad()
def measure_speed(
    subjects: Sequence[Subject],
    asked: Size,
    *,
    seed: int = 0,
    rounds: int = ROUNDS,
    prefill_tokens: int = PREFILL_TOKENS,
    progress: Progress = silent,
) -> TimingRecord:
    """Time all models at one batch and context.

    Args:
        subjects: the models; each runs on its own device.
        asked: batch and context; reduced, with a note in the record, if the caches would not fit.
        seed: random seed for the prompt and the cache contents.
        rounds: number of timed steps for each model and way.
        prefill_tokens: length of the prompt (one row) for prefill.
        progress: progress callback, under the stage ``speed``.

    Raises:
        HeadcountError: there is not enough memory for any size.
    """
    size, note = fitting_size(subjects, asked)
    rows = min(int(s.model.get_input_embeddings().weight.shape[0]) for s in subjects)  # type: ignore[index]
    ids = torch.randint(rows, (size.batch, 1), generator=torch_generator(seed, "decode"))
    prompt = torch.randint(rows, (1, min(prefill_tokens, size.context)), generator=torch_generator(seed, "prefill"))
    runners, peaks = [], []
    total = len([way for s in subjects for way in ways_of(s.model)]) * (2 + PREFILL_ROUNDS + rounds)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress("speed", done, total)

    for subject in subjects:
        device = subject.model.device
        for index, way in enumerate(ways_of(subject.model)):
            runner = _Runner(subject, way, ids.to(device))
            runners.append(runner)
            if way == "own":  # Shares the cache with ``growing``: a step does not change it.
                runner.cache = runners[-2].cache
            with attention_for(subject.model, way):
                if index == 0:
                    peaks.append(peak_memory(lambda r=runner: _prepare(r, size, seed), device)[1])  # type: ignore[misc]
                else:
                    _prepare(runner, size, seed)
            tick()
    for turn in range(PREFILL_ROUNDS + 1):
        for runner in runners:
            with attention_for(runner.subject.model, runner.way):
                seconds = runner.timed_prefill(prompt)
            if turn:
                runner.prefill.append(seconds)
            tick()
    for _ in range(rounds):
        for runner in runners:
            with attention_for(runner.subject.model, runner.way):
                runner.decode.append(runner.timed_step())
                runner.attention.append(runner.timed_attention())
            tick()
    return TimingRecord(
        decode_asked=str(asked),
        decode=str(size),
        decode_note=note,
        prefill=f"{prompt.shape[0]}x{prompt.shape[1]}",
        threads=torch.get_num_threads(),
        memory_method=method_for(subjects[0].model.device),
        models=[
            ModelTiming(
                name=subject.name,
                ways=[
                    WayRecord(
                        way=runner.way,
                        prefill_seconds=runner.prefill,
                        decode_seconds=runner.decode,
                        attention_seconds=runner.attention,
                    )
                    for runner in runners
                    if runner.subject is subject
                ],
                peak_memory_bytes=peak,
            )
            for subject, peak in zip(subjects, peaks, strict=True)
        ],
    )


def _prepare(runner: _Runner, size: Size, seed: int) -> None:
    """Fill the cache unless it exists, and warm up."""
    model = runner.subject.model
    if runner.cache is None:
        generator = torch_generator(seed, "cache", device=model.device)
        runner.cache = filled_cache(model, runner.way, size.batch, size.context, generator)
    for _ in range(WARM_UP):
        runner.step()
