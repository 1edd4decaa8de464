"""Every family and form under every client: the logits of the uncached forward, or an error that names the client."""

from __future__ import annotations

import itertools
from pathlib import Path

import client_cases as cases
import client_tools as tools
import client_truth as truth
import pytest
import torch
from conftest import DECODERS, tiny_model

FORMS = ("fast", "small")
TRACED = {"compiled", "exported"}
"""Clients that trace the whole model, three to ten seconds each: in ``make test`` for ``TRACED_MODELS`` alone."""
TRACED_MODELS = {("llama", "small"), ("mistral", "fast"), ("gpt2", "fast")}
REAL = TRACED | {"torchao int8"}
"""Left to ``make test-real``; torchao is not installed for ``make test``."""
TOLERANCE = 1e-4
"""Float32 sums in another order; logits are of order 5."""


def _is_real(family: str, form: str, client: str) -> bool:
    return client in REAL and not (client in TRACED and (family, form) in TRACED_MODELS)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # GPT-2 has layers of two kinds; peft sets it right
@pytest.mark.parametrize(
    ("family", "form", "client"),
    [
        pytest.param(*own, marks=[pytest.mark.real] if _is_real(*own) else [])
        for own in itertools.product(DECODERS, FORMS, cases.CLIENTS)
    ],
)
def test_a_client_gives_the_uncached_forward(family: str, form: str, client: str) -> None:
    if (family, client) in cases.NOT_IN_TRANSFORMERS:
        with pytest.raises(ValueError, match=cases.NOT_IN_TRANSFORMERS[family, client]):
            cases.CLIENTS[client](tiny_model(family))
        return
    pair = cases.CLIENTS[client](truth.trimmed(family, form))
    torch.testing.assert_close(pair.got, pair.wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("client", cases.REFUSED)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", DECODERS)
def test_a_client_is_refused_by_name(family: str, form: str, client: str) -> None:
    run, message = cases.REFUSED[client]
    with pytest.raises(ValueError, match=message):
        run(truth.trimmed(family, form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", DECODERS)
def test_weights_on_disk_are_fetched_by_every_module(family: str, form: str, tmp_path: Path) -> None:
    pair = tools.disk_offload(truth.trimmed(family, form), tmp_path)
    torch.testing.assert_close(pair.got, pair.wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # torch deprecates what it still ships
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", DECODERS)
def test_torch_int8_costs_what_it_costs_the_dense_model(family: str, form: str) -> None:
    pair = tools.torch_int8(truth.trimmed(family, form), tiny_model(family))
    assert float(pair.got) < 1.5 * float(pair.wanted)
