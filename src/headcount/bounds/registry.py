"""Which lower bounds there are, by id."""

from __future__ import annotations

import difflib

from headcount.bounds.base import Bound
from headcount.bounds.statements import low_rank, match3, one_layer, qsa_bits, qsa_mlp, qsa_regions, qsa_rnn
from headcount.core.errors import HeadcountError

_BOUNDS: dict[str, Bound] = {
    bound.id: bound
    for bound in (
        qsa_bits.BITS,
        qsa_bits.BITS_ALL,
        qsa_bits.BITS_PAPER,
        qsa_regions.REGIONS,
        qsa_regions.RADON,
        qsa_mlp.HALF,
        qsa_mlp.FULL,
        qsa_mlp.ANY_SPARSITY,
        qsa_rnn.PAPER,
        qsa_rnn.ONE,
        qsa_rnn.ANY_SPARSITY,
        qsa_rnn.ANY_DIM,
        match3.HEADS,
        match3.DEPTH,
        match3.PROTOCOL,
        one_layer.INDUCTION,
        one_layer.COMPOSITION,
        low_rank.LOW_RANK,
    )
}


def ids() -> tuple[str, ...]:
    """The ids that ``get`` takes, in the order of the table."""
    return tuple(_BOUNDS)


def get(id: str) -> Bound:
    """The lower bound with this id.

    >>> get("match3-heads").constant
    'unknown'
    """
    if id not in _BOUNDS:
        close = difflib.get_close_matches(id, _BOUNDS, n=1)
        raise HeadcountError(
            f"there is no bound {id!r}",
            fix=f"did you mean {close[0]}?" if close else f"choose one of {', '.join(_BOUNDS)}",
        )
    return _BOUNDS[id]


def of_task(task: str) -> tuple[Bound, ...]:
    """The bounds on one task, in the order of the table."""
    return tuple(bound for bound in _BOUNDS.values() if bound.task == task)
