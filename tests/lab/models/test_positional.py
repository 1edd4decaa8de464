"""Attention by position: outputs against explicit sums over lags, with and without content, each scheme's kernels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.lab import models
from headcount.lab.models import Reading
from headcount.lab.models.positional import POSITIONS, Positional, rotated
from headcount.lab.train.data import draw

TASK = tasks.get("ngram", tokens=9, order=3, dim=4)


def made(**options: object) -> models.TokenModel:
    config = models.config("positional", **({"width": 6, "heads": 2, "mlp": False, "context": 5} | options))
    return models.build(config, Reading.of(TASK), 1)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("context", [5, 9, 12])
@pytest.mark.parametrize("content", [False, True])
def test_answers_equal_explicit_sums(position: str, context: int, content: bool) -> None:
    """y_t = sum_h O_h sum_s a_h(s) V_h x_{t-s} with x = 0 before the sequence, in float64 loops."""
    model = made(position=position, context=context, content=content)
    body = model.body
    assert isinstance(body, Positional)
    x = draw(TASK, 0, 2, "uniform").inputs
    logits = body.kernels().double()
    with torch.no_grad():
        values = body.values(x).double().reshape(2, 9, 2, 3)
        want = torch.zeros(2, 9, 2, 3, dtype=torch.float64)
        for h in range(2):
            for t in range(9):
                row = logits[h].expand(2, -1).clone()
                if body.queries is not None:
                    q, k = (part(x).double().reshape(2, 9, 2, 3)[:, :, h] for part in (body.queries, body.keys))
                    if position == "rope":
                        q, k = (rotated(vectors, torch.arange(9.0, dtype=torch.float64)) for vectors in (q, k))
                    for s in range(min(t, context - 1) + 1):
                        row[:, s] += (q[:, t] * k[:, t - s]).sum(-1) / math.sqrt(3)
                weights = row.softmax(-1)
                for s in range(min(t, context - 1) + 1):
                    want[:, t, h] += weights[:, s, None] * values[:, t - s, h]
        answers = body.outputs(want.flatten(-2).float())
        # Sums of 12 float32 products of order 1.
        assert torch.allclose(model(x), answers, atol=1e-5)


def test_the_mean_squared_error_has_a_closed_form() -> None:
    """Over many sequences a model's error is ``least_squares.error``: samples and formula agree to 1%."""
    from headcount.lab.train.start import problem, taken
    from headcount.lags import least_squares as squares

    model = made(position="relative", context=9)
    assert isinstance(model.body, Positional)
    portion = draw(TASK, 1, 4000, "uniform")
    with torch.no_grad():
        measured = float((model(portion.inputs) - portion.targets).square().sum(-1).mean())
    closed = squares.error(taken(model.body)[1], *problem(TASK, 9))  # type: ignore[arg-type]
    assert math.sqrt(measured / TASK.power) == pytest.approx(closed, rel=0.01)  # type: ignore[attr-defined]


def test_slopes_start_as_in_alibi() -> None:
    """Press et al. 2021: 8 heads have slopes 1/2, 1/4, ..., 1/256."""
    body = made(width=16, heads=8, position="alibi", context=4).body
    assert isinstance(body, Positional)
    slopes = -body.kernels()[:, 1]
    assert torch.allclose(slopes, 2.0 ** -torch.arange(1, 9), rtol=1e-6)
    fixed = made(position="alibi-fixed").body
    assert isinstance(fixed, Positional) and not fixed.kernels.log_slope.requires_grad
    assert models.parameters(made(position="alibi")) - models.parameters(made(position="alibi-fixed")) == 2


def test_rotary_logits_are_sums_of_waves() -> None:
    """They depend on the lag alone, at the frequencies of the theory's RoPE, and are flat at d = 1."""
    from headcount.lags.schemes import Rope

    body = made(width=12, heads=2, position="rope", context=7).body
    assert isinstance(body, Positional)
    logits = body.kernels().detach().double().numpy()
    waves = Rope(7, 16.0, 6).features
    left = logits - np.einsum("lp,hp->hl", waves, np.linalg.lstsq(waves, logits.T, rcond=None)[0].T)
    assert np.abs(left).max() < 1e-5  # six waves on seven lags: float32 of the model
    flat = made(width=2, heads=2, position="rope", context=7).body
    assert isinstance(flat, Positional)
    assert torch.equal(flat.kernels(), flat.kernels()[:, :1].expand(-1, 7))


def test_mistakes_are_named() -> None:
    with pytest.raises(HeadcountError, match="does not divide into 4 heads"):
        made(heads=4)
    with pytest.raises(HeadcountError, match="no position scheme 't5'"):
        made(position="t5")
