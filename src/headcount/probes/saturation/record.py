"""The output of ``headcount audit --saturation``: a validated record and tables derived from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from headcount.core.errors import HeadcountError
from headcount.core.extras import optional_imports
from headcount.core.payload import JsonObject
from headcount.core.spec import ModelSpec
from headcount.core.store import read_json
from headcount.probes.saturation.changepoint import Boundary

if TYPE_CHECKING:
    import pandas as pd

RECORD = "saturation.json"
Verdict = Literal["holds", "does not hold", "not decided"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeadCurve(_Record):
    """One query head at one context."""

    errors: list[float]
    """Relative output error at rank 0..d."""
    ranks: list[int]
    """Saturation ranks at ``SaturationRecord.tolerances``."""
    logit_range: float
    """Largest minus smallest visible logit, averaged over the sampled queries."""
    output_rms: float | None = None
    """sqrt(mean_i |o_i|^2): absolute output error = relative error times this. ``None`` in older records."""
    energy_rank: float | None = None
    """Number of components that hold 90% of the energy of a window's centred logits, averaged over measured windows."""
    energy_error: float | None = None
    """Relative output error when the logits of each window are reduced to that window's components."""
    pooled_energy_rank: int | None = None
    """The same number for the logits of all fitted windows together."""

    def absolute(self, rank: int) -> float | None:
        """Root mean square of |o_i^r - o_i| at a rank; ``None`` for an older record."""
        return None if self.output_rms is None else self.errors[rank] * self.output_rms


class BoundRecord(_Record):
    """Attention rows at one rank compared with the softmax perturbation bounds; medians over rows.

    Symbols are those of ``headcount.probes.saturation.perturbation``. ``violations`` counts rows that exceed a proved
    bound; it should be 0.
    """

    rank: int
    rows: int
    violations: int
    half_range: float
    logit_bound: float
    total_variation: float
    total_variation_bound: float
    """tanh(delta / 2)."""
    squared_distance: float
    squared_bound: float
    """2 tanh(delta / 2) e^(2b) / L."""
    sharper_bound: float
    """``squared_bound`` times 1 - e^(-2 delta)."""
    long_context_says_more: float
    """Share of rows where ``squared_bound`` is below 2 tanh(delta / 2)^2, the bound implied by the first inequality."""
    output_error: float
    """|o - o'|."""
    output_error_bound: float
    """2 tanh(delta / 2) max_j |v_j - mean v|."""
    independent_output_error: float
    """sqrt(tr(S) |p - p'|^2): what |o - o'| would be if values were independent of logits."""
    independent_output_error_bound: float
    """sqrt(tr(S) 2 tanh(delta / 2) e^(2b) / L), under the same hypothesis."""


class LayerCurves(_Record):
    """One layer at one context."""

    layer: int
    heads: list[HeadCurve]
    bounds: list[BoundRecord] = []
    """Bounds for the rows of this layer, one record per rank; empty in older records."""

    def mean_rank(self, place: int) -> float:
        """Mean saturation rank over the heads at the ``place``-th of ``SaturationRecord.tolerances``."""
        return sum(head.ranks[place] for head in self.heads) / len(self.heads)

    @property
    def mean_range(self) -> float:
        """Mean logit range over the heads."""
        return sum(head.logit_range for head in self.heads) / len(self.heads)


class LossRecord(_Record):
    """Loss of the whole model with query/key ranks reduced in many heads at once."""

    name: str
    mean_rank: float
    """Retained rank, averaged over all heads."""
    loss: float
    """Nats per token."""
    increase: float
    low: float
    high: float
    """95% interval of the increase, from a block bootstrap over tokens."""


class ContextRecord(_Record):
    """All measurements at one context length."""

    context: int
    fitted_windows: int
    measured_windows: int
    queries: int
    layers: list[LayerCurves]
    losses: list[LossRecord]
    bounds: list[BoundRecord] = []
    """Bounds for the rows of all layers, one record per rank; empty in older records."""
    boundary: Boundary | None
    """Boundary in the mean saturation rank per layer at 5%; ``None`` for fewer than 5 layers."""


class ClaimRecord(_Record):
    """One claim of the source paper with its measurement and verdict."""

    name: str
    claim: str
    measured: str
    estimate: float | None
    low: float | None
    high: float | None
    needed: str
    """The rule that turns the interval into the verdict."""
    verdict: Verdict


class SaturationRecord(_Record):
    """``saturation.json``."""

    format: Literal[1] = 1
    model: str
    fingerprint: str
    spec: ModelSpec
    seed: int
    tokens: int
    matmul_dtype: str
    kinds: list[str]
    tolerances: list[float]
    contexts: list[ContextRecord]
    claims: list[ClaimRecord]
    weight_ranks: list[list[int]] | None = None
    """Components that hold 90% of the energy of W_q' W_k, by layer and query head; ``None`` in older records."""


