"""Trimmed models under other people's tools: adapters, quantisation, compilers, offloading."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from client_truth import Pair, in_pieces, uncached
from conftest import tiny_tokens
from transformers import DynamicCache, StaticCache


def lora(model: Any) -> Pair:
    """Adapters on all linear layers: trained a step, then run with a cache, then merged."""
    peft = pytest.importorskip("peft")
    own = copy.deepcopy(model)
    adapted = peft.get_peft_model(own, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    ids = tiny_tokens(2, 12, seed=2)
    adapted.train()
    adapted(ids, labels=ids).loss.backward()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name
    adapted.eval()
    before = uncached(adapted, ids)
    assert float((before - uncached(model, ids)).abs().max()) > 1e-2
    stepped = in_pieces(adapted, ids, DynamicCache(), (7, 1, 4))
    merged = adapted.merge_and_unload()
    return Pair(torch.cat((stepped, uncached(merged, ids))), torch.cat((before, before)))


def torchao_int8(model: Any) -> Pair:
    """torchao's 8-bit weights of linear layers; the truth is those weights, de-quantised."""
    torchao = pytest.importorskip("torchao")
    own = copy.deepcopy(model)
    torchao.quantize_(own, torchao.quantization.Int8WeightOnlyConfig())
    plain = copy.deepcopy(model)
    for name, module in own.named_modules():
        if isinstance(module, torch.nn.Linear) and hasattr(module.weight, "dequantize"):
            plain.get_submodule(name).weight = torch.nn.Parameter(module.weight.dequantize())
    ids = tiny_tokens(2, 14, seed=2)
    return Pair(in_pieces(own, ids, DynamicCache(), (9, 1, 4)), uncached(plain, ids))


def torch_int8(model: Any, dense: Any) -> Pair:
    """torch's own dynamic 8-bit linear layers: how far they move the model's logits, and the dense model's (both (1,)).

    Activations are rounded by the range of the piece that is fed, so there is no exact truth with a cache.
    """
    ids = tiny_tokens(2, 14, seed=2)
    moved = []
    for own in (model, dense):
        rounded = torch.ao.quantization.quantize_dynamic(copy.deepcopy(own), {torch.nn.Linear}, dtype=torch.qint8)
        error = in_pieces(rounded, ids, DynamicCache(), (9, 1, 4)) - uncached(own, ids)
        moved.append(error.norm() / uncached(own, ids).norm())
    return Pair(moved[0], moved[1])


def compiled(model: Any) -> Pair:
    """``torch.compile`` of the whole graph with a static cache: prefill, single tokens, another chunk."""
    ids = tiny_tokens(2, 24, seed=3)
    torch.compiler.reset()
    own = torch.compile(model, backend="eager", fullgraph=True)
    held = StaticCache(model.config, max_cache_len=40)
    return Pair(in_pieces(own, ids, held, (11, 1, 1, 1, 6, 4)), uncached(model, ids))


def exported(model: Any) -> Pair:
    """``torch.export`` of the forward with a length that is free: run at lengths that it was not traced at."""
    length = torch.export.Dim("length", min=2, max=128)
    program = torch.export.export(
        model,
        (),
        {"input_ids": tiny_tokens(2, 24), "use_cache": False},
        dynamic_shapes={"input_ids": {1: length}, "use_cache": None},
        strict=False,
    ).module()
    batches = [tiny_tokens(2, n, seed=n) for n in (3, 7, 50)]
    got = [program(input_ids=ids, use_cache=False).logits for ids in batches]
    return Pair(torch.cat(got, 1), torch.cat([uncached(model, ids) for ids in batches], 1))


def disk_offload(model: Any, folder: Path) -> Pair:
    """accelerate keeps the weights of every module on disk until its forward."""
    import accelerate

    own = copy.deepcopy(model)
    accelerate.disk_offload(own, folder, execution_device=torch.device("cpu"))
    ids = tiny_tokens(2, 14, seed=2)
    return Pair(in_pieces(own, ids, DynamicCache(), (9, 1, 4)), uncached(model, ids))
