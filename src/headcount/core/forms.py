"""Forms of the key-value cache: what a layer stores for each token, and what that costs.

A ``Form`` answers every question whose answer depends on how keys and values are cached: which keys are projected,
which up-projections fold into other matrices, the numbers cached and rebuilt, parameters and FLOPs. ``LayerSpec``,
the planner, ``build``, the memory estimate of ``evaluate``, the report and the command line ask it; none of them
compares names of forms (``tests/core/test_forms.py`` checks that).

Forms live in core because ``LayerSpec`` does, and its sizes are theirs. Held in ``trimming``, they would have to be
injected, and the size of a spec would depend on what has been imported.

To add a form: one subclass of ``Form`` or ``Latent`` here and its row in ``FORMS``; its tensors in
``trimming/trim/build.py`` and its module in ``pretrained/runtimes/headcount_attention.py``; a line in
``docs/trimming.md``; tests. The runtime travels with checkpoints and imports torch and transformers only, so it cannot
ask this module: it has its own check, ``latent_form == "small"``, which is ``rebuilds_keys`` here. For every form,
``tests/pretrained/test_families.py`` and ``tests/trimming`` compare parameters, live cache and FLOPs of the runtime
with this module.

Letters: h = ``hidden``, H = ``n_heads``, K = ``n_kv_heads``, d = ``qk_dim``, e = ``v_dim`` (per head),
r_k = ``k_rank``, r_v = ``v_rank`` (joint latents over all KV heads of a layer), S = visible tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from headcount.core.errors import HeadcountError


class Layer(Protocol):
    """What a form reads of a layer; ``LayerSpec`` has it all."""

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
        """Dimensions of each head that are rotated."""

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""

    @property
    def o_bias(self) -> bool:
        """Whether the output has one."""

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
    """One way to cache keys and values. Sizes are of one layer; numbers per token are of one token in it.

    >>> FORMS["fast"].key_side(rotary=True), FORMS["small"].key_side(rotary=True), FORMS["fast"].key_side(rotary=False)
    ('rotated_keys', 'keys', 'keys')
    """

    name: ClassVar[str]
    """What specs, plans, configs and options call it."""
    summary: ClassVar[str] = ""
    """A few words for the help of ``--form``."""
    trimmed: ClassVar[bool] = True
    """Whether it has ranks, so that a plan can ask for it."""
    projects_rotated_keys: ClassVar[bool] = False
    """Whether the key latent is made after the rotary embedding."""
    rebuilds_keys: ClassVar[bool] = False
    """Whether all cached keys are rebuilt at every step; their constant part is then a bias of ``k_up``."""

    def key_side(self, rotary: bool) -> str:
        """The side of an audit whose directions the key latent keeps; without rotation there are plain keys only."""
        return "rotated_keys" if rotary and self.projects_rotated_keys else "keys"

    def in_layer(self, rotary: bool) -> Form:
        """The form that a layer has when a plan asks for this one; see ``Latent``."""
        return self

    def folds_keys(self, layer: Layer) -> bool:
        """Whether the key latent is one product with the token: no rotation and no norm lies between."""
        return False

    def folds_values(self, layer: Layer) -> bool:
        """Whether the up-projection of the value latent is folded into the output matrix."""
        return False

    def fixed_cache_numbers_per_token(self, layer: Layer) -> int:
        """Numbers cached whatever the ranks; a plan pays for them before it gives out ranks."""
        return 0

    def rebuilt_numbers_per_token(self, layer: Layer) -> int:
        """Numbers computed anew at every step for each cached token."""
        return 0

    @abstractmethod
    def cache_numbers_per_token(self, layer: Layer) -> int:
        """Numbers that a causal cache holds."""

    @abstractmethod
    def matrix_params(self, layer: Layer) -> int:
        """Entries of the attention's matrices."""

    @abstractmethod
    def bias_params(self, layer: Layer) -> int:
        """Entries of its biases, without the query and key norms."""

    @abstractmethod
    def flops_per_token(self, layer: Layer, seen: int) -> int:
        """Floating-point operations (a multiply-add is 2) of one decoding step over ``seen`` visible tokens."""


class Dense(Form):
    """Keys and values are cached as the source model does."""

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
        """Of queries, keys, values and output, where there are some."""
        qkv = layer.n_heads * layer.qk_dim + layer.k_width + layer.v_width
        return layer.qkv_bias * qkv + layer.o_bias * layer.hidden

    def flops_per_token(self, layer: Layer, seen: int) -> int:
        """2 * matrix parameters + S * 2 H (d + e)."""
        return 2 * self.matrix_params(layer) + seen * 2 * layer.n_heads * (layer.qk_dim + layer.v_dim)


