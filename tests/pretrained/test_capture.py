"""Looking into attention changes nothing; undoing the rotary embedding gives back what was before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from headcount.pretrained.families import attention_of, family_of, layers_of
from headcount.pretrained.running.capture import NAME, AttentionCall, observed_attention, rotation_gain, unrotate

ROTARY = [name for name in FAMILIES if name not in ("gpt2", "bert")]


def attentions_of(model: Any) -> list[nn.Module]:
    family = family_of(model.config)
    return [attention_of(layer, family) for layer in layers_of(model, family)]


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_stock_attention(name: str, padded: bool) -> None:
    """The same call of the same kernel on the same numbers; grouped heads are repeated by it and not beforehand.

    1e-5: float32 sums of up to 24 numbers of size 1, twice a layer, in another order at worst.
    """
    model = tiny_model(name)
    ids = tiny_tokens(2, 24)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = model(ids, attention_mask=mask)[0]
    calls: list[AttentionCall] = []
    with observed_attention(model, attentions_of(model), calls.append):
        found = model(ids, attention_mask=mask)[0]
    visible = mask.bool()
    torch.testing.assert_close(found[visible], wanted[visible], atol=1e-5, rtol=0)
    assert [call.module for call in calls] == attentions_of(model)
    assert torch.equal(model(ids, attention_mask=mask)[0], wanted)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.config._attn_implementation == "sdpa" and hooks_of(model) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_observed_is_what_attention_computes_with(name: str) -> None:
    """softmax(scaling q k' + mask) v from the observed parts is the input of the output projection."""
    model = tiny_model(name)
    family = family_of(model.config)
    calls: list[AttentionCall] = []
    mixed: list[torch.Tensor] = []
    handles = [
        layer.get_submodule(family.output).register_forward_pre_hook(lambda _, args: mixed.append(args[0]))
        for layer in layers_of(model, family)
    ]
    with observed_attention(model, attentions_of(model), calls.append):
        model(tiny_tokens(2, 24))
    for handle in handles:
        handle.remove()
    for call, wanted in zip(calls, mixed, strict=True):
        q, k, v = call.q.double(), call.k.double(), call.v.double()
        groups = q.shape[1] // k.shape[1]
        scores = call.scaling * q @ k.repeat_interleave(groups, 1).transpose(-1, -2)
        if call.mask is None:
            visible = torch.ones(24, 24, dtype=torch.bool)
            visible = visible.tril() if family.causal else visible
        else:
            assert call.mask.dtype == torch.bool
            visible = call.mask
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        own = (weights @ v.repeat_interleave(groups, 1)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(own.float(), wanted, atol=1e-5, rtol=0)  # float32 against float64


def test_an_observer_may_put_others_in_their_place() -> None:
    """Values of zero leave nothing of attention but the output's bias."""
    model = tiny_model("gpt2")

    def silence(call: AttentionCall) -> None:
        call.v = torch.zeros_like(call.v)

    out: list[torch.Tensor] = []
    handle = model.transformer.h[0].attn.register_forward_hook(lambda _, __, result: out.append(result[0]))
    with observed_attention(model, attentions_of(model), silence):
        model(tiny_tokens(1, 5))
    handle.remove()
    torch.testing.assert_close(out[0], model.transformer.h[0].attn.c_proj.bias.expand_as(out[0]))


@pytest.mark.parametrize("where", ["body", "observer"])
@pytest.mark.parametrize("chosen", ["sdpa", "eager"])
def test_everything_is_put_back_when_something_fails(where: str, chosen: str) -> None:
    model = tiny_model("llama")
    model.config._attn_implementation = chosen

    def observer(call: AttentionCall) -> None:
        if where == "observer":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), observed_attention(model, attentions_of(model), observer):
        assert model.config._attn_implementation == NAME and hooks_of(model) == 3
        model(tiny_tokens(1, 5))
        raise ZeroDivisionError
    assert model.config._attn_implementation == chosen and hooks_of(model) == 0
    seen: list[AttentionCall] = []
    with observed_attention(model, attentions_of(model), seen.append):
        model(tiny_tokens(1, 5))
    assert len(seen) == 3


def test_blocks_nest() -> None:
    model = tiny_model("llama")
    outer: list[AttentionCall] = []
    inner: list[AttentionCall] = []
    with observed_attention(model, attentions_of(model), outer.append):
        with observed_attention(model, attentions_of(model), inner.append):
            model(tiny_tokens(1, 5))
        model(tiny_tokens(1, 5))
    assert len(inner) == len(outer) == 3
    assert all(call.rotation is not None for call in outer + inner)
    assert model.config._attn_implementation == "sdpa" and hooks_of(model) == 0


def keys_before_rotation(model: Any, name: str, ids: torch.Tensor) -> list[torch.Tensor]:
    """Each layer's keys (batch, kv heads, tokens, d) caught where they leave the last module before the rotation."""
    caught: list[torch.Tensor] = []
    place = {"qwen3": "k_norm", "gemma3_text": "k_norm", "gpt_neox": "query_key_value"}.get(name, "k_proj")
    config = model.config

    def catch(_module: nn.Module, _args: Any, out: torch.Tensor) -> None:
        if place == "query_key_value":
            out = out.unflatten(-1, (config.num_attention_heads, 3, -1))[..., 1, :].transpose(1, 2)
        elif place == "k_proj":
            out = out.unflatten(-1, (config.num_key_value_heads, -1)).transpose(1, 2)
        elif out.shape[1] == ids.shape[1]:  # the norm came before heads and tokens changed places
            out = out.transpose(1, 2)
        caught.append(out)

    handles = [getattr(attention, place).register_forward_hook(catch) for attention in attentions_of(model)]
    model(ids)
    for handle in handles:
        handle.remove()
    return caught


@pytest.mark.parametrize("name", ROTARY)
def test_unrotate_gives_the_keys_before_the_rotation(name: str) -> None:
    model = tiny_model(name)
    ids = tiny_tokens(2, 24)
    wanted = keys_before_rotation(model, name, ids)
    calls: list[AttentionCall] = []
    with observed_attention(model, attentions_of(model), calls.append):
        model(ids)
    for call, before in zip(calls, wanted, strict=True):
        assert call.rotation is not None and rotation_gain(call.rotation) == pytest.approx(1.0, abs=1e-6)
        assert (call.k - before).abs().max() > 0.1, "the keys were rotated at all"
        # Two rotations in float32: 4 products of numbers of size 1 to 10.
        torch.testing.assert_close(unrotate(call.k, call.rotation), before, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_without_a_rotation_nothing_is_undone(name: str) -> None:
    model = tiny_model(name)
    calls: list[AttentionCall] = []
    with observed_attention(model, attentions_of(model), calls.append):
        model(tiny_tokens(1, 9))
    assert all(call.rotation is None for call in calls)
    assert all(unrotate(call.k, call.rotation) is call.k for call in calls)


@pytest.mark.parametrize("name", ROTARY)
def test_unrotate_takes_gradients_to_the_keys_before_the_rotation(name: str) -> None:
    """d loss / d (keys before) is the un-rotated d loss / d (keys after); autograd through the model says so."""
    model = tiny_model(name).double()
    ids = tiny_tokens(2, 12)
    before: list[torch.Tensor] = []
    place = {"qwen3": "k_norm", "gemma3_text": "k_norm", "gpt_neox": "query_key_value"}.get(name, "k_proj")

    def keep(_module: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.detach().requires_grad_(True)
        before.append(out)
        return out

    after: list[AttentionCall] = []

    def observe(call: AttentionCall) -> None:
        call.k.retain_grad()
        after.append(call)

    handles = [getattr(attention, place).register_forward_hook(keep) for attention in attentions_of(model)]
    with torch.enable_grad(), observed_attention(model, attentions_of(model), observe):
        model(ids).logits.square().sum().backward()
    for handle in handles:
        handle.remove()
    for call, keys in zip(after, before, strict=True):
        assert keys.grad is not None and call.k.grad is not None
        own = unrotate(call.k.grad, call.rotation)
        heads = call.k.shape[1]
        if place == "query_key_value":
            wanted = keys.grad.unflatten(-1, (heads, 3, -1))[..., 1, :].transpose(1, 2)
        elif place == "k_proj":
            wanted = keys.grad.unflatten(-1, (heads, -1)).transpose(1, 2)
        else:
            wanted = keys.grad if keys.shape[1] == heads else keys.grad.transpose(1, 2)
        scale = wanted.abs().max()
        assert scale > 0
        # The rotation's cos and sin are made in float32, whatever the model is held in.
        assert (own - wanted).abs().max() < 1e-6 * scale


def test_a_scaled_rotation_comes_back_scaled() -> None:
    """Long-context variants multiply cos and sin by a factor; ``rotation_gain`` is its square."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(1, 7, 8, generator=generator).repeat(1, 1, 2)
    rotation = (1.3 * angles.cos(), 1.3 * angles.sin())
    x = torch.randn(2, 3, 7, 20, generator=generator)
    low, high = x[..., :8], x[..., 8:16]
    cos, sin = rotation[0][..., :8], rotation[1][..., :8]
    rotated = torch.cat((low * cos - high * sin, high * cos + low * sin, x[..., 16:]), -1)
    back = unrotate(rotated, rotation)
    assert rotation_gain(rotation) == pytest.approx(1.69, rel=1e-6)
    torch.testing.assert_close(back[..., :16], 1.69 * x[..., :16], atol=1e-5, rtol=0)
    assert torch.equal(back[..., 16:], x[..., 16:])
