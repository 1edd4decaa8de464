"""Figure: the precision cliff (the fewest bits at which a construction still verifies) against the size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headcount import constructions
from headcount.constructions import Construction
from headcount.constructions.verify import verify_kinds
from headcount.core.drawing import BLUE, GREEN, GREY, ORANGE, Canvas, canvas
from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.lab.figures.base import Data, Figure, Inputs

LEAST_BITS, MOST_BITS = 2, 53
_ABOVE = 3

Style = Literal["float", "fixed"]
STYLES: tuple[Style, ...] = ("float", "fixed")


@dataclass(frozen=True)
class Curve:
    """One construction, the size that varies, and the growth of p stated by the theorem."""

    name: str
    options: dict[str, Any]
    over: str
    values: tuple[int, ...]
    theorem: str
    """The statement of Sanford et al. 2023: an asymptotic shape with an unknown constant."""
    shape: Callable[[float], float]
    label: str = ""
    count: int = 12

    def build(self, value: int, seed: int) -> Construction:
        """The construction at one size."""
        options = {**self.options, self.over: value}
        if "seed" in constructions.options(self.name):
            options["seed"] = seed
        return constructions.build(self.name, **options)


def _qsa_epsilon(q: int) -> float:
    return 1 / (4 * q)


MODULI = (5, 11, 31, 101, 331, 1009, 3001, 10007, 31013, 100_003)
CURVES = (
    Curve(
        "match2",
        {"tokens": 24},
        "modulus",
        MODULI,
        "p of order log M (Theorem 6)",
        lambda m: math.log2(m),
        "Match2, N = 24",
    ),
    Curve(
        "match-s",
        {"tokens": 16, "order": 3},
        "modulus",
        MODULI,
        "p of order log M (third-order unit)",
        lambda m: math.log2(m),
        "Match3 (order 3), N = 16",
    ),
    Curve(
        "qsa-certificate",
        {"sparsity": 4, "epsilon": _qsa_epsilon(4)},
        "tokens",
        (8, 16, 32, 64, 128, 256),
        "p of order log((q/eps) log N) (Theorem 2)",
        lambda n: math.log2(4 / _qsa_epsilon(4) * math.log(n)),
        "qSA, sign keys, q = 4, eps = 1/16",
        6,
    ),
    Curve(
        "qsa-polytope",
        {"sparsity": 2, "epsilon": _qsa_epsilon(2)},
        "tokens",
        (8, 16, 32, 64, 128, 256),
        "p large enough (Theorem 3); here q log N",
        lambda n: 2 * math.log2(n),
        "qSA, cyclic polytope, q = 2, eps = 1/8",
        6,
    ),
)


def fewest_bits(built: Construction, style: Style, count: int = 12, seed: int = 0) -> int | None:
    """The smallest p such that ``style``:p and every higher precision, up to the sufficient one, verify.

    The search goes downwards from the certificate's sufficient bits (a few more for fixed point, which represents
    small numbers more coarsely) to the first failure. Results near the cliff are a matter of chance, so a single
    success below the first failure is not meaningful. Returns ``None`` if float64 itself does not verify.
    """

    def holds(p: int) -> bool:
        precision = "fp64" if p >= MOST_BITS else f"{style}:{p}"
        return verify_kinds(built, "mixed", count, seed, precision).verified

    p = min(MOST_BITS, built.certificate.bits + _ABOVE)
    while not holds(p):
        if p == MOST_BITS:
            return None
        p = min(MOST_BITS, p + _ABOVE)
    while p > LEAST_BITS and holds(p - 1):
        p -= 1
    return p


def rows(curves: Sequence[Curve] = CURVES, seed: int = 0, progress: Progress = silent) -> Data:
    """One row for each construction and size."""
    result = []
    total = sum(len(curve.values) for curve in curves)
    for curve in curves:
        for value in curve.values:
            built = curve.build(value, seed)
            row: dict[str, Any] = {
                "construction": curve.name,
                "sizes": " ".join(f"{k}={v}" for k, v in built.task.parameters().items()),
                "over": curve.over,
                "size": value,
                "embedding_dim": built.certificate.embedding_dim,
                "sequences": curve.count,
            }
            for style in STYLES:
                row[f"{style} cliff bits"] = fewest_bits(built, style, curve.count, seed)
            row["sufficient bits"] = built.certificate.bits
            row["theorem"] = curve.theorem
            row["theorem shape"] = round(curve.shape(value), 4)
            result.append(row)
            progress("cliff", len(result), total)
    return result


def largest(
    name: str,
    precision: str,
    over: str,
    values: Sequence[int],
    options: dict[str, Any],
    count: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Whether the construction verifies in ``precision`` at each of the sizes ``values``."""
    result = []
    for value in values:
        build_options = {**options, over: value}
        if "seed" in constructions.options(name):
            build_options["seed"] = seed
        report = verify_kinds(constructions.build(name, **build_options), "mixed", count, seed, precision)
        result.append({"size": value, "checked": report.checked, "wrong": report.wrong, "verified": report.verified})
    if not result:
        raise HeadcountError("there are no sizes to try", fix="give --values 31,101,401")
    return result


