"""The gap between lower and upper bounds: the largest applicable lower bound and the smallest construction.

Commands (``bound``, ``construct``) and figures (``dimensions``, ``qsa-width``) share this module so that they agree on
which bounds apply to which models: the ``model`` of a bound. Bounds with an unknown constant have no value and are
ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headcount.bounds import registry
from headcount.bounds.base import BoundValue, Model, Sizes
from headcount.bounds.built import Built, built_match3, built_qsa, smallest_built, smallest_value_width
from headcount.bounds.statements.qsa_bits import EMBEDDING
from headcount.pbit.widths import VALUE_WIDTH

if TYPE_CHECKING:
    from headcount.constructions import Construction

BUILT: dict[str, Callable[[Sizes], list[Built]]] = {"qsa": built_qsa, "match3": built_match3}
"""The constructions for each task, with exact arithmetic after the embedding."""
CONSTRUCTIONS = {"qsa": ("qsa-polytope", "qsa-certificate")}
"""The certified constructions that are compared with the lower bounds on their task."""
TWO_MAPS: tuple[Model, ...] = ("embedded", "positional keys")
"""Bounds that apply to the qSA constructions: one head, linear values, keys that depend on the position, and queries
that depend on the subset and the position."""
ONE_MAP: tuple[Model, ...] = ("embedded",)
"""Bounds that apply to a unit with a single map for queries, keys and values, whose keys may depend on any input."""


@dataclass(frozen=True)
class Gap:
    """Lower and upper bounds at particular sizes.

    answers: every bound on the task. embedded: the largest bound on the embedding dimension m that holds for any
    network on p-bit embeddings. hypotheses: the largest bound on m overall, under its hypotheses. value_width: the
    largest bound on the value width d_v of a head. built: the constructions; ``built_embedding_dim`` and
    ``built_value_width`` are the smallest sizes that solve every input at the specified precision. ``None``: no bound
    or construction applies.
    """

    answers: tuple[BoundValue, ...]
    embedded: BoundValue | None
    hypotheses: BoundValue | None
    value_width: BoundValue | None
    built: tuple[Built, ...]
    built_embedding_dim: int | None
    built_value_width: int | None


def gap(task: str, sizes: Sizes, build: bool = False) -> Gap:
    """Lower and upper bounds for a task.

    build: also build the constructions of ``headcount construct`` and include the sizes in their certificates.

    >>> found = gap("qsa", Sizes(tokens=1024, sparsity=8, dim=8, precision_bits=16))
    >>> found.embedded.value, found.hypotheses.value, found.built_embedding_dim
    (5, 24, 99)
    """
    answers = tuple(bound.evaluate(sizes) for bound in registry.of_task(task))
    built = BUILT[task](sizes) if task in BUILT else []
    if build:
        built += [_certified(construction) for construction in constructed(task, sizes).values()]
    return Gap(
        answers=answers,
        embedded=largest((answer for answer in answers if answer.bound.model == "embedded"), EMBEDDING),
        hypotheses=largest(answers, EMBEDDING),
        value_width=largest(answers, VALUE_WIDTH),
        built=tuple(built),
        built_embedding_dim=smallest_built(built, sizes.precision_bits),
        built_value_width=smallest_value_width(built, sizes.precision_bits),
    )


def largest(answers: Iterable[BoundValue], unit: str) -> BoundValue | None:
    """The answer with the largest value in this unit (the first of ties); ``None`` if no answer has a value."""
    numbers = [answer for answer in answers if answer.unit == unit and answer.value is not None]
    return max(numbers, key=lambda answer: answer.value or 0, default=None)


def embedding_bounds(task: str, sizes: Sizes, models: Collection[Model]) -> dict[str, int | None]:
    """The bounds on the embedding dimension that cover these models, by id; ``None``: no value at these sizes.

    >>> embedding_bounds("qsa", Sizes(tokens=8, sparsity=4, dim=1, precision_bits=6), ONE_MAP)
    {'qsa-bits': 1, 'qsa-bits-all': 2}
    """
    answers = [bound.evaluate(sizes) for bound in registry.of_task(task) if bound.model in models]
    return {answer.bound.id: answer.value if answer.unit == EMBEDDING else None for answer in answers}


def lower_bound(built: Construction, precision: str) -> int | None:
    """The largest lower bound on the embedding dimension that applies to a construction, or ``None``.

    epsilon is taken from the certificate and p from the arithmetic that the construction runs in. Numbers of ``wide:p``
    also have integer bits, so no bound for p-bit numbers applies to them.
    """
    from headcount.pbit.formats import get_format, wide_bits

    task = built.task
    if not any(bound.model in TWO_MAPS for bound in registry.of_task(task.name)):
        return None
    bits = get_format(precision).bits if wide_bits(precision) is None else None
    sizes = Sizes(**task.parameters(), precision_bits=bits, epsilon=built.certificate.epsilon)
    values = embedding_bounds(task.name, sizes, TWO_MAPS).values()
    return max((value for value in values if value is not None), default=None)


def constructed(task: str, sizes: Sizes, seed: int = 0) -> dict[str, Construction]:
    """The constructions for a task at these sizes, by name; epsilon defaults to 1/(4q).

    ``qsa-certificate`` takes seconds to minutes because its keys are found by search; ``seed`` seeds the search.
    """
    from headcount import constructions  # imported here because it needs torch and the bounds do not

    result = {}
    for name in CONSTRUCTIONS.get(task, ()):
        options = {"tokens": sizes.need("tokens"), "sparsity": sizes.need("sparsity"), "dim": sizes.need("dim")}
        epsilon = sizes.epsilon or 1 / (4 * options["sparsity"])
        seeded = {"seed": seed} if "seed" in constructions.options(name) else {}
        result[name] = constructions.build(name, **options, epsilon=epsilon, **seeded)
    return result


def _certified(built: Construction) -> Built:
    """The sizes in a construction's certificate, with every operation rounded."""
    certificate = built.certificate
    arithmetic = "every operation rounded (headcount construct)"
    return Built(certificate.name, certificate.embedding_dim, certificate.bits, arithmetic, certificate.guarantee)
