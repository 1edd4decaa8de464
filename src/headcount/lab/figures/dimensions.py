"""Figure: embedding dimensions of qSA, built above and impossible below, for q = 1..16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headcount import bounds, constructions
from headcount.constructions import Construction, get_format, wide_bits
from headcount.constructions.verify import verify_kinds
from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, PINK, write_figure
from headcount.core.progress import Progress, silent

_MORE = 4
"""Fraction bits beyond the sufficient significand bits: the coefficients of the query may be above 1."""

BOUNDS = ("qsa-bits", "qsa-regions", "qsa-radon")


def lower_bound(built: Construction, precision: str) -> int | None:
    """The largest lower bound on the embedding dimension of this task, in this precision; else ``None``.

    Only bounds whose constant is known count, and whose hypotheses the qSA constructions meet: one head, keys
    that depend on the position, queries on the set and the position, linear values; and an epsilon, that of the
    certificate, below the limit of the bound.
    """
    if built.task.name != "qsa":
        return None
    sizes = built.task.parameters()
    bits = wide_bits(precision)
    bits = get_format(precision).bits if bits is None else None  # wide numbers have integer bits, too
    values = lower_bounds(sizes["tokens"], sizes["sparsity"], sizes["dim"], bits, built.certificate.epsilon)
    known = [value for value in values.values() if value is not None]
    return max(known, default=None)


def lower_bounds(
    tokens: int, sparsity: int, dim: int, bits: int | None, epsilon: float | None = None
) -> dict[str, int | None]:
    """The lower bounds on the embedding dimension, by id (``None``: it does not apply).

    ``epsilon``: by default one inside the hypothesis of each, eps < 1/(2q).
    """
    epsilon = 1 / (4 * sparsity) if epsilon is None else epsilon
    given: dict[str, Any] = {"tokens": tokens, "sparsity": sparsity, "dim": dim, "epsilon": epsilon}
    if bits is not None:
        given["precision_bits"] = bits
    return {id: None if id == "qsa-bits" and bits is None else bounds.get(id).evaluate(**given).value for id in BOUNDS}


def rows(
    tokens: int = 1024,
    dim: int = 8,
    precision_bits: int = 64,
    sparsities: Sequence[int] = tuple(range(1, 17)),
    count: int = 2,
    seed: int = 0,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row for each q: what was built, answers wrong in float64, where it verified, and the bounds."""
    result = []
    for done, q in enumerate(sparsities):
        certificate = constructions.build(
            "qsa-certificate", tokens=tokens, sparsity=q, dim=dim, epsilon=1 / (4 * q), seed=seed
        )
        polytope = constructions.build("qsa-polytope", tokens=tokens, sparsity=q, dim=dim, epsilon=1 / (4 * q))
        row: dict[str, Any] = {"tokens": tokens, "dim": dim, "sparsity": q}
        for built in (certificate, polytope):
            name = built.certificate.name
            row[name] = built.certificate.embedding_dim
            row[f"{name} bits"] = built.certificate.bits
            row[f"{name} wrong"] = verify_kinds(built, count=count, seed=seed).wrong
        row["qsa-polytope verified in"] = _verified_in(polytope, count, seed)
        row["certificate keys over q ln N"] = round((row["qsa-certificate"] - dim) / (q * math.log(tokens)), 3)
        row["precision bits of qsa-bits"] = precision_bits
        row |= lower_bounds(tokens, q, dim, precision_bits)
        result.append(row)
        progress("dimensions", done + 1, len(sparsities))
    return result


def _verified_in(built: Construction, count: int, seed: int) -> str | None:
    """float64, or as many bits as the rounding analysis asks for and a few; ``None`` where neither verifies."""
    for precision in ("fp64", f"wide:{built.certificate.bits + _MORE}"):
        if verify_kinds(built, count=count, seed=seed, precision=precision).verified:
            return precision
    return None


def draw(data: Sequence[dict[str, Any]], folder: Path, name: str = "embedding_dimensions") -> dict[str, Path]:
    """Draw the rows and write the figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    axes = figure.subplots()
    q = [row["sparsity"] for row in data]
    first = data[0]

    def line(key: str, **style: Any) -> None:
        axes.plot(q, [row[key] for row in data], **style)

    line("qsa-radon", color=GREEN, linewidth=7, alpha=0.3, label="impossible below: qsa-radon (any precision)")
    line("qsa-regions", color=GREEN, linestyle="-", label="impossible below: qsa-regions (any precision)")
    bits = first["precision bits of qsa-bits"]
    line("qsa-bits", color=PINK, label=f"impossible below: qsa-bits ({bits}-bit numbers)")
    line("qsa-certificate", color=BLUE, marker="o", label="built: qsa-certificate (sign keys, searched)")
    line("qsa-polytope", color=ORANGE, linestyle="-", label="built: qsa-polytope, d' + 2q")
    verified = [row for row in data if row["qsa-polytope verified in"] is not None]
    for narrow, face in ((True, ORANGE), (False, "white")):
        shown = [row for row in verified if (row["qsa-polytope verified in"] == "fp64") == narrow]
        axes.plot(
            [row["sparsity"] for row in shown],
            [row["qsa-polytope"] for row in shown],
            linestyle="none",
            marker="s",
            color=ORANGE,
            markerfacecolor=face,
            label="the same, verified in float64" if narrow else "the same, verified in more bits than float64 has",
        )
    scale = first["tokens"]
    axes.plot(
        q,
        [first["dim"] + x * math.log(scale) for x in q],
        color=GREY,
        linestyle="--",
        label="guide: d' + q ln N",
    )
    axes.set_yscale("log", base=2)
    axes.set_xticks(q[:: max(1, len(q) // 8)])
    axes.set_xlabel("sparsity q")
    axes.set_ylabel("embedding dimension m")
    axes.set_title(f"q-sparse averaging of {scale} tokens, d' = {first['dim']}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return write_figure(figure, data, folder, name)
