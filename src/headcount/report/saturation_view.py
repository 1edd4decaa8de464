"""Report views of saturation and selection as plain values, filled by ``saturation_collect``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headcount.probes.saturation.changepoint import Boundary
from headcount.probes.saturation.record import BoundRecord, ClaimRecord, ComponentCounts

BOUNDARY_TOLERANCE = 0.05
"""The tolerance at which the audit searches for a boundary layer."""

Form = Literal["dense", "trimmed"]
What = Literal["separable", "selected"]
FORMS: tuple[Form, ...] = ("dense", "trimmed")
WHATS: tuple[What, ...] = ("separable", "selected")


@dataclass(frozen=True)
class LossView:
    """Loss increase with many heads reduced at once, in nats per token, with its 95% interval."""

    name: str
    mean_rank: float
    increase: float
    low: float
    high: float


@dataclass(frozen=True)
class ErrorView:
    """Mean output error over all heads at a rank, relative to the output and in units of values."""

    rank: int
    relative: float
    absolute: float | None


@dataclass(frozen=True)
class ContextView:
    """One context length; ranks and ranges are averages over the query heads of each layer."""

    context: int
    ranks: tuple[tuple[float, ...], ...]
    """By layer, then by tolerance."""
    ranges: tuple[float, ...]
    """Range of a query's logits, by layer."""
    losses: tuple[LossView, ...]
    boundary: Boundary | None
    errors: tuple[ErrorView, ...] = ()
    """Errors at the ranks of ``bounds``, in the same order."""
    bounds: tuple[BoundRecord, ...] = ()
    components: ComponentCounts | None = None


@dataclass(frozen=True)
class SaturationView:
    """The results of a saturation audit, and the run folder that contains its data."""

    folder: str
    tokens: int
    kinds: tuple[str, ...]
    seed: int
    matmul_dtype: str
    tolerances: tuple[float, ...]
    dims: tuple[int, ...]
    """Dimensions of queries and keys, by layer."""
    contexts: tuple[ContextView, ...]
    claims: tuple[ClaimRecord, ...]


@dataclass(frozen=True)
class TheoryView:
    """Theoretical half points for keys of ``dim`` dimensions: optimally placed, and Gaussian."""

    dim: int
    neighbourly: int
    gaussian: Mapping[str, float]


@dataclass(frozen=True)
class SelectionView:
    """Half points q of a selection audit, and the run folder that contains its data."""

    folder: str
    seed: int
    context: int
    windows: int
    subsets: int
    largest: int
    """Largest tested size; a half point equal to it is a lower bound."""
    trimmed_rank: int
    checked: int
    agreed: int
    heads: tuple[tuple[Mapping[tuple[Form, What, str], float], ...], ...]
    """By layer, then by query head: half points by (form, what, kind)."""
    theory: tuple[TheoryView, ...]

    def mean(self, layer: int, form: Form, what: What, kind: str) -> float:
        """A half point averaged over a layer's heads."""
        half_points = [head[form, what, kind] for head in self.heads[layer]]
        return sum(half_points) / len(half_points)
