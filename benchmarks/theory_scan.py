"""Random and extreme sizes through every bound and every construction; each certificate is checked by running it.

    python benchmarks/theory_scan.py --sets 200000 [--seed 0] [--state FILE] [--only INDEX]

Set i is drawn from (seed, i), so one that failed is run again with ``--only i``. With ``--state`` the counts are
kept in a JSON file every 500 sets, and an interrupted scan resumes there. All corner sizes are run first. Checked:

- nothing but ``HeadcountError`` is raised, and refusals are counted by their message;
- nothing built for all inputs is smaller than a bound that applies to it, in the precision that it needs;
- bounds are integers of 0 or more, and equal to exact binomials where those are small;
- certificates, by running the weights. qSA: all q-subsets where N <= 12 (else random ones and neighbours), each
  with the worst vectors there are: for attention weights a and a mean t the largest error over all z in the
  unit balls is sum_j |a_j - t_j|. Matching: all M^N sequences where they are at most 256, else the three kinds.

A certificate of more than 53 bits says nothing about float64. There qsa-polytope is run in as many bits as it asks
for (with N <= 12 on every set up to a rotation of the circle of its keys), matching is evaluated from its levels with
exact residues, and qsa-certificate must stay within what its analysis gives for float64: epsilon/2 (1 + 2^(bits - 53)).
One construction in 20 is also run with every operation rounded to the bits of its certificate.

Exits with 1 where something failed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from theory_checks import Scan
from theory_sizes import corners, draw


def scan(sets: int, seed: int = 0, state: Path | None = None, with_corners: bool = True, show: bool = True) -> Scan:
    """Check all corners, then ``sets`` random cases."""
    done, start = Scan(), 0
    if state is not None and state.exists():
        saved = json.loads(state.read_text())
        if saved["seed"] != seed:
            raise SystemExit(f"{state} is of seed {saved['seed']}: give another file")
        done.counts, done.problems, start = Counter(saved["counts"]), saved["problems"], saved["start"]
    elif with_corners:
        for case in corners():
            done.run(case)
        done.counts["corner sets"] = sum(
            count for name, count in done.counts.items() if name.split()[0] in ("bound", "construct")
        )
    began = time.monotonic()
    for index in range(start, sets):
        rng = random.Random(f"{seed} {index}")
        done.run(draw(rng), command_line=rng.random() < 0.01)
        if index % 500 == 499 or index == sets - 1:
            if state is not None:
                saved = {"seed": seed, "start": index + 1, "counts": done.counts, "problems": done.problems}
                state.write_text(json.dumps(saved))
            if show:
                share = (index + 1 - start) / (sets - start)
                left = (time.monotonic() - began) * (1 / share - 1)
                bar = "#" * round(30 * (index + 1) / sets)
                print(f"\r[{bar:<30}] {index + 1:,} of {sets:,}, {left / 60:.0f} min left, "
                      f"{len(done.problems)} problems ", end="", file=sys.stderr, flush=True)  # fmt: skip
    if show:
        print(file=sys.stderr)
    return done


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--only", type=int, metavar="INDEX")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only is not None:
        done, rng = Scan(), random.Random(f"{options.seed} {options.only}")
        case = draw(rng)
        print(case)
        done.run(case, command_line=rng.random() < 0.01)
    else:
        done = scan(options.sets, options.seed, options.state)
    for name, count in sorted(done.counts.items()):
        print(f"{count:>12,}  {name}")
    print(f"{len(done.problems):>12,}  problems")
    for problem in done.problems[:50]:
        print(problem)
    return 1 if done.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
