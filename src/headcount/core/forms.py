"""Forms of the key-value cache: what a layer stores for each token and what it costs.

A ``Form`` answers every question whose answer depends on how keys and values are cached: which keys are projected,
which up-projections fold into other matrices, the numbers cached and rebuilt, parameters and FLOPs. ``LayerSpec``,
the planner, ``build``, the memory estimate of ``evaluate``, the report and the command line ask it; none of them
compares names of forms (``tests/core/test_forms.py`` checks that).

Forms are defined in core because ``LayerSpec`` is and computes its sizes with them. If they were in ``trimming``, they
would have to be injected, and the size of a spec would depend on which modules have been imported.

To add a form: one subclass of ``Form`` or ``Latent`` here and its entry in ``FORMS``; its tensors in
``trimming/trim/build.py`` and its module in ``pretrained/runtimes/headcount_attention.py``; a line in
``docs/trimming.md``; tests. The runtime is shipped with checkpoints and imports only torch and transformers, so it
cannot use this module: it has its own check, ``latent_form == "small"``, equivalent to ``rebuilds_keys`` here. For
every form, ``tests/pretrained/test_families.py`` and ``tests/trimming`` compare parameters, live cache and FLOPs of the
runtime with this module.

Letters: h = ``hidden``, H = ``n_heads``, K = ``n_kv_heads``, d = ``qk_dim``, e = ``v_dim`` (per head),
r_k = ``k_rank``, r_v = ``v_rank`` (joint latents over all KV heads of a layer), S = visible tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from headcount.core.errors import HeadcountError


class Layer(Protocol):
    """The attributes of a layer that a form reads; ``LayerSpec`` provides all of them."""

    @property
    def hidden(self) -> int:
        """h: width of the residual stream."""

    @property
    def n_heads(self) -> int:
        """H: query heads."""

    @property
    def n_kv_heads(self) -> int:
        """K: key-value heads."""

    @property
    def qk_dim(self) -> int:
        """d: dimension of queries and keys."""

    @property
    def v_dim(self) -> int:
        """e: dimension of values."""

    @property
    def k_width(self) -> int:
        """K d: numbers in the keys of one token."""

    @property
    def v_width(self) -> int:
        """K e: numbers in the values of one token."""

    @property
    def rotary_dim(self) -> int:
        """Number of rotated dimensions of each head."""

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""

    @property
    def o_bias(self) -> bool:
        """Whether the output projection has a bias."""

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head."""

    @property
    def k_rank(self) -> int | None:
        """r_k."""

    @property
    def v_rank(self) -> int | None:
        """r_v."""


class Form(ABC):
    """One way to cache keys and values. Sizes are for one layer; numbers per token are for one token in one layer.

    >>> FORMS["fast"].key_side(rotary=True), FORMS["small"].key_side(rotary=True), FORMS["fast"].key_side(rotary=False)
    ('rotated_keys', 'keys', 'keys')
    """

    name: ClassVar[str]
    """Its name in specs, plans, configs and options."""
    summary: ClassVar[str] = ""
    """A short description for the help of ``--form``."""
    trimmed: ClassVar[bool] = True
    """Whether it has ranks, so that a plan can request it."""
    projects_rotated_keys: ClassVar[bool] = False
    """Whether the key latent is computed after the rotary embedding."""
    rebuilds_keys: ClassVar[bool] = False
    """Whether all cached keys are rebuilt at every step; the constant part of the keys is then a bias of ``k_up``."""

    def key_side(self, rotary: bool) -> str:
        """The audit side whose directions the key latent retains; without rotation only plain keys exist."""
        return "rotated_keys" if rotary and self.projects_rotated_keys else "keys"

    def in_layer(self, rotary: bool) -> Form:
        """The form used by a layer when a plan requests this one; see ``Latent``."""
        return self

    def folds_keys(self, layer: Layer) -> bool:
        """Whether the key latent is a single linear map of the token, with no rotation or norm in between."""
        return False

    def folds_values(self, layer: Layer) -> bool:
        """Whether the up-projection of the value latent is folded into the output matrix."""
        return False

    def fixed_cache_numbers_per_token(self, layer: Layer) -> int:
        """Numbers cached regardless of the ranks; a plan deducts them from the budget before it allocates ranks."""
        return 0

    def rebuilt_numbers_per_token(self, layer: Layer) -> int:
        """Numbers recomputed at every step for each cached token."""
        return 0

    @abstractmethod
    def cache_numbers_per_token(self, layer: Layer) -> int:
        """Numbers that a causal cache stores per token."""

    @abstractmethod
    def matrix_params(self, layer: Layer) -> int:
        """Number of entries in the attention matrices."""

    @abstractmethod
    def bias_params(self, layer: Layer) -> int:
        """Number of entries in the biases, excluding the query and key norms."""

    @abstractmethod
    def flops_per_token(self, layer: Layer, seen: int) -> int:
        """Floating-point operations (a multiply-add is 2) of one decoding step over ``seen`` visible tokens."""


