"""Trimmed models under every client: how far each is from the uncached forward, as a table.

    python benchmarks/client_matrix.py

Every family and both forms at half the cache, tiny random models, float32: the largest difference of logits (log
probabilities for beams) from the model's own forward without a cache, on logits of order 5. ``refused``: a
ValueError that names the client. What each client does is in ``tests/pretrained/client_*.py``; the rows
are those of ``tests/pretrained/test_clients.py``, which holds each below 1e-4.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "pretrained")]


def cell(family: str, form: str, client: str) -> str:
    """The result of a client: a difference, ``refused``, or the name of an error."""
    import client_cases as cases
    import client_tools as tools
    import client_truth as truth

    run: Any = cases.CLIENTS.get(client)
    model = truth.trimmed(family, form)
    try:
        if client == "disk offload":
            with tempfile.TemporaryDirectory() as folder:
                pair = tools.disk_offload(model, Path(folder))
        else:
            pair = run(model) if run is not None else cases.REFUSED[client][0](model)
    except ValueError as error:
        named = cases.REFUSED[client][1] if client in cases.REFUSED else cases.NOT_IN_TRANSFORMERS.get((family, client))
        return "refused" if named and named in str(error) else type(error).__name__
    except Exception as error:  # any error is a result in the table
        return type(error).__name__
    return f"{float((pair.got - pair.wanted).abs().max()):.0e}"


def main() -> None:
    """Print the table with one row per client."""
    import client_cases as cases
    from conftest import DECODERS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clients", nargs="*", help="rows; all by default")
    clients = parser.parse_args().clients or [*cases.CLIENTS, "disk offload", *cases.REFUSED]
    print("| client | " + " | ".join(DECODERS) + " |")
    print("|---|" + "---|" * len(DECODERS))
    for client in clients:
        cells = []
        for family in DECODERS:
            with redirect_stderr(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                forms = [cell(family, form, client) for form in ("fast", "small")]
            cells.append(forms[0] if forms[0] == forms[1] else " / ".join(forms))
        print(f"| {client} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
