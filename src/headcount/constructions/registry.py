"""Registry of constructions by name; building and loading them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headcount import tasks
from headcount.constructions.base import Construction, ConstructionModule, read_saved
from headcount.constructions.matching.any_order import MatchModule, build_match2, build_match_s
from headcount.constructions.matching.bigram import BigramModule, build_match3_bigram
from headcount.constructions.matching.local import LocalModule, build_match3_local
from headcount.constructions.qsa.certified import CertificateModule, build_qsa_certificate
from headcount.constructions.qsa.polytope import PolytopeModule, build_qsa_polytope
from headcount.core.errors import HeadcountError
from headcount.core.names import Registry
from headcount.core.payload import JsonObject

Entry = tuple[Callable[..., Construction], type[ConstructionModule]]
"""The function that builds a construction, and the class of its module."""

_ALL: dict[str, Entry] = {
    "qsa-certificate": (build_qsa_certificate, CertificateModule),
    "qsa-polytope": (build_qsa_polytope, PolytopeModule),
    "match2": (build_match2, MatchModule),
    "match-s": (build_match_s, MatchModule),
    "match3-bigram": (build_match3_bigram, BigramModule),
    "match3-local": (build_match3_local, LocalModule),
}
_CONSTRUCTIONS = Registry("construction", _ALL.items())


def names() -> tuple[str, ...]:
    """The names that ``build`` accepts."""
    return _CONSTRUCTIONS.names()


def options(name: str) -> JsonObject:
    """The options of ``build(name, ...)`` with their defaults."""
    return {key: value.default for key, value in inspect.signature(_CONSTRUCTIONS.get(name)[0]).parameters.items()}


def build(name: str, **arguments: Any) -> Construction:
    """Build the construction ``name`` at the specified sizes.

    Raises ``HeadcountError`` for an unknown name, an option that the construction does not have
    (``options``), or a value out of range.

    >>> build("match-s", tokens=16, modulus=101, order=3).certificate.embedding_dim
    4
    """
    builder, _ = _CONSTRUCTIONS.get(name)
    known = options(name)
    for option in arguments:
        if option not in known:
            shown = ", ".join(key for key in known if key not in ("name", "progress"))
            raise HeadcountError(f"{name} has no option {option!r}", fix=f"its options are {shown}")
    return builder(**arguments)


def load(folder: Path | str) -> Construction:
    """Load a construction written by ``Construction.save``, with identical weights."""
    record, tensors = read_saved(Path(folder))
    _, module_class = _CONSTRUCTIONS.get(record.certificate.name)
    module = module_class.restore(dict(record.settings), tensors)
    missing = module.load_state_dict(tensors, strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        raise HeadcountError(f"the weights in {folder} do not fit the record", fix="save it again")
    return Construction(tasks.get(record.task, **record.sizes), module, record.certificate)