class Dense(Form):
    """Keys and values are cached as in the source model."""

    name = "dense"
    trimmed = False

    def cache_numbers_per_token(self, layer: Layer) -> int:
        """K (d + e)."""
        return layer.k_width + layer.v_width

    def matrix_params(self, layer: Layer) -> int:
        """Queries H d h, keys K d h, values K e h, output H e h."""
        queries = layer.hidden * layer.n_heads * layer.qk_dim
        return queries + layer.hidden * (layer.k_width + layer.v_width) + layer.n_heads * layer.v_dim * layer.hidden

    def bias_params(self, layer: Layer) -> int:
        """The biases of queries, keys, values and output that exist."""
        qkv = layer.n_heads * layer.qk_dim + layer.k_width + layer.v_width
        return layer.qkv_bias * qkv + layer.o_bias * layer.hidden

    def flops_per_token(self, layer: Layer, seen: int) -> int:
        """2 * matrix parameters + S * 2 H (d + e)."""
        return 2 * self.matrix_params(layer) + seen * 2 * layer.n_heads * (layer.qk_dim + layer.v_dim)


class Latent(Form):
    """Base of the forms with one joint latent for keys and one for values.

    Layers without a rotary embedding have only plain keys, which need no rebuilding, so every latent form becomes
    ``fast`` there.
    """

    def in_layer(self, rotary: bool) -> Form:
        """This form if keys are rotated, else ``fast``."""
        return self if rotary else FORMS[DEFAULT_FORM]

    def folds_keys(self, layer: Layer) -> bool:
        """True if the keys are projected before any rotation and without a norm."""
        return not layer.qk_norm and (layer.rotary_dim == 0 or not self.projects_rotated_keys)

    def folds_values(self, layer: Layer) -> bool:
        """True if the folded output matrix, H r_v h entries, is no larger than the two matrices, K e r_v + H e h."""
        _, v_rank = ranks_of(layer)
        apart = layer.v_width * v_rank + layer.n_heads * layer.v_dim * layer.hidden
        return layer.n_heads * v_rank * layer.hidden <= apart

    def cache_numbers_per_token(self, layer: Layer) -> int:
        """r_k + r_v + the fixed numbers."""
        return sum(ranks_of(layer)) + self.fixed_cache_numbers_per_token(layer)

    def matrix_params(self, layer: Layer) -> int:
        """Queries H d h, keys r_k h or (h + r_k) K d, k_up K d r_k, values r_v h, output as in ``folds_values``."""
        k_rank, v_rank = ranks_of(layer)
        folds_values = self.folds_values(layer)
        queries = layer.hidden * layer.n_heads * layer.qk_dim
        keys = layer.hidden * k_rank if self.folds_keys(layer) else (layer.hidden + k_rank) * layer.k_width
        k_up = layer.k_width * k_rank
        v_up = 0 if folds_values else layer.v_width * v_rank
        output = layer.n_heads * (v_rank if folds_values else layer.v_dim) * layer.hidden
        return queries + keys + k_up + layer.hidden * v_rank + v_up + output

    def bias_params(self, layer: Layer) -> int:
        """Queries and unfolded keys if the source has biases; rebuilt keys and the output always."""
        biases = layer.qkv_bias * layer.n_heads * layer.qk_dim + layer.hidden
        if self.rebuilds_keys:
            biases += layer.k_width  # the mean key, added when keys are rebuilt from the latent
        if not self.folds_keys(layer):
            biases += layer.qkv_bias * layer.k_width
        return biases

    def products_per_token(self, layer: Layer) -> int:
        """Multiply-adds per token with all matrices except ``k_up``, which each form applies differently.

        ``v_up`` is applied once per query head, although its entries are shared by the query heads of a KV head.
        """
        k_rank, v_rank = ranks_of(layer)
        products = self.matrix_params(layer) - layer.k_width * k_rank
        if not self.folds_values(layer):
            products += (layer.n_heads - layer.n_kv_heads) * layer.v_dim * v_rank
        return products


