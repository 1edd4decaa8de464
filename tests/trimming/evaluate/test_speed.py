"""Timing: what is timed, at which size, and that nothing is left changed."""

from __future__ import annotations

from typing import Any

import pytest
from evaluate_cases import dense, trimmed

from headcount.core.errors import HeadcountError
from headcount.core.seeds import torch_generator
from headcount.pretrained.families import read_spec
from headcount.trimming.evaluate import size as size_module
from headcount.trimming.evaluate.paths import filled_cache, ways_of
from headcount.trimming.evaluate.result import speeds
from headcount.trimming.evaluate.size import Size, Subject, cache_estimate_bytes, fitting_size
from headcount.trimming.evaluate.speed import PREFILL_ROUNDS, measure_speed

MIB = 2**20


def subject(name: str, model: Any) -> Subject:
    return Subject(name, model, read_spec(model))


def pair(family: str = "llama") -> list[Subject]:
    return [subject("dense", dense(family)), subject("half", trimmed(family))]


@pytest.mark.parametrize(("text", "size"), [("8x4096", (8, 4096)), (" 1 X 16 ", (1, 16))])
def test_parse(text: str, size: tuple[int, int]) -> None:
    assert Size.parse(text) == Size(*size)
    assert Size.parse(str(Size(*size))) == Size(*size)


@pytest.mark.parametrize(
    "text", ["", "8", "x4096", "8x", "8x4096x2", "-8x4096", "8x-1", "axb", "8.5x16", "0x16", "8x1"]
)
def test_bad_sizes_are_refused_by_name(text: str) -> None:
    with pytest.raises(HeadcountError) as error:
        Size.parse(text)
    assert repr(text) in str(error.value) and error.value.fix


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_all_models_are_timed_in_all_their_ways(family: str) -> None:
    subjects, told = pair(family), []
    record = measure_speed(subjects, Size(2, 40), rounds=3, prefill_tokens=16, progress=lambda *args: told.append(args))
    assert (record.decode, record.decode_asked, record.decode_note, record.prefill) == ("2x40", "2x40", None, "1x16")
    assert [[way.way for way in model.ways] for model in record.models] == [["stock", "growing", "own"], ["latent"]]
    for model in record.models:
        for way in model.ways:
            assert len(way.prefill_seconds) == PREFILL_ROUNDS
            assert len(way.decode_seconds) == len(way.attention_seconds) == 3
            assert min(way.prefill_seconds + way.decode_seconds + way.attention_seconds) > 0
    steps = [step for _, step, _ in told]
    assert steps == list(range(1, len(steps) + 1)) and told[-1] == ("speed", len(steps), len(steps))
    for timed_subject in subjects:
        assert timed_subject.model.config._attn_implementation == "sdpa"


def test_medians_become_rates() -> None:
    from headcount.trimming.evaluate.record import ModelTiming, TimingRecord, WayRecord

    way = WayRecord(
        way="latent", prefill_seconds=[9.0, 2.0, 4.0], decode_seconds=[0.5, 0.1, 8.0], attention_seconds=[1.0, 3.0, 2.0]
    )
    timing = TimingRecord(
        decode_asked="8x64",
        decode="4x64",
        decode_note="why",
        prefill="1x32",
        threads=1,
        memory_method="cuda",
        models=[ModelTiming(name="m", ways=[way], peak_memory_bytes=7)],
    )
    rates = speeds(timing, 0)["latent"]
    assert rates.prefill_tokens_per_s == 32 / 4
    assert rates.decode_tokens_per_s == 4 / 0.5
    assert rates.attention_step_seconds == 2.0


def test_too_little_memory_takes_a_smaller_size(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = pair()
    needed = sum(cache_estimate_bytes(s, w, Size(8, 100)) for s in subjects for w in ways_of(s.model) if w != "own")
    monkeypatch.setattr(size_module, "available_bytes", lambda device: 2 * needed)
    assert fitting_size(subjects, Size(8, 100)) == (Size(8, 100), None)
    monkeypatch.setattr(size_module, "available_bytes", lambda device: needed)  # a share of it is kept free
    taken, note = fitting_size(subjects, Size(8, 100))
    assert taken == Size(4, 100)
    assert note is not None and "8x100 does not fit" in note and "4x100 was taken" in note
    monkeypatch.setattr(size_module, "available_bytes", lambda device: needed // 8)
    assert fitting_size(subjects, Size(8, 100))[0] == Size(1, 50)
    monkeypatch.setattr(size_module, "available_bytes", lambda device: 1000)
    with pytest.raises(HeadcountError, match="no memory to measure decoding"):
        fitting_size(subjects, Size(8, 100))


def test_positions_bound_the_context() -> None:
    taken, note = fitting_size(pair("gpt2"), Size(2, 4096))
    assert taken == Size(2, 127)
    assert note is not None and "128 positions" in note
    assert measure_speed(pair("gpt2"), Size(1, 4096), rounds=1, prefill_tokens=8).decode == "1x127"


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("form", ["dense", "fast", "small"])
def test_the_estimate_covers_what_caches_hold(family: str, form: str) -> None:
    model = dense(family) if form == "dense" else trimmed(family, form)
    measured_subject = subject("m", model)
    for way in ways_of(model):
        cache = filled_cache(model, way, 2, 100, torch_generator(0, "test"))
        held = 0
        for layer in cache.layers:
            for side in (layer.keys, layer.values):
                windowed = getattr(layer, "sliding_window", None) is not None
                held += side.numel() * 4 if windowed else side.untyped_storage().nbytes()
        assert held <= cache_estimate_bytes(measured_subject, way, Size(2, 100)) < 8 * held
