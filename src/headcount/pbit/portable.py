"""Serialisation of models as a JSON description and tensors, without code in files.

Supported models: ``nn.Sequential`` of linear layers and the layers in ``LAYERS``, ``QuantisedRNN`` with a linear
readout, and ``PBitAttention`` with the embeddings of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headcount.core.payload import JsonObject
from headcount.pbit.layer import PBitAttention, SetEmbedding, SymbolEmbedding
from headcount.pbit.recurrent import QuantisedRNN

LAYERS: dict[str, type[nn.Module]] = {
    layer.__name__: layer for layer in (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity, nn.Flatten)
}
"""Parameter-free layers by name, with their default settings."""

Parts = tuple[JsonObject, dict[str, Tensor]]

_EMBEDDINGS: dict[str, Any] = {"symbols": SymbolEmbedding, "sets": SetEmbedding}
_MATRICES = ("query", "key", "value")
_SCALARS = (
    "precision_bits",
    "project_shift",
    "value_shift",
    "logit_shift",
    "logit_fraction",
    "value_fraction",
)


def describe(model: Any) -> Parts | None:
    """The description and tensors from which ``rebuild`` reconstructs the model; ``None`` if it is not supported."""
    if isinstance(model, PBitAttention):
        return _describe_attention(model)
    if isinstance(model, QuantisedRNN):
        return _describe_rnn(model)
    if type(model) is nn.Sequential:
        layers = [_layer_spec(layer) for layer in model]
        if all(layer is not None for layer in layers):
            return {"kind": "sequential", "layers": layers}, dict(model.state_dict())
    return None


def _describe_attention(model: PBitAttention) -> Parts | None:
    name = next((name for name, kind in _EMBEDDINGS.items() if type(model.embedding) is kind), None)
    if name is None:
        return None
    embedding_fields = vars(model.embedding)
    tensors = {
        f"embedding.{field}": torch.from_numpy(value)
        for field, value in embedding_fields.items()
        if isinstance(value, np.ndarray)
    }
    tensors |= {field: torch.from_numpy(getattr(model, field)) for field in _MATRICES}
    numbers = {field: value for field, value in embedding_fields.items() if not isinstance(value, np.ndarray)}
    scalars = {field: getattr(model, field) for field in _SCALARS}
    return {"kind": "attention", "embedding": name, "embedding_numbers": numbers, **scalars}, tensors


def _describe_rnn(model: QuantisedRNN) -> Parts | None:
    if type(model.readout) is not nn.Linear or model.readout.bias is None or not model.cell.bias:
        return None
    spec = {
        "kind": "gru" if isinstance(model.cell, nn.GRUCell) else "rnn",
        "inputs": model.cell.input_size,
        "units": model.cell.hidden_size,
        "bits": model.bits,
        "tokens": model.tokens,
        "dim": model.dim,
    }
    return spec, dict(model.state_dict())


def _layer_spec(layer: nn.Module) -> list[Any] | None:
    if type(layer) is nn.Linear:
        return ["Linear", layer.in_features, layer.out_features, layer.bias is not None]
    name = type(layer).__name__
    plain = LAYERS.get(name) is type(layer) and layer.extra_repr() == LAYERS[name]().extra_repr()
    return [name] if plain else None


def rebuild(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Reconstruct a model from the output of ``describe``, in evaluation mode."""
    if spec["kind"] == "attention":
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        embedding_fields = {name.removeprefix("embedding."): value for name, value in arrays.items() if "." in name}
        embedding = _EMBEDDINGS[spec["embedding"]](**embedding_fields, **spec["embedding_numbers"])
        query, key, value = (arrays[name] for name in _MATRICES)
        return PBitAttention(embedding, query, key, value, **{name: spec[name] for name in _SCALARS})
    model: nn.Module
    if spec["kind"] == "sequential":
        model = nn.Sequential(*(_layer(*layer) for layer in spec["layers"]))
    else:
        cell = (nn.GRUCell if spec["kind"] == "gru" else nn.RNNCell)(spec["inputs"], spec["units"])
        readout = nn.Linear(spec["units"], spec["dim"])
        model = QuantisedRNN(cell, readout, spec["bits"], spec["tokens"], spec["dim"])
    if tensors:
        model.to(next(iter(tensors.values())).dtype)
    model.load_state_dict(dict(tensors))
    return model.eval()


def _layer(name: str, *sizes: Any) -> nn.Module:
    return nn.Linear(sizes[0], sizes[1], bias=sizes[2]) if name == "Linear" else LAYERS[name]()
