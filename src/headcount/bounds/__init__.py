"""Lower bounds: what a model that is too small cannot do, with its status, and with witnesses.

``get(id)`` gives a bound, ``ids()`` lists them. The argument of each stands in the docstring of its formula.
"""

from headcount.bounds.base import Bound, BoundValue, Sizes
from headcount.bounds.registry import get, ids, of_task

__all__ = ["Bound", "BoundValue", "Sizes", "get", "ids", "of_task"]
