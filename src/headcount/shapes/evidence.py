"""Required width of keys and values at each depth of a model, estimated from a measured model.

Two kinds of evidence, identified by the file in the folder:

- ``saturation.json``: the share of a layer is the mean saturation rank of its heads at 5%, divided by their dimension,
  at the longest context. Values are not measured and keep share 1.
- ``audit.json``: half of the cache is split over all layers and sides by ``plan.allocators.greedy``, so that
  every side ends at the same marginal loss; the share of a side is its rank divided by its width.

For a model of different depth, each layer takes the mean share over the part of the source's depth that it covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headcount.core.errors import HeadcountError
from headcount.core.store import read_json
from headcount.probes.saturation.record import RECORD as SATURATION
from headcount.probes.saturation.record import SaturationRecord
from headcount.trimming.audit.schema import RECORD as AUDIT
from headcount.trimming.audit.schema import AuditRecord
from headcount.trimming.plan.allocators import greedy, smallest_budget

TOLERANCE = 0.05
"""Relative output error at which saturation ranks are read."""
HALF = 0.5
"""Share of the cache that is allocated to find out which sides need it."""
SMALLEST = 0.25
"""Lower limit of a share: evidence from another model does not justify an almost empty layer."""


@dataclass(frozen=True)
class Evidence:
    """Shares relative to the widest layer, in (0, 1], by layer. ``said``: the measurement, a phrase per layer."""

    keys: tuple[float, ...]
    values: tuple[float, ...]
    said: tuple[str, ...]


def read_evidence(folder: Path, layers: int) -> Evidence:
    """The evidence in an audit folder, for a model of ``layers`` layers.

    Raises HeadcountError if the folder contains no finished audit.
    """
    if (folder / SATURATION).is_file():
        return from_saturation(read_json(folder / SATURATION, SaturationRecord), layers)
    if (folder / AUDIT).is_file():
        return from_audit(read_json(folder / AUDIT, AuditRecord), layers)
    raise HeadcountError(
        f"{folder} holds no finished audit ({SATURATION} or {AUDIT})", fix="give --from the folder of headcount audit"
    )


def from_saturation(record: SaturationRecord, layers: int) -> Evidence:
    """Evidence from the saturation ranks of queries and keys."""
    if TOLERANCE not in record.tolerances or not record.contexts:
        raise HeadcountError(f"the saturation audit has no ranks at {TOLERANCE:.0%}", fix="audit again")
    place = record.tolerances.index(TOLERANCE)
    longest = max(record.contexts, key=lambda context: context.context)
    ranks = [sum(head.ranks[place] for head in layer.heads) / len(layer.heads) for layer in longest.layers]
    shares = [rank / layer.qk_dim for rank, layer in zip(ranks, record.spec.layers, strict=True)]
    resampled = resample(shares, layers)
    said = tuple(
        f"saturation rank of keys {share:.0%} of the head dimension at {TOLERANCE:.0%} and {longest.context} tokens; "
        "values not measured"
        for share in resampled
    )
    return Evidence(relative(resampled), (1.0,) * layers, said)


def from_audit(record: AuditRecord, layers: int) -> Evidence:
    """Evidence from the ranks of keys (before the rotary embedding) and values at half the cache."""
    columns = [record.layers[i].sides[side].joint for i in range(len(record.layers)) for side in ("keys", "values")]
    multiple = 4
    budget = max(int(HALF * sum(map(len, columns))), smallest_budget(columns, multiple))
    ranks = greedy(columns, budget, multiple)
    shares = [rank / len(column) for rank, column in zip(ranks, columns, strict=True)]
    keys, values = resample(shares[::2], layers), resample(shares[1::2], layers)
    said = tuple(
        f"half the cache leaves keys {k:.0%} and values {v:.0%} of their width"
        for k, v in zip(keys, values, strict=True)
    )
    return Evidence(relative(keys), relative(values), said)


def relative(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares divided by the largest, at least ``SMALLEST``; all 1 if every share is zero.

    >>> relative([0.5, 0.25, 0.01])
    (1.0, 0.5, 0.25)
    """
    largest = max(shares)
    return tuple(max(share / largest, SMALLEST) if largest > 0 else 1.0 for share in shares)


def resample(values: Sequence[float], count: int) -> list[float]:
    """Means over ``count`` equal parts of the depth covered by ``values``.

    >>> resample([1.0, 2.0, 3.0, 4.0], 2), resample([1.0, 3.0], 3)
    ([1.5, 3.5], [1.0, 2.0, 3.0])
    """
    means = []
    for part in range(count):
        # Units of 1/count of a source layer, so that all boundaries are integers.
        low, high = part * len(values), (part + 1) * len(values)
        pieces = [
            (min(high, (i + 1) * count) - max(low, i * count), value)
            for i, value in enumerate(values)
            if min(high, (i + 1) * count) > max(low, i * count)
        ]
        means.append(sum(size * value for size, value in pieces) / len(values))
    return means
