"""The repair against an independent solver, on every family, and over a kill."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DECODERS, tiny_model, tiny_tokens

import headcount
from headcount.pretrained.families import attention_of, family_of, layers_of
from headcount.trimming.trim.build import build, output_of
from headcount.trimming.trim.repair import NormalEquations, repair


def planned(model: Any, cache: float = 0.4, form: str = "fast") -> Any:
    return headcount.plan(
        headcount.audit(model, tiny_tokens(40), metric="output", matmul_dtype="model"), cache=cache, form=form
    )


def test_normal_equations_minimise_the_pulled_error() -> None:
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(200, 7, generator=generator), torch.randn(200, 3, generator=generator)
    old, bias = torch.randn(3, 7, generator=generator), torch.randn(3, generator=generator)
    equations = NormalEquations(7, 3)
    equations.add(z[:90], y[:90])
    equations.add(z[90:], y[90:])
    weight, intercept = equations.solve(old, bias, 0.1)
    pull = (0.1 * float(z.double().square().sum(0).mean())) ** 0.5
    # The same minimum by least squares on stacked rows: the pull is seven more observations.
    rows = torch.cat((torch.cat((z.double(), torch.ones(200, 1)), 1), pull * torch.eye(8, dtype=torch.float64)[:7]))
    targets = torch.cat((y.double(), pull * old.T.double()))
    expected = torch.linalg.lstsq(rows, targets).solution
    torch.testing.assert_close(weight, expected[:7].T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(intercept, expected[7], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", DECODERS)
def test_repair_brings_the_residual_stream_closer(name: str) -> None:
    """On the text it was fitted on, every layer's stream after attention is nearer to the dense one; tiny ridge."""
    model = tiny_model(name)
    plan = planned(model)
    ids = plan.audit.windows["text"].long()
    before = headcount.trim(model, plan, repair_output=False)
    after = headcount.trim(model, plan, ridge=1e-6, matmul_dtype="model")
    dense = model(ids, output_hidden_states=True).hidden_states
    errors = []
    for variant in (before, after):
        streams = variant(ids, output_hidden_states=True).hidden_states
        errors.append([float((a - b).square().mean()) for a, b in zip(streams[1:], dense[1:], strict=True)])
    assert sum(errors[1]) < sum(errors[0])
    assert errors[1][0] < errors[0][0]


def test_one_layer_is_the_least_squares_solution() -> None:
    """The first layer sees the dense stream, so its refit is a plain regression of the dense attention's output."""
    model = tiny_model("llama")
    plan = planned(model)
    ids = plan.audit.windows["text"].long()
    trimmed_model = headcount.trim(model, plan, ridge=1e-12, matmul_dtype="model")
    raw = build(model, plan)
    inputs, outputs = [], []
    handles = [
        raw.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _m, a: inputs.append(a[0])),
        model.model.layers[0].self_attn.register_forward_hook(lambda _m, _a, out: outputs.append(out[0])),
    ]
    raw(ids), model(ids)
    for handle in handles:
        handle.remove()
    z = torch.cat((inputs[0].flatten(0, 1), torch.ones(ids.numel(), 1)), 1).double()
    residual = z @ torch.linalg.lstsq(z, outputs[0].flatten(0, 1).double()).solution - outputs[0].flatten(0, 1)
    output = trimmed_model.model.layers[0].self_attn.o_proj
    made = z[:, :-1] @ output.weight.T.double() + output.bias.double() - outputs[0].flatten(0, 1)
    # The best error there is, reached up to the ridge and float32 weights.
    assert float(made.square().mean()) <= float(residual.square().mean()) * (1 + 1e-4) + 1e-12


def test_a_stopped_repair_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    model = tiny_model("gemma3_text")
    plan = planned(model)
    ids = plan.audit.windows["text"].long()
    whole = build(model, plan)
    repair(model, whole, ids, tmp_path / "whole")
    stopped = build(model, plan)

    class StopError(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done > 0:
            raise StopError

    with pytest.raises(StopError):
        repair(model, stopped, ids, tmp_path / "stopped", progress=stop)
    assert len(list((tmp_path / "stopped").glob("layer-*.safetensors"))) == 1
    again = build(model, plan)
    repair(model, again, ids, tmp_path / "stopped")
    family = family_of(model.config)
    for a, b in zip(layers_of(whole, family), layers_of(again, family), strict=True):
        assert torch.equal(output_of(attention_of(a, family)).weight, output_of(attention_of(b, family)).weight)
    shutil.rmtree(tmp_path / "stopped")
