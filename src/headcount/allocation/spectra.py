"""Content spectra: the singular values of what a lag carries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from headcount.errors import HeadcountError
from headcount.seeds import numpy_generator


def random_spectra(lags: int, width: int, seed: int = 0) -> list[list[float]]:
    """Singular values of independent Gaussian width x width matrices, each scaled to Frobenius norm 1.

    >>> [round(value, 3) for value in random_spectra(1, 3)[0]]
    [0.827, 0.547, 0.13]
    """
    if width < 1:
        raise HeadcountError(f"a content width of {width} is not possible", fix="use 1 or more")
    generator = numpy_generator(seed, "allocation", "spectra")
    found = []
    for _ in range(lags):
        values = np.linalg.svd(generator.normal(size=(width, width)), compute_uv=False)
        found.append((values / np.sqrt((values**2).sum())).tolist())
    return found


def read_spectra(path: Path) -> list[list[float]]:
    """Singular values from a JSON file: a list of numbers for each lag."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [[float(value) for value in spectrum] for spectrum in found]
    except OSError as error:
        raise HeadcountError(f"cannot read {path}: {error.strerror}", fix="name a JSON file") from error
    except (ValueError, TypeError) as error:
        raise HeadcountError(f"{path} is no list of lists of numbers", fix="write it as [[2.0, 1.0], [3.0]]") from error
