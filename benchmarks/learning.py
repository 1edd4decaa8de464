"""Where the time of training goes: data and evaluation should stay under a tenth of it.

    python benchmarks/learning.py [--steps 512]

The default recipes of `headcount learn`, shortened; one thread; shares of one process's time. Prints Markdown.
"""

from __future__ import annotations

import argparse

from headcount.lab.specs.run import RunSpec
from headcount.lab.train.loop import train

RECIPES = (
    {"task": "qsa", "tokens": 20, "sparsity": 3, "dim": 4, "model": "attention"},
    {"task": "qsa", "tokens": 20, "sparsity": 3, "dim": 4, "model": "lstm"},
    {"task": "qsa", "tokens": 20, "sparsity": 3, "dim": 4, "model": "mlp"},
    {"task": "match3", "tokens": 8, "model": "attention"},
    {"task": "match3", "tokens": 8, "model": "third-order"},
)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=512)
    steps = parser.parse_args().steps
    print("| task | model | ms a step | data | evaluation |\n|---|---|---|---|---|")
    for recipe in RECIPES:
        seconds = train(RunSpec.checked(recipe | {"steps": steps, "evaluate_every": max(1, steps // 8)})).seconds
        total = sum(seconds[part] for part in ("train", "data", "evaluation"))
        shares = " | ".join(f"{seconds[part] / total:.1%}" for part in ("data", "evaluation"))
        print(f"| {recipe['task']} | {recipe['model']} | {1000 * total / steps:.2f} | {shares} |")


if __name__ == "__main__":
    main()
