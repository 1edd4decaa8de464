"""The guarantees of a construction and the results of its verification."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Guarantee = Literal["all inputs", "the subsets given"]
"""``all inputs``: the argument covers every input of these sizes. ``the subsets given``: qSA with every set
that passes the construction's check (a positive gap); every set in the input is checked."""


class Certificate(BaseModel):
    """Size and guarantee of one construction, in exact arithmetic.

    In qSA, a token has different query and key vectors, so its dimension can be counted in two
    ways: ``embedding_dim`` is the width m of the matrices, with a token map of two outputs (queries separate
    from keys and values), as in m = d' + 2q; ``single_map_dim`` is the width if one embedding contains
    both. The two agree for the matching constructions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    embedding_dim: int
    single_map_dim: int
    heads: int
    layers: int
    order: int
    guarantee: Guarantee
    gap: float
    """Difference between the logits (before scaling) of the targets and of the nearest other token or
    tuple: the minimum over all inputs that the guarantee covers, or over the sets tried during construction."""
    scale: float
    """Scale of the logits; for qSA, which scales each query by the gap of its set, the scale at ``gap``."""
    epsilon: float
    """The target error bound."""
    bits: int
    """Significand bits that suffice by a rounding analysis (in the construction's docstring) of the
    operations named in ``headcount.pbit.simulate``: for qSA to stay within epsilon, for matching to
    classify every answer correctly at the threshold 1/2."""


class Failure(BaseModel):
    """The first wrong answer."""

    model_config = ConfigDict(frozen=True)

    sequence: int
    token: int
    error: float


class Verification(BaseModel):
    """Comparison of a construction's outputs with the exact answers of its task."""

    model_config = ConfigDict(frozen=True)

    precision: str
    accumulate: str
    checked: int
    wrong: int
    max_error: float
    verified: bool
    """No answer is wrong, and in float64 every answer is within epsilon of the exact one."""
    first_failure: Failure | None = None
