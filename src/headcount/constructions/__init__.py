"""Explicit weights that solve the tasks, their certificates, and the precision at which they fail.

``build(name, ...)`` builds a construction, ``load(folder)`` reads a saved one, and ``run(module, ...,
precision=)`` runs any torch module in simulated p-bit arithmetic.
"""

from typing import TYPE_CHECKING

from headcount.constructions.base import Construction, ConstructionModule
from headcount.constructions.certificate import Certificate, Verification
from headcount.constructions.registry import build, load, names, options
from headcount.core.lazy import submodules
from headcount.pbit.formats import get_format, wide_bits
from headcount.pbit.simulate import run

__all__ = [
    "Certificate",
    "Construction",
    "ConstructionModule",
    "Verification",
    "build",
    "get_format",
    "load",
    "names",
    "options",
    "run",
    "wide_bits",
]

if TYPE_CHECKING:
    from headcount.constructions import matching as matching
    from headcount.constructions import qsa as qsa
else:
    __getattr__, __dir__ = submodules(__name__)
