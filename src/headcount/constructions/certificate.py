"""What a construction promises, and what checking it found."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Guarantee = Literal["all inputs", "the subsets given"]
"""``all inputs``: the argument covers every input of these sizes. ``the subsets given``: qSA with every set
that the construction's own check (a positive gap) accepts; the check is made for each set that is read."""


class Certificate(BaseModel):
    """Size and promise of one construction, in exact arithmetic.

    The dimensions of qSA, whose tokens ask with one vector and are found by another, can be counted in two
    ways: ``embedding_dim`` is the width m of the matrices, with a token map of two outputs (queries apart
    from keys and values), as in m = d' + 2q; ``single_map_dim`` is the width where one embedding carries
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
    """Distance between the logits (before scaling) of what is looked for and of the nearest other token or
    tuple: the smallest over what the guarantee covers, or over the sets tried in building."""
    scale: float
    """Factor of the logits; for qSA, which scales each query by its own gap, at the gap above."""
    epsilon: float
    """Largest error that was asked for."""
    bits: int
    """Significand bits that suffice by a rounding analysis (in the construction's docstring) of the
    operations named in ``headcount.pbit.simulate``: for qSA to stay within epsilon, for matching to
    read every answer rightly at 1/2."""


class Failure(BaseModel):
    """The first answer that was missed."""

    model_config = ConfigDict(frozen=True)

    sequence: int
    token: int
    error: float


class Verification(BaseModel):
    """Outputs of a construction against the exact answers of its task."""

    model_config = ConfigDict(frozen=True)

    precision: str
    accumulate: str
    checked: int
    wrong: int
    max_error: float
    verified: bool
    """No answer is wrong, and in float64 none is further than epsilon from the exact one."""
    first_failure: Failure | None = None
