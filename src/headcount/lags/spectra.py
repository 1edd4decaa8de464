"""Content spectra: the singular values of the content matrix of a lag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.core.store import read_json
from headcount.trimming.audit.schema import RECORD, AuditRecord


def random_spectra(lags: int, width: int, seed: int = 0) -> list[list[float]]:
    """Singular values of independent Gaussian width x width matrices, each scaled to Frobenius norm 1.

    >>> [round(value, 3) for value in random_spectra(1, 3)[0]]
    [0.827, 0.547, 0.13]
    """
    if width < 1:
        raise HeadcountError(f"a content width of {width} is not possible", fix="use 1 or more")
    generator = numpy_generator(seed, "allocation", "spectra")
    spectra = []
    for _ in range(lags):
        values = np.linalg.svd(generator.normal(size=(width, width)), compute_uv=False)
        spectra.append((values / np.sqrt((values**2).sum())).tolist())
    return spectra


def read_spectra(path: Path, lags: int, layer: int = 0) -> list[list[float]]:
    """Singular values from a JSON file (a list for each lag), or from an audit folder (``audit_spectrum``)."""
    if path.is_dir():
        return [audit_spectrum(path, layer)] * lags
    spectra = _json(path, "name a JSON file or an audit folder")
    try:
        return [[float(value) for value in spectrum] for spectrum in spectra]
    except (ValueError, TypeError) as error:
        raise HeadcountError(f"{path} is no list of lists of numbers", fix="write it as [[2.0, 1.0], [3.0]]") from error


def audit_spectrum(folder: Path, layer: int) -> list[float]:
    """The value spectrum of an audited layer, assumed equal for every lag: the square roots of the joint energies
    (nats with the metric ``fisher``), scaled to Frobenius norm 1 like the random spectra.

    Only ``audit.json`` is read and torch is not imported, so an allocation from a table and an audit is immediate.

    Raises:
        HeadcountError: if there is no audit, it does not match the schema, or it does not contain the layer.
    """
    path = folder / RECORD
    if not path.is_file():
        raise HeadcountError(f"{folder} holds no finished audit", fix="name the folder of a finished headcount audit")
    layers = read_json(path, AuditRecord).layers
    if not 0 <= layer < len(layers):
        raise HeadcountError(f"the audit has no layer {layer}", fix=f"use --layer 0 to {len(layers) - 1}")
    values = layers[layer].sides.get("values")
    energies = np.asarray(values.joint if values else (), dtype=np.float64)
    total = energies.sum()
    if not (energies.size and np.isfinite(total) and total > 0 and energies.min() >= 0):
        raise HeadcountError(f"{path} has no value energies of layer {layer}", fix="run headcount audit again")
    return [float(value) for value in np.sqrt(energies / total)]


def _json(path: Path, fix: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HeadcountError(f"cannot read {path}: {error.strerror}", fix=fix) from error
    except ValueError as error:
        raise HeadcountError(f"{path} is no JSON", fix=fix) from error
