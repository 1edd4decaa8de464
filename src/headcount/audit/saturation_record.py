"""What ``headcount audit --saturation`` writes: a checked record, and tables of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from headcount.audit.changepoint import Boundary
from headcount.errors import HeadcountError
from headcount.spec import ModelSpec
from headcount.store import read_json

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
    """Largest minus smallest visible logit, averaged over the queries looked at."""


class LayerCurves(_Record):
    """One layer at one context."""

    layer: int
    heads: list[HeadCurve]


class LossRecord(_Record):
    """The whole model with queries and keys cut in many heads at once."""

    name: str
    mean_rank: float
    """Rank kept, averaged over all heads."""
    loss: float
    """Nats a token."""
    increase: float
    low: float
    high: float
    """95% interval of the increase, from blocks of tokens drawn again."""


class ContextRecord(_Record):
    """Everything at one context length."""

    context: int
    fitted_windows: int
    measured_windows: int
    queries: int
    layers: list[LayerCurves]
    losses: list[LossRecord]
    boundary: Boundary | None
    """Of saturation ranks at 5%, averaged over a layer's heads; ``None``: fewer than 5 layers."""


class ClaimRecord(_Record):
    """One claim of the source paper, what was measured for it, and the verdict."""

    name: str
    claim: str
    measured: str
    estimate: float | None
    low: float | None
    high: float | None
    needed: str
    """The rule by which the interval becomes the verdict."""
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


@dataclass(frozen=True)
class Saturation:
    """A saturation audit in hand."""

    record: SaturationRecord
    folder: Path

    @classmethod
    def open(cls, folder: Path | str) -> Saturation:
        """Read its folder; what is missing or does not fit is refused by name."""
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise HeadcountError(f"{folder} holds no finished saturation audit", fix="run headcount audit --saturation")
        return cls(read_json(folder / RECORD, SaturationRecord), folder)

    def to_pandas(self) -> pd.DataFrame:
        """One row a context, layer and head: saturation ranks and the range of logits."""
        import pandas as pd

        names = [f"rank_{tolerance:g}" for tolerance in self.record.tolerances]
        rows = [
            {"context": context.context, "layer": layer.layer, "head": index}
            | dict(zip(names, head.ranks, strict=True))
            | {"logit_range": head.logit_range}
            for context in self.record.contexts
            for layer in context.layers
            for index, head in enumerate(layer.heads)
        ]
        return pd.DataFrame(rows)


def summary_json(found: Saturation) -> dict[str, Any]:
    """What ``headcount audit --saturation --json`` prints; the curves of every rank are in the folder."""
    record = found.record
    table = found.to_pandas()
    means = table.drop(columns="head").groupby(["context", "layer"], as_index=False).mean()
    return {
        "model": record.model,
        "tokens": record.tokens,
        "tolerances": record.tolerances,
        "contexts": [
            {
                "context": context.context,
                "layers": means[means.context == context.context].drop(columns="context").to_dict("records"),
                "losses": [loss.model_dump() for loss in context.losses],
                "boundary": asdict(context.boundary) if context.boundary else None,
            }
            for context in record.contexts
        ],
        "claims": [claim.model_dump() for claim in record.claims],
        "folder": str(found.folder),
    }
