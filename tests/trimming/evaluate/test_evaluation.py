"""A whole evaluation: records, resuming, refusals, and the JSON that others read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from evaluate_cases import dense, tiny_tokenizer, trimmed, windows

import headcount
import headcount.trimming.evaluate.run as run
from headcount.core.errors import CheckFailedError, HeadcountError
from headcount.pretrained.families import read_spec
from headcount.pretrained.opening.loading import OpenModel, fingerprint
from headcount.trimming.evaluate.quality import compare
from headcount.trimming.evaluate.record import RECORD, TIMING
from headcount.trimming.evaluate.result import Evaluation, geometric_mean, summary_json
from headcount.trimming.evaluate.run import evaluate

TEXTS = {
    "prose": windows(3, 12, 1),
    "code": windows(3, 12, 2),
    "licences": windows(2, 12, 3),
    "mail": windows(2, 10, 4),
}


def models(family: str = "llama") -> list[Any]:
    tokenizer = tiny_tokenizer()
    return [("dense", dense(family), tokenizer), ("half", trimmed(family), tokenizer)]


def quick(subjects: list[Any] | None = None, **options: Any) -> Evaluation:
    options = {"texts": TEXTS, "decode": None, "sample_prompt": "w5 w7 w9", "sample_tokens": 6} | options
    return evaluate(models() if subjects is None else subjects, **options)


def test_summary_has_the_promised_keys() -> None:
    summary = summary_json(quick(decode="2x30"))
    first, half = summary["models"]
    assert [first["name"], half["name"]] == ["dense", "half"]
    assert {
        *("name", "perplexity", "perplexity_ratio", "perplexity_ratio_calibrated", "perplexity_ratio_unseen", "kl"),
        *("top1_agreement", "cache_bytes_per_token", "cache_ratio", "prefill_tokens_per_s", "decode_tokens_per_s"),
        *("attention_step_seconds", "decode_speedup", "decode_speedup_same_path", "attention_speedup"),
        *("peak_memory_bytes", "attention_parameters", "dtype"),
    } <= half.keys()
    assert {"window", "stride", "decode", "threads"} <= summary.keys()
    assert list(half["perplexity"]) == list(TEXTS)
    assert summary["window"] == summary["stride"] == {"prose": 12, "code": 12, "licences": 12, "mail": 10}
    assert summary["decode"] == "2x30" and summary["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_numbers_are_those_of_the_parts() -> None:
    evaluation = quick(decode="2x30")
    summary = summary_json(evaluation)
    first, half = summary["models"]
    ratios = []
    tokens, kl = 0, 0.0
    for kind, ids in TEXTS.items():
        one, other = compare([dense("llama"), trimmed("llama")], ids)
        assert (first["perplexity"][kind], half["perplexity"][kind]) == (one.perplexity, other.perplexity)
        ratios.append(other.perplexity / one.perplexity)
        assert half["perplexity_ratio"][kind] == ratios[-1]
        tokens, kl = tokens + other.tokens, kl + other.kl * other.tokens
    # The geometric mean of two is the root of their product.
    assert half["perplexity_ratio_calibrated"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]), rel=1e-12)
    assert half["perplexity_ratio_unseen"] == pytest.approx(ratios[2], rel=1e-12)
    assert half["perplexity_ratio_other"] == pytest.approx(ratios[3], rel=1e-12)
    assert half["kl"] == pytest.approx(kl / tokens, rel=1e-12)
    assert (first["kl"], first["top1_agreement"], first["perplexity_ratio_calibrated"]) == (0.0, 1.0, 1.0)
    assert first["decode_speedup"] == first["decode_speedup_same_path"] == first["attention_speedup"] == 1.0
    assert half["cache_bytes_per_token"] == read_spec(trimmed("llama")).cache_bytes_per_token()
    assert half["cache_ratio"] == half["cache_bytes_per_token"] / first["cache_bytes_per_token"] <= 0.5
    assert half["attention_parameters"] == read_spec(trimmed("llama")).attention_params
    assert half["decode_speedup"] == half["decode_tokens_per_s"] / first["decode_tokens_per_s"]
    first_own_way = first["ways"]["own"]
    assert half["decode_speedup_same_path"] == half["decode_tokens_per_s"] / first_own_way["decode_tokens_per_s"]
    assert half["attention_speedup"] == first["attention_step_seconds"] / half["attention_step_seconds"]
    assert (
        half["attention_speedup_same_path"] == first_own_way["attention_step_seconds"] / half["attention_step_seconds"]
    )


def test_sample_is_the_greedy_continuation() -> None:
    evaluation = quick()
    for (_, model, tokenizer), record in zip(models(), evaluation.record.models, strict=True):
        ids, words = tokenizer("w5 w7 w9", return_tensors="pt").input_ids, []
        for _ in range(6):
            ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), 1)
            words.append(int(ids[0, -1]))
            if words[-1] == tokenizer.eos_token_id:
                break
        assert record.sample == tokenizer.decode(words, skip_special_tokens=True)
    assert quick(sample_prompt=None).record.models[0].sample is None


def test_tables() -> None:
    evaluation = quick(decode="1x20")
    rows = evaluation.to_pandas()
    assert list(rows.index) == [(name, kind) for name in ("dense", "half") for kind in TEXTS]
    assert rows.loc[("half", "code"), "perplexity"] == evaluation.record.models[1].text("code").perplexity
    assert rows.loc[("dense", "code"), "perplexity_ratio"] == 1.0
    table = evaluation.table()
    assert list(table.index) == ["dense", "half"]
    assert table.loc["half", "cache_ratio"] == summary_json(evaluation)["models"][1]["cache_ratio"]
    assert "perplexity_ratio_unseen" in evaluation._repr_html_()


def test_open_models_and_no_timing() -> None:
    model = dense("llama")
    opened = OpenModel("opened", model, None, read_spec(model), fingerprint(model))
    summary = summary_json(quick([opened]))
    (entry,) = summary["models"]
    assert entry["name"] == "opened" and entry["sample"] is None
    assert (
        entry["decode_tokens_per_s"]
        is entry["decode_speedup"]
        is entry["peak_memory_bytes"]
        is summary["decode"]
        is None
    )


def test_documents_are_cut_with_the_first_tokenizer() -> None:
    from headcount.pretrained.text.texts import Document

    words = " ".join(f"w{3 + i % 90}" for i in range(200))
    evaluation = quick(texts={"notes": [Document("a", words)]}, windows=4, context=16)
    (text,) = evaluation.record.texts
    assert (text.windows, text.window, text.stride, text.group) == (4, 16, 16, "other")


def test_folder_is_written_and_reopened(tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = quick(out=out, decode="1x20")
    assert sorted(path.name for path in out.iterdir()) == [RECORD, "headcount-run.json", TIMING]
    again = Evaluation.open(out)
    assert (again.record, again.timing) == (made.record, made.timing)
    assert quick(out=out, decode="1x20").timing == made.timing, "a finished run is not run again"
    with pytest.raises(HeadcountError, match="other inputs"):
        quick(out=out, decode="1x21")
    assert quick(out=out, decode=None, overwrite=True).timing is None


def test_resumes_by_model_and_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    quick(out=whole)
    calls: list[tuple[int, int]] = []

    def interrupted(subjects: Any, ids: torch.Tensor, **options: Any) -> Any:
        calls.append((len(subjects), len(ids)))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compare(subjects, ids, **options)

    out = tmp_path / "resumed"
    monkeypatch.setattr(run, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(out=out)
    files = sorted(path.name for path in (out / "work").iterdir())
    assert files == [f"quality-00{kind}-00{model}.json" for kind in (0, 1) for model in (0, 1)]
    assert not (out / RECORD).exists()
    (out / "work" / "quality-001-001.json").unlink()  # killed between two models' files
    quick(out=out)
    assert calls[3:] == [(2, 3), (2, 2), (2, 2)], "prose is done; code lacks a model, which needs the first beside it"
    assert (out / RECORD).read_bytes() == (whole / RECORD).read_bytes()
    assert not (out / "work").exists()


def test_settings_of_models_are_left_alone() -> None:
    subjects = models()
    for _, model, _ in subjects:
        model.config._attn_implementation = "eager"
    try:
        quick(subjects, decode="1x20")
        assert [model.config._attn_implementation for _, model, _ in subjects] == ["eager", "eager"]
    finally:
        for _, model, _ in subjects:
            model.config._attn_implementation = "sdpa"


def resized(rows: int) -> Any:
    model = tiny_model("llama")
    model.config.vocab_size = rows
    model.set_input_embeddings(torch.nn.Embedding(rows, 48))
    return model


@pytest.mark.parametrize(
    ("subjects", "options", "words"),
    [
        (lambda: [], {}, "no model"),
        (lambda: [models()[0], models()[0]], {}, "two models are called 'dense'"),
        (lambda: [models()[0], ("other", resized(99), None)], {}, "other has 99 token ids, dense has 97"),
        (lambda: [models()[0], ("other", dense("llama"), tiny_tokenizer(swapped=True))], {}, "'w3' is 4 and 3"),
        (lambda: [("bert", dense("bert"), None)], {}, "predicts no next token"),
        (lambda: [("m", tiny_model("llama").train(), None)], {}, "training mode"),
        (models, {"texts": {}}, "no text"),
        (models, {"texts": {"a": torch.zeros(2, 3)}}, "no windows"),
        (models, {"texts": {"a": torch.zeros(0, 3, dtype=torch.long)}}, "no windows"),
        (models, {"texts": {"a": torch.full((1, 8), 97)}}, "a: token ids go from 97 to 97, the models have 97"),
        (models, {"texts": {"a": windows(1, 129)}}, "128 positions of dense"),
        (models, {"windows": 0}, "0 windows"),
        (models, {"decode": "8by9"}, "8by9"),
        (lambda: [("m", dense("llama"), None)], {"texts": None}, "no tokenizer"),
        (models, {"sample_prompt": ""}, "no tokens"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(subjects: Any, options: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(HeadcountError) as error:
        quick(subjects(), **options)
    assert words in str(error.value) and error.value.exit_code == 2 and error.value.fix


def test_a_model_that_breaks_is_a_failed_check() -> None:
    broken = tiny_model("llama")
    broken.lm_head.weight[5] = math.inf
    with pytest.raises(CheckFailedError, match=r"broken has a perplexity of .* on prose"):
        quick([("dense", dense("llama"), None), ("broken", broken, None)])


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([]) is None


def test_the_verb_stays_a_function_whatever_is_imported() -> None:
    import headcount.trimming.evaluate.run as module

    assert headcount.evaluate is module.evaluate
    evaluation = headcount.evaluate([("dense", dense("llama"), None)], texts=TEXTS, decode=None)
    assert evaluation.record.models[0].name == "dense"