class Fast(Latent):
    """Keys are projected after the rotary embedding and queries into the same latent space; keys are never rebuilt."""

    name = "fast"
    summary = "keys never rebuilt"
    projects_rotated_keys = True

    def flops_per_token(self, layer: Layer, seen: int) -> int:
        """2 (products + H d r_k) + S * 2 H (r_k + r_v)."""
        k_rank, v_rank = ranks_of(layer)
        meeting = layer.n_heads * layer.qk_dim * k_rank
        return 2 * (self.products_per_token(layer) + meeting) + seen * 2 * layer.n_heads * (k_rank + v_rank)


class Small(Latent):
    """Keys are projected before the rotary embedding, which loses less, then rebuilt and rotated at every step."""

    name = "small"
    summary = "better, slower"
    rebuilds_keys = True

    def rebuilt_numbers_per_token(self, layer: Layer) -> int:
        """K d: every cached key."""
        return layer.k_width

    def flops_per_token(self, layer: Layer, seen: int) -> int:
        """2 products + S * (2 H (d + r_v) + 2 K d r_k)."""
        k_rank, v_rank = ranks_of(layer)
        per_seen = 2 * layer.n_heads * (layer.qk_dim + v_rank) + 2 * layer.k_width * k_rank
        return 2 * self.products_per_token(layer) + seen * per_seen


FORMS: dict[str, Form] = {form.name: form for form in (Dense(), Fast(), Small())}
"""All forms by name."""
DENSE_FORM, DEFAULT_FORM = Dense.name, Fast.name
"""The default form of a layer and the default form of a plan."""


def ranks_of(layer: Layer) -> tuple[int, int]:
    """(r_k, r_v) of a layer that has latents."""
    assert layer.k_rank is not None and layer.v_rank is not None
    return layer.k_rank, layer.v_rank


def trimmed_names() -> tuple[str, ...]:
    """Names of the forms that a plan can request.

    >>> trimmed_names()
    ('fast', 'small')
    """
    return tuple(name for name, form in FORMS.items() if form.trimmed)


def trimmed_form(name: str) -> Form:
    """The form of a plan, by name.

    >>> trimmed_form("dense")
    Traceback (most recent call last):
    headcount.core.errors.HeadcountError: unknown form 'dense'; use fast or small
    """
    if name not in trimmed_names():
        raise HeadcountError(f"unknown form {name!r}", fix=f"use {alternatives(trimmed_names())}")
    return FORMS[name]


def forms_help() -> str:
    """The help of ``--form``.

    >>> forms_help()
    'fast (keys never rebuilt) or small (better, slower).'
    """
    return alternatives([f"{name} ({FORMS[name].summary})" for name in trimmed_names()]) + "."


def alternatives(words: Sequence[str]) -> str:
    """The alternatives joined into a phrase.

    >>> alternatives(["a"]), alternatives(["a", "b", "c"])
    ('a', 'a, b or c')
    """
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
