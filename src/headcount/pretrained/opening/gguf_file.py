"""GGUF files: validated before they are read, and parsed only once.

A GGUF file is untrusted input like a model folder. Its header states lengths and counts that a reader relies on;
``check_gguf`` walks the header and checks every step against the length of the file, so that a truncated or
invalid file is rejected with a one-line error. transformers reads the contents of the file.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headcount.core.errors import HeadcountError
from headcount.core.extras import optional_imports, require
from headcount.pretrained.families import FAMILIES

_VERSIONS = (2, 3)
# Metadata value types of fixed width and their struct letters; besides them 8 is a string and 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass
class GgufHeader:
    """The header of a GGUF file, available before its weights are read."""

    architecture: str
    metadata: dict[str, object] = field(default_factory=dict)
    """Values that are a single number or string."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Lengths of array values, such as the vocabulary."""
    elements: dict[str, int] = field(default_factory=dict)
    """Number of elements of each tensor."""

    @property
    def blocks(self) -> int:
        """Number of layers that have tensors."""
        return 1 + max((int(match[1]) for name in self.elements if (match := _BLOCK.match(name))), default=-1)

    @property
    def layer_numbers(self) -> int:
        """Total number of elements in the tensors of all layers."""
        return sum(count for name, count in self.elements.items() if _BLOCK.match(name))


class _CutError(Exception):
    """The header extends past the end of the file."""


class _Walk:
    """A bounds-checked read position in the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def skip(self, width: int) -> int:
        """Advance by ``width`` bytes, which must be within the file; returns the start position."""
        start = self.at
        if width > len(self.data) - start:
            raise _CutError
        self.at = start + width
        return start

    def number(self, letter: str) -> Any:
        """Read one little-endian number."""
        return struct.unpack_from(f"<{letter}", self.data, self.skip(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> str:
        """Read a length followed by that many bytes of UTF-8."""
        start = self.skip(self.number("Q"))
        return self.data[start : self.at].decode("utf-8")

    def value(self) -> tuple[object, int | None]:
        """Read a metadata value: (value, None), or for an array, which is skipped, (None, length)."""
        kind = self.number("I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind]), None
        if kind == _STRING:
            return self.text(), None
        if kind != _ARRAY:
            raise ValueError(f"it has a value of the unknown type {kind}")
        element, count = self.number("I"), self.number("Q")
        if element in _SCALARS:
            self.skip(struct.calcsize(f"<{_SCALARS[element]}") * count)
        elif element == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise ValueError(f"it has an array of the type {element}")
        return None, count


def check_gguf(path: Path) -> GgufHeader:
    """Validate the header of a GGUF file; reject other formats, truncated or inconsistent files, and unknown families.

    Raises ``HeadcountError``. The weights are not read.
    """
    fix = "fetch it again"
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise HeadcountError(f"{path} is not a GGUF file", fix="give a .gguf file, or a model folder")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _walk(path, _Walk(data))
    except FileNotFoundError:
        raise HeadcountError(f"{path} does not exist", fix="check the path") from None
    except OSError as error:
        raise HeadcountError(f"{path} cannot be read ({error.strerror})", fix="check the path") from error
    except _CutError:
        size = path.stat().st_size
        raise HeadcountError(f"{path} is cut short: its header goes on behind its {size:,} bytes", fix=fix) from None
    except (ValueError, KeyError) as error:
        raise HeadcountError(f"{path} has a damaged header ({error})", fix=fix) from error
    parts = header.metadata.get("split.count", 0)
    if parts not in (0, 1):
        raise HeadcountError(f"{path} is one of {parts} parts", fix="merge them (gguf-split --merge) first")
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.elements:
        raise HeadcountError(
            f"{path} scales its rotary embedding, which transformers does not read from GGUF",
            fix="give the model's safetensors",
        )
    stated = header.metadata.get(f"{header.architecture}.block_count")
    if stated != header.blocks:
        raise HeadcountError(f"{path} states {stated} layers, but has weights for {header.blocks}", fix=fix)
    return header


def _walk(path: Path, walk: _Walk) -> GgufHeader:
    """Read the header, and check that the file contains everything it declares."""
    with optional_imports():
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    walk.skip(4)
    version = walk.number("I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, not 2 or 3")
    tensor_count, value_count = walk.number("Q"), walk.number("Q")
    metadata, lengths = {}, {}
    for _ in range(value_count):
        key = walk.text()
        value, length = walk.value()
        if length is None:
            metadata[key] = value
        else:
            lengths[key] = length
    architecture = metadata.get("general.architecture")
    known = [family.gguf for family in FAMILIES.values() if family.gguf is not None]
    if architecture not in known:
        raise HeadcountError(
            f"{path}: GGUF architecture {architecture!r} is not supported", fix=f"supported: {', '.join(known)}"
        )
    header = GgufHeader(architecture, metadata, lengths)
    ends: dict[str, int] = {}
    for _ in range(tensor_count):
        name, dimensions = walk.text(), walk.number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"{name!r} has {dimensions} dimensions")
        header.elements[name] = math.prod(walk.number("Q") for _ in range(dimensions))
        kind, offset = GGMLQuantizationType(walk.number("I")), walk.number("Q")
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        ends[name] = offset + -(-header.elements[name] // per_block) * block_bytes
    alignment = header.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment}, no power of two")
    start = -(-walk.at // alignment) * alignment
    size = len(walk.data)
    for name, end in ends.items():
        if start + end > size:
            raise HeadcountError(
                f"{path} is cut short: {name!r} ends at byte {start + end:,}, the file has {size:,}",
                fix="fetch it again",
            )
    return header


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Let transformers' GGUF loader parse a file once, and quietly.

    For config, weights and tokenizer, the loader parses the whole file, including the vocabulary, four times, and
    rebuilds the table of tensor names for every submodule: 20 s of processor time for a model of 135M parameters.
    Inside the ``with`` block both are cached, and the loader's progress bar is disabled; everything is restored at
    the end.
    """
    require("accelerate")  # required by transformers' loader
    with optional_imports():
        import gguf
    from transformers import modeling_gguf_pytorch_utils

    parser: Any = gguf
    loader: Any = modeling_gguf_pytorch_utils

    class PlainReader(gguf.GGUFReader):
        """Holds the file as a plain array: slicing a memory map is three times as expensive."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            import numpy as np

            self._plain = np.asarray(mapped)

    stock_reader, stock_names, stock_bar = parser.GGUFReader, parser.get_tensor_name_map, loader.tqdm
    held: dict[str, Any] = {}

    def reader(path: Any, mode: str = "r") -> Any:
        if mode != "r":
            return stock_reader(path, mode)
        place = os.fspath(path)
        if place not in held:
            held[place] = PlainReader(place)
        return held[place]

    parser.GGUFReader = reader
    parser.get_tensor_name_map = functools.cache(stock_names)
    loader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        parser.GGUFReader, parser.get_tensor_name_map, loader.tqdm = stock_reader, stock_names, stock_bar
