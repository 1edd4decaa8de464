"""What a model's attention is: heads, dimensions and latents, and the three quantities they cost.

``ModelSpec`` is the one currency between the stages: read off a pretrained model, planned, or built. Its
counts are exact; tests hold them against the real tensors and the live cache object.

Letters: h = ``hidden``, H = ``n_heads``, K = ``n_kv_heads``, d = ``qk_dim``, e = ``v_dim`` (per head),
r_k = ``k_rank``, r_v = ``v_rank`` (joint latents over all KV heads of a layer).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from headcount.core.errors import HeadcountError

Form = Literal["dense", "fast", "small"]
"""How keys and values are cached.

``dense``: as the source model does. ``fast``: keys projected after the rotary embedding and never rebuilt.
``small``: keys projected before it, rebuilt and rotated at every step. Values are a joint latent in both.
"""


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
    """Leading dimensions of each head that are rotated (0: positions enter elsewhere)."""
    window: int | None = None
    """Tokens a sliding-window layer looks back on, itself included; ``None``: all."""
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised per head (Qwen3, Gemma 3): two weight vectors of length d."""
    causal: bool = True
    form: Form = "dense"
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
        if self.form == "dense":
            if self.k_rank is not None or self.v_rank is not None:
                raise ValueError("a dense layer has no ranks")
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
        """Numbers that the key-value cache holds for one token of this layer (0 without a causal cache)."""
        if not self.causal:
            return 0
        if self.form == "dense":
            return self.k_width + self.v_width
        assert self.k_rank is not None and self.v_rank is not None
        return self.k_rank + self.v_rank

    @property
    def folds_keys(self) -> bool:
        """Whether the key latent is one product with the token: no rotation and no norm lies between."""
        return self.form != "dense" and not self.qk_norm and (self.form == "small" or self.rotary_dim == 0)

    @property
    def folds_values(self) -> bool:
        """Whether the way back from the value latent is folded into the output matrix.

        Folded, that matrix has H r_v h entries; apart, the two have K e r_v + H e h. Whichever is smaller.
        """
        if self.v_rank is None:
            return False
        apart = self.v_width * self.v_rank + self.n_heads * self.v_dim * self.hidden
        return self.n_heads * self.v_rank * self.hidden <= apart

    @property
    def matrix_params(self) -> int:
        """Entries of the attention's matrices: what a token is multiplied with."""
        queries = self.hidden * self.n_heads * self.qk_dim
        if self.form == "dense":
            return queries + self.hidden * (self.k_width + self.v_width) + self.n_heads * self.v_dim * self.hidden
        assert self.k_rank is not None and self.v_rank is not None
        folded = self.folds_keys
        keys = self.hidden * self.k_rank if folded else (self.hidden + self.k_rank) * self.k_width
        rebuild = self.k_width * self.k_rank
        output = self.n_heads * (self.v_rank if self.folds_values else self.v_dim) * self.hidden
        expand = 0 if self.folds_values else self.v_width * self.v_rank
        return queries + keys + rebuild + self.hidden * self.v_rank + expand + output

    @property
    def attention_params(self) -> int:
        """All attention parameters of the layer: matrices, biases, query and key norms."""
        norms = 2 * self.qk_dim if self.qk_norm else 0
        if self.form == "dense":
            biases = self.qkv_bias * (self.n_heads * self.qk_dim + self.k_width + self.v_width)
            return self.matrix_params + norms + biases + self.o_bias * self.hidden
        assert self.k_rank is not None and self.v_rank is not None
        biases = self.qkv_bias * self.n_heads * self.qk_dim + self.hidden  # queries; the output always has one
        if self.form == "small":
            biases += self.k_width  # the mean key, rebuilt with the latent
        if not self.folds_keys:
            biases += self.qkv_bias * self.k_width
        return self.matrix_params + norms + biases

    def attention_flops_per_token(self, context: int) -> int:
        """Floating-point operations (a multiply-add is 2) of one decoding step over ``context`` tokens.

        2 * matrix parameters for the projections, and for each visible token 2 H (d + e) for scores and
        mixing (dense), 2 H (r_k + r_v) (fast), 2 H (d + r_v) + 2 r_k K d (small: keys are rebuilt).
        """
        seen = context if self.window is None else min(context, self.window)
        if self.form == "dense":
            per_seen = 2 * self.n_heads * (self.qk_dim + self.v_dim)
            return 2 * self.matrix_params + seen * per_seen
        assert self.k_rank is not None and self.v_rank is not None
        rebuild = self.k_width * self.k_rank
        # k_up (fast) and v_up are applied to every query head, though each pair of KV head and rank has one entry.
        products = self.matrix_params - rebuild
        if not self.folds_values:
            products += (self.n_heads - self.n_kv_heads) * self.v_dim * self.v_rank
        if self.form == "fast":
            per_seen = 2 * self.n_heads * (self.k_rank + self.v_rank)
            return 2 * (products + self.n_heads * self.qk_dim * self.k_rank) + seen * per_seen
        per_seen = 2 * self.n_heads * (self.qk_dim + self.v_rank) + 2 * rebuild
        return 2 * products + seen * per_seen


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
        """Numbers cached for one token, all layers."""
        return sum(layer.cache_numbers_per_token for layer in self.layers)

    def cache_bytes_per_token(self, dtype: str = "float32") -> int:
        """Bytes cached for one token, all layers, while it is inside every window."""
        if dtype not in DTYPE_BYTES:
            raise HeadcountError(f"unknown dtype {dtype!r} for a cache", fix=f"use one of {', '.join(DTYPE_BYTES)}")
        return self.cache_numbers_per_token * DTYPE_BYTES[dtype]

    def attention_flops_per_token(self, context: int) -> int:
        """Floating-point operations of all attention layers for one decoding step over ``context`` tokens."""
        return sum(layer.attention_flops_per_token(context) for layer in self.layers)


DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number in each dtype that a cache may have."""
