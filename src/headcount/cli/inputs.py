"""Reading the inputs of ``headcount task solve``: JSON, JSON Lines, .npy, or a text of integers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headcount import tasks
from headcount.core.errors import HeadcountError
from headcount.core.options import Option
from headcount.core.payload import JsonObject

Inputs = dict[str, NDArray[Any]]


def read_inputs(source: str) -> tuple[Inputs, JsonObject]:
    """The arrays in a file (or - for standard input), and the sizes recorded in it.

    In JSON Lines and text files each line is a sequence, so the arrays from several lines have one more axis than those
    from a single line.
    """
    if source == "-":
        data = sys.stdin.buffer.read()
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise HeadcountError(f"cannot read {source}: {error.strerror or error}", fix="check the path") from None
    if data[:6] == b"\x93NUMPY":
        try:
            return {"x": np.load(BytesIO(data), allow_pickle=False)}, {}
        except (ValueError, EOFError):
            raise HeadcountError(f"{source} is no readable .npy file", fix="save it again") from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise HeadcountError(f"{source} is neither text nor .npy", fix="give JSON or integers") from None
    if text.lstrip()[:1] in ("[", "{"):
        return _from_json(source, text)
    try:
        rows = [[int(word) for word in line.replace(",", " ").split()] for line in text.splitlines()]
    except ValueError as error:
        raise HeadcountError(f"{source} holds no integers ({error})", fix="give integers or JSON") from None
    if not any(rows):
        raise HeadcountError(f"{source} is empty", fix="give a line for each sequence, an integer for each token")
    return _stacked(source, [(number, {"x": row}) for number, row in enumerate(rows, start=1) if row]), {}


def sizes_of(inputs: Inputs, sizes: Iterable[Option]) -> dict[str, int]:
    """The task sizes that follow from the shapes of the inputs, for inputs with enough axes."""
    shown: dict[str, int] = {}
    short = set()
    for size in sizes:
        for name, axis in size.axes:
            if name not in inputs:
                continue
            if inputs[name].ndim >= -axis:
                shown[size.name] = inputs[name].shape[axis]
            elif name != "x":  # the task itself reports what it accepts
                short.add(name)
    if short:
        raise HeadcountError("z or y has too few axes", fix="give z as rows of vectors, y as sets of tokens")
    return shown


def _from_json(source: str, text: str) -> tuple[Inputs, JsonObject]:
    try:
        value = json.loads(text)
    except ValueError as error:
        if getattr(error, "msg", "") == "Extra data":  # a complete value followed by more data
            return _from_lines(source, text), {}
        raise HeadcountError(f"{source} is no valid JSON ({error})", fix="check the file") from None
    if isinstance(value, list):
        return {"x": _array(source, value)}, {}
    sizes = value.get("sizes", {})
    arrays = value.get("inputs", {key: item for key, item in value.items() if isinstance(item, list)})
    if not isinstance(sizes, dict) or not isinstance(arrays, dict) or not arrays:
        raise HeadcountError(f"{source} holds no inputs", fix="give a list, or an object with x, or z and y")
    # Sizes that follow from the inputs are inferred, so that a shortened file remains valid.
    shown = {size.name for size in tasks.declared_sizes() if size.axes}
    other_sizes = {key: item for key, item in sizes.items() if key not in shown}
    return {key: _array(source, item) for key, item in arrays.items()}, other_sizes


def _from_lines(source: str, text: str) -> Inputs:
    """JSON Lines: each line is a list of the symbols of a sequence, or an object with its arrays."""
    sequences: list[tuple[int, JsonObject]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise HeadcountError(
                f"line {number} of {source} is no valid JSON ({error})", fix="give one JSON value, or one on each line"
            ) from None
        sequence = {"x": value} if isinstance(value, list) else value
        if not isinstance(sequence, dict) or not sequence or "inputs" in sequence:
            raise HeadcountError(
                f"line {number} of {source} holds no single sequence",
                fix="give a list, or an object with x, or z and y",
            )
        sequences.append((number, sequence))
    return _stacked(source, sequences)


def _stacked(source: str, sequences: list[tuple[int, JsonObject]]) -> Inputs:
    """Stacked arrays of sequences with their line numbers; a single sequence gets no batch axis."""
    first_line, first = sequences[0]
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in first}
    for number, sequence in sequences:
        if sequence.keys() != first.keys():
            raise HeadcountError(
                f"line {number} of {source} has {', '.join(sequence)}, line {first_line} {', '.join(first)}",
                fix="give the same arrays on every line",
            )
        for name, value in sequence.items():
            array = _array(f"line {number} of {source}", value)
            if columns[name] and array.shape != columns[name][0].shape:
                size, first_size = (" by ".join(map(str, one.shape)) for one in (array, columns[name][0]))
                raise HeadcountError(
                    f"line {number} of {source} has {size} numbers, line {first_line} has {first_size}",
                    fix="give sequences of one length, or solve them one by one",
                )
            columns[name].append(array)
    if len(sequences) == 1:
        return {name: arrays[0] for name, arrays in columns.items()}
    return {name: np.stack(arrays) for name, arrays in columns.items()}


def _array(source: str, value: Any) -> NDArray[Any]:
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        array = np.array(None)
    if array.dtype.kind not in "iuf" or array.size == 0:
        raise HeadcountError(
            f"{source} holds lists of unequal length or values that are no numbers", fix="check the file"
        )
    return array