@dataclass(frozen=True)
class Saturation:
    """A saturation audit and its folder."""

    record: SaturationRecord
    folder: Path

    @classmethod
    def open(cls, folder: Path | str) -> Saturation:
        """Read the folder of an audit; missing or invalid content raises a HeadcountError."""
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise HeadcountError(f"{folder} holds no finished saturation audit", fix="run headcount audit --saturation")
        return cls(read_json(folder / RECORD, SaturationRecord), folder)

    def head_rows(self) -> list[dict[str, int | float]]:
        """One row per context, layer and head: saturation ranks, logit range, output RMS, components at 90%.

        Columns missing from an older record are omitted.
        """
        names = [f"rank_{tolerance:g}" for tolerance in self.record.tolerances]
        later = ("output_rms", "energy_rank", "energy_error", "pooled_energy_rank")
        weights = self.record.weight_ranks
        return [
            {"context": context.context, "layer": layer.layer, "head": index}
            | dict(zip(names, head.ranks, strict=True))
            | {"logit_range": head.logit_range}
            | {name: getattr(head, name) for name in later if getattr(head, name) is not None}
            | ({} if weights is None else {"weight_rank": weights[layer.layer][index]})
            for context in self.record.contexts
            for layer in context.layers
            for index, head in enumerate(layer.heads)
        ]

    def to_pandas(self) -> pd.DataFrame:
        """``head_rows`` as a table."""
        with optional_imports():
            import pandas as pd

        return pd.DataFrame(self.head_rows())


class MeanError(NamedTuple):
    """Mean output error over all heads at a rank; ``absolute`` in units of values, ``None`` for an older record."""

    rank: int
    relative: float
    absolute: float | None


def mean_errors(context: ContextRecord) -> list[MeanError]:
    """Mean output errors by rank, over the heads that have at least that many dimensions."""
    heads = [head for layer in context.layers for head in layer.heads]
    errors = []
    for rank in range(max(len(head.errors) for head in heads)):
        having = [head for head in heads if rank < len(head.errors)]
        relative = sum(head.errors[rank] for head in having) / len(having)
        absolutes = [absolute for head in having if (absolute := head.absolute(rank)) is not None]
        errors.append(MeanError(rank, relative, sum(absolutes) / len(having) if absolutes else None))
    return errors


@dataclass(frozen=True)
class Spread:
    """Mean, minimum and maximum over all heads."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ComponentCounts:
    """Measures of the query/key dimensions that heads use at one context, over all heads."""

    window: Spread
    """Number of components that hold 90% of the energy of one window's centred logits."""
    pooled: Spread
    """The same number for the logits of all windows together."""
    weights: Spread
    """Number of components that hold 90% of the energy of W_q' W_k."""
    output: Spread
    """Saturation rank: dimensions needed for a relative output error of 5%."""
    error: Spread
    """Relative output error of a head reduced to the components of ``window``, chosen per window."""


def component_counts(record: SaturationRecord, context: ContextRecord) -> ComponentCounts | None:
    """The counts at one context; ``None`` for an older record, which has no energies."""
    five = record.tolerances.index(0.05)
    heads = [head for layer in context.layers for head in layer.heads]
    window = [head.energy_rank for head in heads if head.energy_rank is not None]
    pooled = [float(head.pooled_energy_rank) for head in heads if head.pooled_energy_rank is not None]
    errors = [head.energy_error for head in heads if head.energy_error is not None]
    if record.weight_ranks is None or min(map(len, (window, pooled, errors))) < len(heads):
        return None
    weights = [float(rank) for ranks in record.weight_ranks for rank in ranks]
    output = [float(head.ranks[five]) for head in heads]
    return ComponentCounts(*map(_spread, (window, pooled, weights, output, errors)))


def _spread(values: list[float]) -> Spread:
    return Spread(sum(values) / len(values), min(values), max(values))


def summary_json(audit: Saturation) -> JsonObject:
    """The output of ``headcount audit --saturation --json``; curves over all ranks are in the folder."""
    record = audit.record
    rows = audit.head_rows()
    return {
        "model": record.model,
        "tokens": record.tokens,
        "tolerances": record.tolerances,
        "contexts": [
            {
                "context": context.context,
                "errors": [error._asdict() for error in mean_errors(context)],
                "bounds": [bound.model_dump() for bound in context.bounds],
                "components": asdict(counts) if (counts := component_counts(record, context)) else None,
                "layers": _layer_means([row for row in rows if row["context"] == context.context]),
                "losses": [loss.model_dump() for loss in context.losses],
                "boundary": asdict(context.boundary) if context.boundary else None,
            }
            for context in record.contexts
        ],
        "claims": [claim.model_dump() for claim in record.claims],
        "folder": str(audit.folder),
    }


def _layer_means(rows: Sequence[Mapping[str, int | float]]) -> list[dict[str, int | float]]:
    """Mean of every column over the heads of each layer; ``rows``: the head rows of one context."""
    means: list[dict[str, int | float]] = []
    for layer in dict.fromkeys(int(row["layer"]) for row in rows):
        heads = [row for row in rows if row["layer"] == layer]
        columns = [name for name in heads[0] if name not in ("context", "layer", "head")]
        means.append({"layer": layer} | {name: fsum(row[name] for row in heads) / len(heads) for name in columns})
    return means
