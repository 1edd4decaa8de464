"""The README's picture: the ranks that a plan assigns to each layer, compared with the dense width.

python benchmarks/readme_picture.py headcount-runs/demo/plan-fast-greedy-0.5-fisher docs/ranks.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from headcount.trimming.plan.make import Plan


def main(folder: str, picture: str) -> None:
    """Draw one plan."""
    plan = Plan.open(folder)
    matplotlib.rcParams |= {"svg.hashsalt": "headcount", "font.size": 9, "axes.spines.top": False}
    figure, axes = pyplot.subplots(figsize=(7.5, 2.6), layout="constrained")
    layers = [layer.layer for layer in plan.record.layers]
    dense = plan.audit.record.spec.layers[0]
    for shift, side, color in ((-0.2, "k_rank", "#3465a4"), (0.2, "v_rank", "#e08a00")):
        ranks = [getattr(layer, side) for layer in plan.record.layers]
        axes.bar([i + shift for i in layers], ranks, width=0.4, color=color, label=f"{side[0].upper()} rank")
    axes.axhline(dense.k_width, color="#888888", linewidth=1, linestyle="--", label="dense width")
    axes.set_xlabel("layer")
    axes.set_ylabel("numbers cached per token")
    axes.set_xticks(layers[::2])
    axes.spines["right"].set_visible(False)
    axes.legend(ncols=3, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.18))
    figure.savefig(Path(picture), metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
