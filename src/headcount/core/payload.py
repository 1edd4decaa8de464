"""The type of JSON objects: what ``--json`` prints, and what stands in files before a schema has checked it."""

from __future__ import annotations

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""Names to JSON values. Inside the package records are dataclasses, pydantic models or TypedDicts; this is their
form on the way out, or on the way in before they are checked."""
