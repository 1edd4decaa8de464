"""The type of JSON objects: the output of ``--json`` and the content of files before schema validation."""

from __future__ import annotations

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""Maps names to JSON values. Inside the package, records are dataclasses, pydantic models or TypedDicts; this type is
used when they are serialised, or parsed and not yet validated."""
