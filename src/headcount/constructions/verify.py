"""Verification of a construction on sampled sequences of several kinds."""

from __future__ import annotations

import contextlib
from typing import cast

from headcount.constructions.base import Construction
from headcount.constructions.certificate import Failure, Verification
from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.pbit.simulate import Accumulate
from headcount.tasks import Batch, Kind

MIXED = "mixed"


def sampled(built: Construction, kind: str, count: int, seed: int) -> list[Batch]:
    """``count`` sequences of one kind, or (mixed) a third each of uniform, adversarial and balanced ones.

    Kinds that are impossible at the task's sizes (one set contains every token; too few residues) are omitted.
    """
    if count < 1:
        raise HeadcountError(f"count must be at least 1, not {count}", fix="verify on one sequence or more")
    task = built.task
    if kind != MIXED:
        return [task.sample(seed, count, cast(Kind, kind))]  # raises for an unknown kind
    kinds: list[Kind] = ["uniform"]
    for other in ("adversarial", "balanced"):
        with contextlib.suppress(HeadcountError):
            task.sample(seed, 1, other)
            kinds.append(other)
    shares = [(kind, (count - place + len(kinds) - 1) // len(kinds)) for place, kind in enumerate(kinds)]
    return [task.sample(seed, share, kind) for kind, share in shares if share]


def verify_kinds(
    built: Construction,
    kind: str = MIXED,
    count: int = 8,
    seed: int = 0,
    precision: str = "fp64",
    accumulate: Accumulate = "each",
    progress: Progress = silent,
) -> Verification:
    """``Construction.verify`` on sampled sequences; the sequences of a mixed sample are numbered consecutively."""
    done = 0
    total: Verification | None = None
    for batch in sampled(built, kind, count, seed):
        verification = built.verify(batch, precision, accumulate, progress)
        total = verification if total is None else _joined(total, verification, done)
        done += len(batch)
    assert total is not None
    return total


def _joined(first: Verification, second: Verification, offset: int) -> Verification:
    failure = first.first_failure
    if failure is None and second.first_failure is not None:
        late = second.first_failure
        failure = Failure(sequence=late.sequence + offset, token=late.token, error=late.error)
    return Verification(
        precision=first.precision,
        accumulate=first.accumulate,
        checked=first.checked + second.checked,
        wrong=first.wrong + second.wrong,
        max_error=max(first.max_error, second.max_error),
        verified=first.verified and second.verified,
        first_failure=failure,
    )
