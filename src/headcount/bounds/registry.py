"""Registry of lower bounds by id."""

from __future__ import annotations

from headcount.bounds.base import Bound
from headcount.bounds.statements import low_rank, match3, one_layer, qsa_bits, qsa_mlp, qsa_regions, qsa_rnn
from headcount.core.names import Registry

_ALL: tuple[Bound, ...] = (
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
_BOUNDS = Registry("bound", ((bound.id, bound) for bound in _ALL))


def ids() -> tuple[str, ...]:
    """The ids that ``get`` accepts, in table order."""
    return _BOUNDS.names()


def get(id: str) -> Bound:
    """The lower bound with this id.

    >>> get("match3-heads").constant
    'unknown'
    """
    return _BOUNDS.get(id)


def of_task(task: str) -> tuple[Bound, ...]:
    """The bounds on one task, in table order."""
    return tuple(bound for bound in _BOUNDS if bound.task == task)
