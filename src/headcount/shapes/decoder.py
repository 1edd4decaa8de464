"""A language model with unequal layers, as numbers: what ``plan --scratch`` writes and ``build`` makes.

A Llama-like decoder (RMSNorm, SwiGLU, rotary embedding, grouped heads) whose layers may differ in heads, in the
query/key and value dimensions, and in MLP width. Counts are exact; tests compare them with the built module and the
live cache object.

Letters: V = ``vocab``, h = ``hidden``, H, K, d, e as in ``headcount.core.spec``, m = ``intermediate_size``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import torch
from pydantic import BaseModel, ConfigDict, Field

from headcount.core.errors import HeadcountError
from headcount.core.seeds import derive
from headcount.core.spec import LayerSpec, ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DecoderLayer(BaseModel):
    """One layer: its attention shape, its MLP width, and the reason for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_heads: int = Field(ge=1)
    n_kv_heads: int = Field(ge=1)
    qk_dim: int = Field(ge=2, multiple_of=2)
    v_dim: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    reason: str = ""

    @pydantic.model_validator(mode="after")
    def _divides(self) -> DecoderLayer:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}")
        return self


class DecoderSpec(BaseModel):
    """A whole model.

    Parameters: V h for the embedding (2 V h when untied); per layer, the attention parameters, 3 h m for the MLP and
    2 h for the norms; h for the final norm.

    >>> layer = DecoderLayer(n_heads=4, n_kv_heads=2, qk_dim=16, v_dim=16, intermediate_size=128)
    >>> spec = DecoderSpec(vocab=256, hidden=64, context=128, layers=(layer, layer))
    >>> spec.params, spec.cache_bytes_per_token("float32")
    (90432, 512)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab: int = Field(ge=2)
    hidden: int = Field(ge=2)
    context: int = Field(ge=1)
    layers: tuple[DecoderLayer, ...] = Field(min_length=1)
    tied: bool = True
    rope_theta: float = Field(default=10_000.0, gt=1)

    @property
    def attention(self) -> ModelSpec:
        """The attention layers only."""
        return ModelSpec(
            family="unequal_llama",
            layers=tuple(
                LayerSpec(
                    hidden=self.hidden,
                    n_heads=layer.n_heads,
                    n_kv_heads=layer.n_kv_heads,
                    qk_dim=layer.qk_dim,
                    v_dim=layer.v_dim,
                    rotary_dim=layer.qk_dim,
                )
                for layer in self.layers
            ),
        )

    @property
    def params(self) -> int:
        """Total number of parameters."""
        embedding = self.vocab * self.hidden * (1 if self.tied else 2)
        rest = sum(3 * self.hidden * layer.intermediate_size + 2 * self.hidden for layer in self.layers)
        return embedding + self.attention.attention_params + rest + self.hidden

    def cache_bytes_per_token(self, dtype: str = "float32") -> int:
        """Cache bytes per token, summed over all layers."""
        return self.attention.cache_bytes_per_token(dtype)

    def config(self) -> Any:
        """The transformers config of the model."""
        from headcount.pretrained.runtimes.modeling_unequal import UnequalLlamaConfig

        layers = self.layers
        config = UnequalLlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            num_hidden_layers=len(layers),
            max_position_embeddings=self.context,
            tie_word_embeddings=self.tied,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            layer_n_heads=[layer.n_heads for layer in layers],
            layer_n_kv_heads=[layer.n_kv_heads for layer in layers],
            layer_qk_dim=[layer.qk_dim for layer in layers],
            layer_v_dim=[layer.v_dim for layer in layers],
            layer_intermediate_size=[layer.intermediate_size for layer in layers],
            bos_token_id=None,
            eos_token_id=None,
        )
        config._attn_implementation = "sdpa"
        return config


def build_decoder(spec: DecoderSpec, seed: int = 0) -> PreTrainedModel:
    """The model with random weights drawn from ``seed``; the state of the global generator is preserved.

    The model works with any trainer: ``model(input_ids, labels=labels).loss``, including gradient checkpointing.
    """
    from headcount.pretrained.runtimes.modeling_unequal import UnequalLlamaForCausalLM
    from headcount.pretrained.runtimes.register import register_trimmed

    register_trimmed()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "weights", "decoder"))
        return UnequalLlamaForCausalLM(spec.config())


def save_decoder(model: PreTrainedModel, out: Path) -> None:
    """Write the model's files into ``out``; each file is written atomically.

    transformers loads the folder with ``trust_remote_code=True``, or without it when headcount is installed and
    imported.
    """
    from headcount.pretrained.opening.loading import quiet_transformers

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as place:
        try:
            with quiet_transformers():
                model.save_pretrained(place)
            for file in sorted(Path(place).iterdir()):
                file.replace(out / file.name)
        except OSError as error:
            raise HeadcountError(
                f"cannot write the model to {out} ({error})", fix="free space, or use another --out"
            ) from error
