"""Language models in the training loop: the text, the batches, the losses, resuming, and what a run says of itself."""

from __future__ import annotations

import contextlib
import hashlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headcount.core import store
from headcount.core.errors import HeadcountError
from headcount.lab.figures import curve
from headcount.lab.models import parameters
from headcount.lab.specs.text import TextSpec, checked
from headcount.lab.sweep import runner as sweep
from headcount.lab.train import loop as loop
from headcount.lab.train import subject as experiments_subject
from headcount.lab.train.checkpoint import FILE
from headcount.lab.train.corpus import END, Corpus, corpus, learn_vocabulary
from headcount.lab.train.loop import train
from headcount.lab.train.subject import TextSubject
from headcount.pretrained.text.texts import documents
from headcount.shapes import rules as scratch_shapes
from headcount.shapes.decoder import build_decoder

TOY = TextSpec(
    layers=2, hidden=32, context=16, vocab=300, parameters=40_000, kinds=("prose",), steps=6, batch=4, warmup=2,
    evaluate_every=3, evaluations=4, examined=4, checkpoint_every=2, model="uniform",
)  # fmt: skip


def text() -> Corpus:
    return corpus(("prose",), 300)


def test_every_byte_of_the_held_out_documents_is_read_and_none_trained_on() -> None:
    prose_corpus = text()
    held_out = sum(len(document.text.encode()) for document in documents("prose", "evaluation"))
    assert int(prose_corpus.lengths[prose_corpus.held_out["prose"].long()].sum()) == held_out
    trained = sum(len(document.text.encode()) for document in documents("prose", "calibration"))
    assert int(prose_corpus.lengths[prose_corpus.train.long()].sum()) == trained
    assert len(prose_corpus.lengths) == 300 and int(prose_corpus.lengths.min()) == 0


def test_tokens_are_the_text() -> None:
    tokenizer = learn_vocabulary(["a cat sat; a cat ate — ça"] * 3, 262)
    sentence = "a cat ate ça"
    ids = tokenizer.encode(sentence).ids
    assert tokenizer.decode(ids) == sentence and tokenizer.token_to_id(END) == 0 and 0 not in ids
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    assert sum(len(names[number]) for number in ids) == len(sentence.encode())
    with pytest.raises(HeadcountError, match="gives a vocabulary of"):
        learn_vocabulary(["ab"], 400)


