"""Which figures the learning lab draws, by name."""

from __future__ import annotations

import difflib

from headcount.core.errors import HeadcountError
from headcount.lab.figures import heads_vs_dim, match3_orders, memory, qsa_pattern, qsa_samples, qsa_width, scratch_lm
from headcount.lab.figures.base import LabFigure

_FIGURES: dict[str, LabFigure] = {
    module.NAME: module.FIGURE
    for module in (qsa_pattern, qsa_samples, qsa_width, match3_orders, memory, heads_vs_dim, scratch_lm)
}


def names() -> tuple[str, ...]:
    """The names that ``get`` takes."""
    return tuple(_FIGURES)


def get(name: str) -> LabFigure:
    """A figure by name."""
    if name not in _FIGURES:
        close = difflib.get_close_matches(name, _FIGURES, n=1)
        raise HeadcountError(
            f"there is no figure {name!r}",
            fix=f"did you mean {close[0]}?" if close else f"choose one of {', '.join(_FIGURES)}",
        )
    return _FIGURES[name]
