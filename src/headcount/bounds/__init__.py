"""Lower bounds: what a model that is too small cannot do, with its status, and with witnesses.

``get(id)`` gives a bound, ``ids()`` lists them. The argument of each stands in the docstring of its formula.
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