def test_another_process_learns_the_same_vocabulary() -> None:
    code = (
        "import hashlib; from headcount.lab.train.corpus import corpus\n"
        "print(hashlib.blake2b(corpus(('prose',), 300).train.numpy().tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == hashlib.blake2b(text().train.numpy().tobytes()).hexdigest()


def test_batches_are_a_function_of_seed_and_step_and_the_same_for_every_scheme() -> None:
    prose_corpus = text()
    batch = prose_corpus.batch(3, 7, 4, 16)
    assert batch.shape == (4, 17) and torch.equal(batch, prose_corpus.batch(3, 7, 4, 16))
    assert not torch.equal(batch, prose_corpus.batch(4, 7, 4, 16)) and not torch.equal(
        batch, prose_corpus.batch(3, 8, 4, 16)
    )
    stream = prose_corpus.train.tolist()
    for row in batch.tolist():
        assert any(stream[i : i + 17] == row for i, token in enumerate(stream) if token == row[0])
    others = [TextSubject(TOY.model_copy(update={"model": m})) for m in ("uniform", "openelm", "planned")]
    assert all(torch.equal(other.batch(5), others[0].batch(5)) for other in others)


def test_windows_are_spread_and_do_not_overlap() -> None:
    windows = text().windows("prose", 5, 16)
    stream = text().held_out["prose"]
    assert windows.shape == (5, 17) and torch.equal(windows[0], stream[:17].long())
    assert torch.equal(windows[-1], stream[(len(stream) - 1) // 16 * 16 - 16 :][:17].long())
    assert len(text().windows("prose", 10**9, 16)) == (len(stream) - 1) // 16
    with pytest.raises(HeadcountError, match="less than"):
        text().windows("prose", 1, 10**7)


def test_the_loss_is_the_decoders_own_and_bits_per_byte_follow_by_hand() -> None:
    subject = TextSubject(TOY)
    decoder: Any = build_decoder(TOY.design, TOY.seed)
    batch = subject.batch(0)
    # transformers shifts the labels itself.
    torch.testing.assert_close(subject.loss(batch), decoder(batch, labels=batch).loss, rtol=1e-5, atol=0)
    assert parameters(subject.model) == TOY.design.params
    scores = subject.examine()["prose"]
    windows = text().windows("prose", 4, 16)
    logs = subject.model(windows[:, :-1]).double().log_softmax(-1)
    nats = -logs.gather(-1, windows[:, 1:, None]).sum().item()
    assert float(scores["loss"]) == pytest.approx(nats / 64, rel=1e-5)
    read = int(text().lengths[windows[:, 1:]].sum())
    assert float(scores["bits_per_byte"]) == pytest.approx(nats / math.log(2) / read, rel=1e-5)


def test_bfloat16_gradients_are_as_near_to_float32_as_with_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most twice as far: both make the same products in bfloat16, ours keeps the weights in it, too."""

    def gradient(**change: Any) -> torch.Tensor:
        subject = TextSubject(TOY.model_copy(update=change))
        subject.loss(subject.batch(0)).backward()
        assert subject.model.stack.config._attn_implementation == "sdpa"
        return torch.cat([parameter.grad.flatten() for parameter in subject.model.parameters()])

    in_float32, in_bfloat16 = gradient(), gradient(autocast=True)
    monkeypatch.setattr(experiments_subject, "our_attention", lambda _: contextlib.nullcontext())
    fused = gradient(autocast=True)
    assert (
        0
        < float((in_bfloat16 - in_float32).norm())
        <= 2 * float((fused - in_float32).norm())
        < 0.05 * float(in_float32.norm())
    )
    assert not torch.equal(in_bfloat16, fused)


def test_a_plain_start_is_transformers_own() -> None:
    """What layers add begins at 0.02, not at 0.02 / sqrt(4); 20% is over five deviations for 384 normal numbers."""
    subject = TextSubject(TOY.model_copy(update={"start": "plain"}))
    scaled = TextSubject(TOY)
    subject.begin()
    scaled.begin()
    for plain_layer, scaled_layer in zip(subject.model.stack.layers, scaled.model.stack.layers, strict=True):
        assert plain_layer.self_attn.o_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
        torch.testing.assert_close(plain_layer.mlp.down_proj.weight, 2 * scaled_layer.mlp.down_proj.weight)
        assert torch.equal(plain_layer.mlp.up_proj.weight, scaled_layer.mlp.up_proj.weight)


def test_losses_fall_from_those_of_a_uniform_guess() -> None:
    run = train(TOY.model_copy(update={"steps": 120, "learning_rate": 1e-2, "evaluate_every": 120}))
    assert run.curve.losses[0] == pytest.approx(math.log(300), abs=0.1)
    assert sum(run.curve.losses[-10:]) / 10 < 4.6 and run.score < 4.8


@pytest.mark.parametrize("autocast", [False, True])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    tmp_path: Path, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TOY.model_copy(update={"autocast": autocast})
    whole = train(spec, tmp_path / "whole")
    step = loop._Run._step

    def stops(run: Any) -> None:
        if len(run.curve.losses) == 5:
            raise KeyboardInterrupt
        step(run)

    monkeypatch.setattr(loop._Run, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        train(spec, tmp_path / "stopped")
    monkeypatch.undo()
    assert len(store.read_tensors(tmp_path / "stopped" / FILE)["curve.losses"]) == 4
    resumed = train(spec, tmp_path / "stopped")
    assert resumed.curve == whole.curve
    for name in ("weights.safetensors", "result.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_rows_say_what_was_trained_and_are_found_again(tmp_path: Path) -> None:
    specs = [TOY, TOY.model_copy(update={"model": "planned", "cache_share": 1.0})]
    rows = sweep.sweep(specs, tmp_path / "work", workers=1)
    for spec, row in zip(specs, rows, strict=True):
        assert row.error is None and row.result is not None
        assert row.result["parameters"] == spec.design.params
        assert row.result["config"] == spec.design.model_dump(mode="json")
        assert row.score == row.result["scores"]["text"]["loss"]
        assert checked(row.spec) == spec and sweep.read_row(tmp_path / "work", spec) == row
    assert sweep.status(tmp_path / "work") == {"runs": 2, "done": 2, "failed": 0, "missing": 0}
    assert "text bits_per_byte" in (tmp_path / "work" / "table.csv").read_text()


def test_a_changed_rule_makes_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [TOY.model_copy(update={"model": model}) for model in ("planned", "uniform")]
    before = [sweep.digest(TextSpec.checked(spec.inputs())) for spec in specs]
    monkeypatch.setattr(scratch_shapes, "LAST_KEYS", 0.25)
    planned, uniform = (sweep.digest(TextSpec.checked(spec.inputs())) for spec in specs)
    assert planned != before[0] and uniform == before[1]


def test_curves_are_drawn(tmp_path: Path) -> None:
    assert curve.FIGURE.write(curve.learned([train(TOY)]), tmp_path)["svg"].is_file()


def test_equal_cache_is_the_uniform_models() -> None:
    limit = TOY.design.cache_bytes_per_token()
    for model in ("planned", "openelm"):
        design = TOY.model_copy(update={"model": model, "cache_share": 1.0}).design
        assert design.cache_bytes_per_token() <= limit and design.params <= TOY.parameters


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "elm"}, "no scheme 'elm'"),
        ({"vocab": 256}, "vocab: .* not 256"),
        ({"parameters": 10}, "the smallest budget is"),
        ({"hidden": 33}, "--hidden 33"),
        ({"tokens": 3}, "'tokens' is no field"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        checked(TOY.inputs() | fields).check()  # type: ignore[union-attr]
