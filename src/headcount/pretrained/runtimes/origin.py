"""How a trimmed model was made, kept in its config so that it travels with the checkpoint."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

FIELD = "headcount_origin"
"""The config's entry."""


class Origin(BaseModel):
    """What a model was trimmed by.

    ``calibrated_on`` names the kinds of text that its statistics came from: on those its quality is not that of a
    model meeting new text.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    calibrated_on: tuple[str, ...]
    metric: str
    allocator: str
    repaired: bool
    plan: str | None = None
    """Digest of the plan (``PlanRecord.digest``); ``None`` in models made before it was recorded."""


def write_origin(config: Any, origin: Origin) -> None:
    """Keep ``origin`` in a model's config."""
    setattr(config, FIELD, origin.model_dump(mode="json"))


def origin_of(config: Any) -> Origin | None:
    """What a model's config says of how it was trimmed; ``None`` where it says nothing that can be read.

    >>> from types import SimpleNamespace
    >>> origin_of(SimpleNamespace()) is None
    True
    """
    try:
        return Origin.model_validate(getattr(config, FIELD, None))
    except ValidationError:
        return None