class Latent(Form):
    """What forms with one joint latent for keys and one for values share.

    Layers without a rotary embedding have one kind of keys, which need no rebuilding: there every latent form is
    ``fast``.
    """

    def in_layer(self, rotary: bool) -> Form:
        """This form where keys are rotated, else ``fast``."""
        return self if rotary else FORMS[DEFAULT_FORM]

    def folds_keys(self, layer: Layer) -> bool:
        """Keys that are projected as the weights make them: before a rotation, and without a norm."""
        return not layer.qk_norm and (layer.rotary_dim == 0 or not self.projects_rotated_keys)

    def folds_values(self, layer: Layer) -> bool:
        """Folded, the output matrix has H r_v h entries; apart, the two have K e r_v + H e h. Whichever is smaller."""
        _, v_rank = ranks_of(layer)
        apart = layer.v_width * v_rank + layer.n_heads * layer.v_dim * layer.hidden
        return layer.n_heads * v_rank * layer.hidden <= apart

    def cache_numbers_per_token(self, layer: Layer) -> int:
        """r_k + r_v + what is fixed."""
        return sum(ranks_of(layer)) + self.fixed_cache_numbers_per_token(layer)

    def matrix_params(self, layer: Layer) -> int:
        """Queries H d h, keys r_k h or (h + r_k) K d, k_up K d r_k, values r_v h, output as ``folds_values`` says."""
        k_rank, v_rank = ranks_of(layer)
        folds_values = self.folds_values(layer)
        queries = layer.hidden * layer.n_heads * layer.qk_dim
        keys = layer.hidden * k_rank if self.folds_keys(layer) else (layer.hidden + k_rank) * layer.k_width
        k_up = layer.k_width * k_rank
        v_up = 0 if folds_values else layer.v_width * v_rank
        output = layer.n_heads * (v_rank if folds_values else layer.v_dim) * layer.hidden
        return queries + keys + k_up + layer.hidden * v_rank + v_up + output

    def bias_params(self, layer: Layer) -> int:
        """Queries and unfolded keys where the source has biases, rebuilt keys always, the output always."""
        biases = layer.qkv_bias * layer.n_heads * layer.qk_dim + layer.hidden
        if self.rebuilds_keys:
            biases += layer.k_width  # the mean key, rebuilt with the latent
        if not self.folds_keys(layer):
            biases += layer.qkv_bias * layer.k_width
        return biases

    def products_per_token(self, layer: Layer) -> int:
        """Multiply-adds of a token with the matrices, without ``k_up``, which each form applies in its own way.

        ``v_up`` is applied to every query head, though each pair of KV head and rank has one entry.
        """
        k_rank, v_rank = ranks_of(layer)
        products = self.matrix_params(layer) - layer.k_width * k_rank
        if not self.folds_values(layer):
            products += (layer.n_heads - layer.n_kv_heads) * layer.v_dim * v_rank
        return products


class Fast(Latent):
    """Keys are projected after the rotary embedding. Queries are projected to meet them: keys are never rebuilt."""

    name = "fast"
    summary = "keys never rebuilt"
    projects_rotated_keys = True

    def flops_per_token(self, layer: Layer, seen: int) -> int:
        """2 (products + H d r_k) + S * 2 H (r_k + r_v)."""
        k_rank, v_rank = ranks_of(layer)
        meeting = layer.n_heads * layer.qk_dim * k_rank
        return 2 * (self.products_per_token(layer) + meeting) + seen * 2 * layer.n_heads * (k_rank + v_rank)


class Small(Latent):
    """Keys are projected before the rotary embedding, which loses less, and rebuilt and rotated at every step."""

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
"""What a layer has, and what a plan asks for, unless told otherwise."""


def ranks_of(layer: Layer) -> tuple[int, int]:
    """(r_k, r_v) of a layer that has latents."""
    assert layer.k_rank is not None and layer.v_rank is not None
    return layer.k_rank, layer.v_rank


def trimmed_names() -> tuple[str, ...]:
    """Names of the forms that a plan can ask for.

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
    """Words to choose from, as a phrase.

    >>> alternatives(["a"]), alternatives(["a", "b", "c"])
    ('a', 'a, b or c')
    """
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
