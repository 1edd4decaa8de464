"""Lower bounds: what a model that is too small cannot do, with proof status and witnesses.

``get(id)`` returns a bound, ``ids()`` lists them. The proof of each bound is in the docstring of its formula.
"""

from typing import TYPE_CHECKING

from headcount.bounds.base import Bound, BoundValue, Sizes
from headcount.bounds.registry import get, ids, of_task
from headcount.core.lazy import submodules

__all__ = ["Bound", "BoundValue", "Sizes", "get", "ids", "of_task"]

if TYPE_CHECKING:
    from headcount.bounds import statements as statements
else:
    __getattr__, __dir__ = submodules(__name__)
