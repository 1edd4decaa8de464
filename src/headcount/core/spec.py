"""The structure of a model's attention: heads, dimensions and latents, and the three resulting costs.

``ModelSpec`` is the common representation of all stages: read from a pretrained model, planned, or built. Its
counts are exact; tests compare them with the real tensors and the live cache object.

The *form* of a layer is how it caches keys and values; ``headcount.core.forms`` computes what depends on it.

Letters: h = ``hidden``, H = ``n_heads``, K = ``n_kv_heads``, d = ``qk_dim``, e = ``v_dim`` (per head),
r_k = ``k_rank``, r_v = ``v_rank`` (joint latents over all KV heads of a layer).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from headcount.core.errors import HeadcountError
from headcount.core.forms import DENSE_FORM, FORMS, alternatives, trimmed_names


def _one_of(value: Any, names: Collection[str]) -> Any:
    """Validate a name at construction, so that registered forms are accepted, with the error message of ``Literal``."""
    if value not in names:
        expected = alternatives([repr(name) for name in names])
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return value


FormName = Annotated[str, BeforeValidator(lambda value: _one_of(value, tuple(FORMS)))]
"""The name of a form, dense or trimmed."""
TrimmedFormName = Annotated[str, BeforeValidator(lambda value: _one_of(value, trimmed_names()))]
"""The name of a form that a plan can request."""


class LayerSpec(BaseModel):
    """The attention of one layer.

    Cache numbers per token: K(d + e) when dense, r_k + r_v as a latent.

    >>> dense = LayerSpec(hidden=576, n_heads=9, n_kv_heads=3, qk_dim=64, v_dim=64, rotary_dim=64)
    >>> dense.cache_numbers_per_token, dense.attention_params
    (384, 884736)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int
    n_heads: int
    n_kv_heads: int
    qk_dim: int
    v_dim: int
    rotary_dim: int = 0
    """Number of leading dimensions of each head that are rotated (0: positions are encoded elsewhere)."""
    window: int | None = None
    """Tokens visible in a sliding-window layer, including the current one; ``None``: all."""
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    """Whether queries and keys are normalised per head (Qwen3, Gemma 3), with two weight vectors of length d."""
    causal: bool = True
    form: FormName = DENSE_FORM
    k_rank: int | None = None
    v_rank: int | None = None

    @model_validator(mode="after")
    def _consistent(self) -> LayerSpec:
        for name in ("hidden", "n_heads", "n_kv_heads", "qk_dim", "v_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")
        if not 0 <= self.rotary_dim <= self.qk_dim:
            raise ValueError(f"rotary_dim {self.rotary_dim} is outside [0, qk_dim {self.qk_dim}]")
        if not FORMS[self.form].trimmed:
            if self.k_rank is not None or self.v_rank is not None:
                raise ValueError(f"a {self.form} layer has no ranks")
        else:
            for name, rank, width in (
                ("k_rank", self.k_rank, self.k_width),
                ("v_rank", self.v_rank, self.v_width),
            ):
                if rank is None or not 1 <= rank <= width:
                    raise ValueError(f"{name} must be in [1, {width}], not {rank}")
        return self

    @property
    def k_width(self) -> int:
        """Numbers in the keys of one token, all KV heads stacked: K d."""
        return self.n_kv_heads * self.qk_dim

    @property
    def v_width(self) -> int:
        """Numbers in the values of one token, all KV heads stacked: K e."""
        return self.n_kv_heads * self.v_dim

    @property
    def cache_numbers_per_token(self) -> int:
        """Numbers that the key-value cache stores per token in this layer (0 without a causal cache)."""
        return FORMS[self.form].cache_numbers_per_token(self) if self.causal else 0

    @property
    def rebuilt_numbers_per_token(self) -> int:
        """Numbers recomputed at every decoding step for each cached token."""
        return FORMS[self.form].rebuilt_numbers_per_token(self)

    @property
    def rebuilds_keys(self) -> bool:
        """Whether all cached keys are rebuilt at every decoding step."""
        return FORMS[self.form].rebuilds_keys

    @property
    def folds_keys(self) -> bool:
        """Whether the key latent is a single linear map of the token, with no rotation or norm in between."""
        return FORMS[self.form].folds_keys(self)

    @property
    def folds_values(self) -> bool:
        """Whether the up-projection of the value latent is folded into the output matrix."""
        return FORMS[self.form].folds_values(self)

    @property
    def matrix_params(self) -> int:
        """Number of entries in the attention matrices that a token is multiplied with."""
        return FORMS[self.form].matrix_params(self)

    @property
    def attention_params(self) -> int:
        """All attention parameters of the layer: matrices, biases, query and key norms."""
        norms = 2 * self.qk_dim if self.qk_norm else 0
        return self.matrix_params + norms + FORMS[self.form].bias_params(self)

    def attention_flops_per_token(self, context: int) -> int:
        """Floating-point operations (a multiply-add is 2) of one decoding step over ``context`` tokens.

        Counts the projections and, for each visible token, scores, mixing and rebuilding; see ``headcount.core.forms``.
        """
        seen = context if self.window is None else min(context, self.window)
        return FORMS[self.form].flops_per_token(self, seen)


class ModelSpec(BaseModel):
    """The attention of a whole model.

    >>> layer = LayerSpec(hidden=64, n_heads=4, n_kv_heads=2, qk_dim=16, v_dim=16)
    >>> ModelSpec(family="llama", layers=(layer, layer)).cache_bytes_per_token("float32")
    512
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    layers: tuple[LayerSpec, ...]

    @property
    def attention_params(self) -> int:
        """Attention parameters of all layers."""
        return sum(layer.attention_params for layer in self.layers)

    @property
    def cache_numbers_per_token(self) -> int:
        """Numbers cached for one token in all layers."""
        return sum(layer.cache_numbers_per_token for layer in self.layers)

    def cache_bytes_per_token(self, dtype: str = "float32") -> int:
        """Bytes cached for one token in all layers, as long as it is inside every window."""
        if dtype not in DTYPE_BYTES:
            raise HeadcountError(f"unknown dtype {dtype!r} for a cache", fix=f"use one of {', '.join(DTYPE_BYTES)}")
        return self.cache_numbers_per_token * DTYPE_BYTES[dtype]

    def attention_flops_per_token(self, context: int) -> int:
        """Floating-point operations of all attention layers for one decoding step over ``context`` tokens."""
        return sum(layer.attention_flops_per_token(context) for layer in self.layers)


DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number of each supported cache dtype."""
