"""Building a model with latent attention from a dense model and a plan, in closed form.

For one layer with projections x -> m + B A (x - m) of its stacked keys and values (A = ``down``, B = ``up``):

    v_proj  = A_v W_v; o_proj of head h = W_o,h B_v,g(h), or W_o,h after v_up = B_v (see ``folds_values``)
    o bias  = W_o ((I - B A) m_v + B A b_v), heads concatenated, since attention weights sum to one
    fast    k_down = A_k; k_up = B_k. The constant part of keys shifts all logits of a query equally: dropped.
    small   k_proj = A_k W_k (or k_down = A_k after a key norm), k_up = B_k with bias (I - B A) m_k + B A b_k
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from headcount.core.errors import HeadcountError
from headcount.pretrained.families import (
    TRIMMED_PREFIX,
    Projections,
    attention_of,
    family_of,
    layers_of,
    projections_of,
)
from headcount.pretrained.opening.fingerprint import fingerprint
from headcount.pretrained.opening.loading import is_trimmed
from headcount.pretrained.runtimes.register import register_trimmed
from headcount.trimming.audit.record import Audit
from headcount.trimming.audit.spectra import Directions
from headcount.trimming.plan.make import LayerPlan, Plan


def check_model(model: PreTrainedModel, plan: Plan) -> None:
    """Reject a model that the plan was not made for."""
    if is_trimmed(model):
        raise HeadcountError("the model is trimmed already", fix="trim the model that the plan was made for")
    if not family_of(model.config).trimmable:
        raise HeadcountError(f"{family_of(model.config).name} cannot be trimmed", fix="trim a decoder")
    actual = fingerprint(model)
    if actual != plan.record.fingerprint:
        raise HeadcountError(
            f"the plan was made for {plan.record.model} (fingerprint {plan.record.fingerprint}), "
            f"this model has {actual}",
            fix="audit and plan this model first",
        )


def latent_config(model: PreTrainedModel, plan: Plan) -> Any:
    """The config of the trimmed model: the dense config plus the latent settings."""
    from headcount.pretrained.runtimes.modeling_headcount import CLASSES

    dense = model.config
    config_class: Any = CLASSES[TRIMMED_PREFIX + dense.model_type][0]
    fields = {
        name: value
        for name, value in dense.to_dict().items()
        if name not in ("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path")
    }
    spec = plan.spec
    config = config_class(
        **fields,
        latent_form=plan.record.form,
        latent_layers=[{"k_rank": layer.k_rank, "v_rank": layer.v_rank} for layer in spec.layers],
        latent_qkv_bias=spec.layers[0].qkv_bias,
        qk_head_dim=max(layer.k_rank or 0 for layer in spec.layers),
        v_head_dim=max(layer.v_rank or 0 for layer in spec.layers),
    )
    # Read from the model, not the config: a checkpoint may have an untied head despite ``tie_word_embeddings: true``.
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    config.tie_word_embeddings = head is not None and head.weight is embedding.weight
    config._attn_implementation = "sdpa"
    return config


@torch.no_grad()
def build(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Build the trimmed model, without repair. Parameters outside attention share memory with ``model``."""
    from headcount.pretrained.runtimes.modeling_headcount import CLASSES

    check_model(model, plan)
    register_trimmed()
    family = family_of(model.config)
    config = latent_config(model, plan)
    with torch.device("meta"):
        trimmed: Any = CLASSES[config.model_type][1]["AutoModelForCausalLM"](config)
    tensors = dict(model.state_dict())
    prefixes = []
    names = {id(module): name for name, module in model.named_modules()}
    for layer in layers_of(model, family):
        prefixes.append(names[id(attention_of(layer, family))] + ".")
    state = {name: t for name, t in tensors.items() if not name.startswith(tuple(prefixes))}
    for index, (layer, prefix) in enumerate(zip(layers_of(model, family), prefixes, strict=True)):
        weights = projections_of(layer, family, model.config)
        made = _attention_tensors(weights, plan, index, config)
        for child, module in attention_of(layer, family).named_children():
            if child in ("q_norm", "k_norm"):
                made |= {f"{child}.{name}": t for name, t in module.state_dict().items()}
        state |= {prefix + name: t.to(weights.q) for name, t in made.items()}
    missing, unexpected = trimmed.load_state_dict(state, strict=False, assign=True)
    tied = set(getattr(trimmed, "_tied_weights_keys", None) or ())
    assert not unexpected and set(missing) <= tied, (missing, unexpected)
    for name, buffer in model.named_buffers():  # includes non-persistent ones, such as rotary frequencies
        place, _, last = name.rpartition(".")
        if not name.startswith(tuple(prefixes)):
            trimmed.get_submodule(place).register_buffer(last, buffer.clone(), persistent=name in tensors)
    trimmed.tie_weights()
    trimmed.generation_config = copy.deepcopy(model.generation_config)
    return cast(PreTrainedModel, trimmed.eval().requires_grad_(False))