def verdict(data: Data) -> str:
    """The cliff of each construction at its smallest and largest size, and the additional bits per doubling of size."""
    parts = []
    for curve in CURVES:
        shown = [row for row in data if row["construction"] == curve.name]
        known = [row for row in shown if row["float cliff bits"] is not None]
        if not known:
            parts.append(f"{curve.label}: not even 53 bits")
            continue
        low, high = known[0], known[-1]
        letter = "M" if curve.over == "modulus" else "N"
        told = f"{curve.label}: {low['float cliff bits']} at {letter} = {low['size']:,}"
        if high["size"] > low["size"]:
            slope = (high["float cliff bits"] - low["float cliff bits"]) / math.log2(high["size"] / low["size"])
            told += f", {high['float cliff bits']} at {high['size']:,} ({slope:.2f} for each doubling)"
        parts.append(told)
    return f"Significand bits from which on a construction verifies: {'; '.join(parts)}."


def draw(data: Data) -> Canvas:
    """One panel for each construction: the measured cliffs, the sufficient bits, the theorem's shape."""
    figure = canvas(10, 7.2)
    panels = figure.subplots(2, 2, sharey=True)
    for axes, curve in zip(panels.flat, CURVES, strict=True):
        shown = [row for row in data if row["construction"] == curve.name]
        sizes = [row["size"] for row in shown]
        for format_name, bits in (("bf16", 8), ("fp16, tf32", 11), ("fp32", 24), ("fp64", 53)):
            axes.axhline(bits, color=GREY, linewidth=0.6, alpha=0.6)
            axes.text(1.01, bits, format_name, transform=axes.get_yaxis_transform(), fontsize=7, color=GREY,
                      ha="left", va="center")  # fmt: skip
        axes.plot(sizes, [row["sufficient bits"] for row in shown], color=GREEN, linewidth=1,
                  label="sufficient (rounding analysis)")  # fmt: skip
        for style, colour, marker in (("float", BLUE, "o"), ("fixed", ORANGE, "s")):
            axes.plot(sizes, [row[f"{style} cliff bits"] for row in shown], color=colour, marker=marker,
                      markersize=4, label=f"measured cliff, {style}:p")  # fmt: skip
        anchor = shown[-1]
        factor = (anchor["float cliff bits"] or math.nan) / anchor["theorem shape"]
        axes.plot(sizes, [factor * row["theorem shape"] for row in shown], color=GREY, linestyle="--",
                  label=f"{anchor['theorem']}, scaled to the last point")  # fmt: skip
        axes.set_xscale("log", base=10 if curve.over == "modulus" else 2)
        axes.set_xlabel("modulus M" if curve.over == "modulus" else "tokens N")
        axes.set_ylabel("bits p")
        axes.set_ylim(0, 56)
        axes.set_title(curve.label, fontsize=10)
        axes.legend(fontsize=7, loc="upper left", frameon=False, bbox_to_anchor=(0, 0.92))
    figure.suptitle("Precision cliffs: fewest bits at which the construction still verifies")
    return figure


def data(inputs: Inputs) -> Data:
    """The rows of all constructions and sizes; takes about two minutes."""
    return rows(progress=inputs.progress)


FIGURE = Figure(
    name="cliff",
    title="Precision cliffs: fewest bits at which a construction verifies",
    data=data,
    verdict=verdict,
    draw=draw,
    file="precision_cliff",
)
