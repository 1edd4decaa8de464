"""The model's own text: seeded, resumable by batch, of the right shape and distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DECODERS, tiny_model
from safetensors.torch import save_file
from tiny_files import tiny_tokenizer

from headcount.core.errors import HeadcountError
from headcount.pretrained.text import sampling
from headcount.pretrained.text.sampling import sample_blocks, start_token


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BATCH_WINDOWS", 3)


TOKENIZER = tiny_tokenizer("<s> $A")


@pytest.mark.parametrize("name", DECODERS)
def test_every_family_samples(name: str) -> None:
    blocks = sample_blocks(tiny_model(name), TOKENIZER, 5, 14)
    assert blocks.kind == "self" and blocks.ids.shape == (5, 14) and blocks.ids.dtype == torch.int64
    assert (blocks.ids[:, 0] == 1).all() and int(blocks.ids.min()) >= 0 and int(blocks.ids.max()) < 97


@pytest.mark.usefixtures("small_batches")
def test_sampling_is_seeded() -> None:
    model = tiny_model("llama")
    state = torch.random.get_rng_state()
    own = sample_blocks(model, TOKENIZER, 7, 10)
    assert torch.equal(own.ids, sample_blocks(model, TOKENIZER, 7, 10).ids)
    assert own.text_digest == sample_blocks(model, TOKENIZER, 7, 10).text_digest
    assert not torch.equal(own.ids, sample_blocks(model, TOKENIZER, 7, 10, seed=1).ids)
    assert len({tuple(row) for row in own.ids.tolist()}) == 7, "batches and rows differ"
    assert torch.equal(own.ids[:6], sample_blocks(model, TOKENIZER, 6, 10).ids), "more windows change none before"
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tokens_come_from_the_models_distribution() -> None:
    """Second tokens of 4,000 windows against softmax: chi-square within 5 standard deviations of its mean."""
    model = tiny_model("gpt2")
    count = 4000
    ids = sample_blocks(model, TOKENIZER, count, 2).ids
    wanted = count * model(torch.tensor([[1]])).logits[0, -1].double().softmax(-1)
    seen = torch.bincount(ids[:, 1], minlength=97)
    common = wanted > 5  # where the normal approximation holds
    statistic = ((seen[common] - wanted[common]) ** 2 / wanted[common]).sum()
    freedom = int(common.sum())
    assert freedom > 20 and abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


@pytest.mark.usefixtures("small_batches")
def test_a_killed_run_goes_on_from_its_last_batch(tmp_path: Path) -> None:
    model = tiny_model("llama")
    wanted = sample_blocks(model, TOKENIZER, 7, 6).ids
    steps = []

    def killed(stage: str, done: int, total: int) -> None:
        steps.append(done)
        assert stage == "sample" and 0 <= done <= total == 42
        if len(steps) > 5 + 2:  # in the second batch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_blocks(model, TOKENIZER, 7, 6, folder=tmp_path, progress=killed)
    assert [file.name for file in tmp_path.iterdir()] == ["self-000.safetensors"]
    first = (tmp_path / "self-000.safetensors").read_bytes()
    calls: list[Any] = []
    handle = model.register_forward_pre_hook(lambda *args: calls.append(args))
    assert torch.equal(sample_blocks(model, TOKENIZER, 7, 6, folder=tmp_path).ids, wanted)
    assert len(calls) == 2 * 5, "the first batch was not sampled again"
    assert (tmp_path / "self-000.safetensors").read_bytes() == first
    assert torch.equal(sample_blocks(model, TOKENIZER, 7, 6, folder=tmp_path).ids, wanted)
    assert len(calls) == 2 * 5
    handle.remove()


def test_kept_batches_of_another_run_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    sample_blocks(model, TOKENIZER, 2, 6, folder=tmp_path)
    kept = tmp_path / "self-000.safetensors"
    for count, context in ((2, 7), (3, 6)):
        with pytest.raises(HeadcountError, match=r"has ids \(2, 6\), not") as caught:
            sample_blocks(model, TOKENIZER, count, context, folder=tmp_path)
        assert str(kept) in caught.value.message
    save_file({"other": torch.zeros(1)}, kept)
    with pytest.raises(HeadcountError, match="has no ids"):
        sample_blocks(model, TOKENIZER, 2, 6, folder=tmp_path)
    kept.write_bytes(kept.read_bytes()[:20])
    with pytest.raises(HeadcountError, match="not a readable safetensors file"):
        sample_blocks(model, TOKENIZER, 2, 6, folder=tmp_path)


def test_sampling_goes_on_past_the_end_token() -> None:
    """A model that always says end-of-sequence is asked on."""
    model = tiny_model("gpt2")
    head = torch.zeros_like(model.lm_head.weight)
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    bias = torch.full((97,), -100.0)
    bias[2] = 100.0
    handle = model.lm_head.register_forward_hook(lambda _, __, logits: logits + bias)
    assert sample_blocks(model, TOKENIZER, 2, 6).ids.tolist() == [[1, 2, 2, 2, 2, 2]] * 2
    handle.remove()


def test_logits_that_are_not_finite_are_one_line() -> None:
    model = tiny_model("llama")
    model.lm_head.weight[5] = torch.inf
    with pytest.raises(HeadcountError, match="logits are not finite after 1 tokens"):
        sample_blocks(model, TOKENIZER, 2, 6)


@pytest.mark.parametrize(("template", "first"), [("$A", 1), ("<s> $A", 1), ("</s> $A", 2), ("<pad> <s> $A </s>", 0)])
def test_texts_begin_with_the_tokenizers_own_prefix(template: str, first: int) -> None:
    assert start_token(tiny_tokenizer(template)) == first


def test_without_a_start_token_the_end_token_begins_a_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert start_token(tokenizer) == 2
    tokenizer.eos_token = None
    with pytest.raises(HeadcountError, match="no token that texts begin with; give --text files instead"):
        start_token(tokenizer)
