"""Perplexity, divergence and agreement against plain float64 loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import DECODERS
from evaluate_cases import dense, trimmed, windows

from headcount.trimming.evaluate import quality as module
from headcount.trimming.evaluate.quality import batch_size, compare


def by_loops(models: list[Any], ids: torch.Tensor) -> list[tuple[float, float, float]]:
    """(perplexity, KL, agreement) a model, one window and one token at a time, in float64."""
    rows = []
    for model in models:
        nll, kl, agreed, count = 0.0, 0.0, 0, 0
        for window in ids:
            first = models[0](window[None]).logits[0].double()
            logits = model(window[None]).logits[0].double()
            for place in range(len(window) - 1):
                p, q = first[place].softmax(-1).tolist(), logits[place].softmax(-1).tolist()
                nll -= math.log(q[int(window[place + 1])])
                kl += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
                agreed += p.index(max(p)) == q.index(max(q))
                count += 1
        rows.append((math.exp(nll / count), kl / count, agreed / count))
    return rows


@pytest.mark.parametrize("family", DECODERS)
def test_equals_loops(family: str) -> None:
    models = [dense(family), trimmed(family, "fast"), trimmed(family, "small")]
    ids = windows(3, 12)
    qualities = compare(models, ids)
    for quality, (perplexity, kl, agreement) in zip(qualities, by_loops(models, ids), strict=True):
        assert quality.tokens == 3 * 11
        # A batch of three windows and one window at a time give float32 logits that differ in their last bits.
        assert quality.perplexity == pytest.approx(perplexity, rel=1e-6)
        assert quality.kl == pytest.approx(kl, rel=1e-5, abs=1e-10)
        assert quality.top1_agreement == pytest.approx(agreement)
    assert qualities[0].kl == 0.0 and qualities[0].top1_agreement == 1.0
    assert qualities[1].kl > 1e-4, "a model at half its cache differs"


def test_slices_of_the_vocabulary_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    models, ids = [dense("llama"), trimmed("llama")], windows(4, 12)
    whole = compare(models, ids)
    monkeypatch.setattr(module, "SLICE_NUMBERS", 4 * 11 * 10)  # 10 columns: the last slice is ragged (97 tokens)
    for one, other in zip(whole, compare(models, ids), strict=True):
        # The same float32 logits, summed in another order in float64.
        assert other.perplexity == pytest.approx(one.perplexity, rel=1e-12)
        assert other.kl == pytest.approx(one.kl, rel=1e-10)
        assert other.top1_agreement == one.top1_agreement


class Fixed(torch.nn.Module):
    """A model that gives the logits it was made with."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.device = logits, torch.device("cpu")
        self.embedding = torch.nn.Embedding(logits.shape[-1], 1)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.logits[None].expand(*ids.shape, -1))


def test_closed_forms() -> None:
    """A uniform and a two-valued distribution: entropies and divergences known by hand."""
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    uniform, skewed = Fixed(torch.zeros(4, dtype=torch.float64)), Fixed(p.log() + 3.0)
    ids = torch.tensor([[3, 0, 1, 2], [0, 0, 0, 0]])
    first, second = compare([skewed, uniform], ids)  # type: ignore[list-item]
    assert second.perplexity == pytest.approx(4.0, rel=1e-14)
    # Predicted are 0, 1, 2 and 0, 0, 0: four halves, a quarter, an eighth.
    assert first.perplexity == pytest.approx((2.0**4 * 4.0 * 8.0) ** (1 / 6), rel=1e-14)
    entropy = float(-(p * p.log()).sum())
    assert second.kl == pytest.approx(math.log(4) - entropy, rel=1e-13)
    assert second.top1_agreement == 1.0, "of equal logits the first one counts"


def test_logits_are_only_read() -> None:
    """In float64 no copy is made on the way, so a step in place would change what later models are held against."""
    logits = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64)
    first, original = Fixed(logits), logits.clone()
    compare([first, Fixed(logits.flip(0)), Fixed(logits * 2)], torch.tensor([[0, 1, 2]]))  # type: ignore[list-item]
    assert torch.equal(logits, original)


def test_infinite_logits_are_not_hidden() -> None:
    broken = Fixed(torch.tensor([0.0, math.nan, 0.0, 0.0]))
    qualities = compare([Fixed(torch.zeros(4)), broken], torch.tensor([[0, 1, 2]]))  # type: ignore[list-item]
    assert math.isnan(qualities[1].perplexity) or math.isnan(qualities[1].kl)


def test_batches_are_bounded() -> None:
    assert batch_size(512, 49_152) == 2
    assert batch_size(512, 10**6) == 1
    assert batch_size(128, 10**6) == 1
    assert batch_size(64, 97) == 16


def test_progress_counts_windows() -> None:
    told: list[tuple[str, int, int]] = []
    compare([dense("llama")], windows(5, 12), progress=lambda *args: told.append(args))
    assert told[-1] == ("quality", 5, 5)