def side_projection(
    audit: Audit, layer: int, side: str, rank: int, heads: list[int] | None
) -> tuple[torch.Tensor, ...]:
    """(mean (D,), down (rank, D), up (D, rank)) of one side, joint or per KV head; float64."""
    if heads is None:
        joint = audit.directions(layer, side)
        down, up = joint.projection(rank)
        return joint.mean, down, up
    parts: list[Directions] = audit.head_directions(layer, side)
    pieces = [part.projection(head_rank) for part, head_rank in zip(parts, heads, strict=True)]
    down = torch.block_diag(*(down for down, _ in pieces))
    up = torch.block_diag(*(up for _, up in pieces))
    return torch.cat([part.mean for part in parts]), down, up


def _attention_tensors(weights: Projections, plan: Plan, index: int, config: Any) -> dict[str, torch.Tensor]:
    """The tensors of ``LatentAttention``, by name, in float64; see the module for the formulas."""
    layer_plan: LayerPlan = plan.record.layers[index]
    layer = plan.spec.layers[index]
    side = plan.audit.key_side[plan.record.form]
    k_mean, k_down, k_up = side_projection(plan.audit, index, side, layer_plan.k_rank, layer_plan.k_head_ranks)
    v_mean, v_down, v_up = side_projection(plan.audit, index, "values", layer_plan.v_rank, layer_plan.v_head_ranks)
    weights = _double(weights)
    made = {"q_proj.weight": weights.q, "v_proj.weight": v_down @ weights.v}
    if weights.q_bias is not None:
        made["q_proj.bias"] = weights.q_bias
    if layer.folds_keys:
        made["k_proj.weight"] = k_down @ weights.k
    else:
        made |= {"k_proj.weight": weights.k, "k_down.weight": k_down}
        if weights.k_bias is not None:
            made["k_proj.bias"] = weights.k_bias
    made["k_up.weight"] = k_up
    if layer.rebuilds_keys:
        made["k_up.bias"] = _constant(k_mean, k_down, k_up, weights.k_bias if layer.folds_keys else None)
    heads = layer.n_heads
    group = torch.arange(heads, device=weights.o.device) // (heads // layer.n_kv_heads)
    o = weights.o.view(-1, heads, layer.v_dim)
    up = v_up.view(layer.n_kv_heads, layer.v_dim, -1)[group]
    if layer.folds_values:
        made["o_proj.weight"] = torch.einsum("ohe,her->ohr", o, up).flatten(1)
    else:
        made |= {"o_proj.weight": weights.o, "v_up.weight": v_up}
    constant = _constant(v_mean, v_down, v_up, weights.v_bias).view(layer.n_kv_heads, -1)[group]
    bias = torch.einsum("ohe,he->o", o, constant)
    made["o_proj.bias"] = bias if weights.o_bias is None else bias + weights.o_bias
    return made


def _constant(mean: torch.Tensor, down: torch.Tensor, up: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The constant term of m + B A (W x + b - m)."""
    return mean - up @ (down @ (mean if bias is None else mean - bias))


def _double(weights: Projections) -> Projections:
    fields: dict[str, Any] = {name: getattr(weights, name) for name in weights.__dataclass_fields__}
    fields = {name: None if t is None else t.double().cpu() for name, t in fields.items()}
    return Projections(**fields)


def output_of(attention: nn.Module) -> nn.Linear:
    """The output matrix of a trimmed layer, which the repair step refits."""
    return cast(nn.Linear, attention.o_proj)
