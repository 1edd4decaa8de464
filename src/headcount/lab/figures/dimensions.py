"""Figure: embedding dimensions of qSA for q = 1..16: upper bounds by construction, and lower bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from headcount.bounds import Sizes
from headcount.bounds.gap import TWO_MAPS, constructed, embedding_bounds
from headcount.constructions import Construction
from headcount.constructions.verify import verify_kinds
from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, PINK, Canvas, canvas
from headcount.core.progress import Progress, silent
from headcount.lab.figures.base import Data, Figure, Inputs

_MORE = 4
"""Bits added to the sufficient significand bits, since the coefficients of the query may exceed 1."""
COUNTED = ("qsa-bits", "qsa-bits-all")
"""The bounds for p-bit numbers; the larger of the two is drawn as one line."""


def rows(
    tokens: int = 1024,
    dim: int = 8,
    precision_bits: int = 64,
    sparsities: Sequence[int] = tuple(range(1, 17)),
    count: int = 2,
    seed: int = 0,
    progress: Progress = silent,
) -> Data:
    """One row for each q: built dimensions, wrong answers in float64, the verifying precision, and the bounds."""
    result = []
    for done, q in enumerate(sparsities):
        sizes = Sizes(tokens=tokens, sparsity=q, dim=dim, precision_bits=precision_bits, epsilon=1 / (4 * q))
        constructions_by_name = constructed("qsa", sizes, seed)
        row: dict[str, Any] = {"tokens": tokens, "dim": dim, "sparsity": q}
        for name in ("qsa-certificate", "qsa-polytope"):
            built = constructions_by_name[name]
            row[name] = built.certificate.embedding_dim
            row[f"{name} bits"] = built.certificate.bits
            row[f"{name} wrong"] = verify_kinds(built, count=count, seed=seed).wrong
        row["qsa-polytope verified in"] = _verified_in(constructions_by_name["qsa-polytope"], count, seed)
        row["certificate keys over q ln N"] = round((row["qsa-certificate"] - dim) / (q * math.log(tokens)), 3)
        row["precision bits of qsa-bits"] = precision_bits
        row |= embedding_bounds("qsa", sizes, TWO_MAPS)
        result.append(row)
        progress("dimensions", done + 1, len(sparsities))
    return result


def _verified_in(built: Construction, count: int, seed: int) -> str | None:
    """float64, or slightly more bits than the rounding analysis requires; ``None`` if neither verifies."""
    for precision in ("fp64", f"wide:{built.certificate.bits + _MORE}"):
        if verify_kinds(built, count=count, seed=seed, precision=precision).verified:
            return precision
    return None


def counted(row: dict[str, Any]) -> int:
    """The larger of the two bounds for p-bit numbers."""
    return max(int(row[name]) for name in COUNTED)


def verdict(data: Data) -> str:
    """How the built dimensions compare with the lower bounds."""
    first = data[0]
    above = [row["qsa-certificate"] / row["qsa-radon"] for row in data]
    tight = [row["sparsity"] for row in data if row["qsa-polytope"] == row["qsa-radon"]]
    narrow = [row["sparsity"] for row in data if row["qsa-polytope verified in"] == "fp64"]
    bits, most = first["precision bits of qsa-bits"], max(map(counted, data))
    return (
        f"Embedding dimensions of q-sparse averaging, N = {first['tokens']}, d' = {first['dim']}: qsa-polytope has the "
        f"smallest dimension that keys by position allow (qsa-radon) for {_these(tight, data)}, and float64 is enough "
        f"to run it for {_these(narrow, data)}; qsa-certificate takes {min(above):.2f} to {max(above):.2f} times that "
        f"dimension. Bounds for any network on {bits}-bit embeddings are at most {most} ({' and '.join(COUNTED)})."
    )


def _these(sparsities: Sequence[int], data: Data) -> str:
    """The sparsities as text."""
    every = [row["sparsity"] for row in data]
    if list(sparsities) == every:
        return "every q"
    return "q = " + ", ".join(map(str, sparsities)) if sparsities else "no q"


def draw(data: Data) -> Canvas:
    """Dimensions over q: built dimensions with markers, lower bounds as lines."""
    figure = canvas(8.6, 4.4)
    axes = figure.subplots()
    q = [row["sparsity"] for row in data]
    first = data[0]

    def line(key: str, **style: Any) -> None:
        axes.plot(q, [row[key] for row in data], **style)

    line("qsa-radon", color=GREEN, linewidth=7, alpha=0.3, label="impossible below: qsa-radon (any precision)")
    line("qsa-regions", color=GREEN, linestyle="-", label="impossible below: qsa-regions (any precision)")
    bits = first["precision bits of qsa-bits"]
    label = f"impossible below: {', '.join(COUNTED)} ({bits}-bit numbers)"
    axes.plot(q, [counted(row) for row in data], color=PINK, label=label)
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
    return figure


def data(inputs: Inputs) -> Data:
    """The rows of the committed figure: N = 1024, d' = 8, 64-bit numbers, q = 1..16."""
    return rows(progress=inputs.progress)


FIGURE = Figure(
    name="dimensions",
    title="Embedding dimensions of sparse averaging, built and impossible",
    data=data,
    verdict=verdict,
    draw=draw,
    file="embedding_dimensions",
)
