"""Opening a pretrained model: a folder, a hub name, a GGUF file, or ``demo``.

``places`` locates a model and validates its folder; this module loads it. Missing, unexpected, misshapen or non-finite
weights are rejected with an error that names them, before anything is computed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.core.spec import ModelSpec
from headcount.pretrained.families import TRIMMED_PREFIX, Family, family_of, layers_of, read_spec
from headcount.pretrained.opening.fingerprint import fingerprint
from headcount.pretrained.opening.gguf_file import read_once
from headcount.pretrained.opening.places import DTYPES, Place, brief, locate
from headcount.pretrained.opening.source import Source, source_of
from headcount.pretrained.runtimes.register import register_trimmed
from headcount.pretrained.text.texts import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TIED = 4
"""Maximum ratio of the config's parameters to the stored numbers: tied weights are stored once."""


@dataclass(frozen=True)
class OpenModel:
    """A loaded model with its tokenizer, spec and fingerprint."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    spec: ModelSpec
    fingerprint: str
    source: Source | None = None


def open_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    tokenizer: bool = True,
) -> OpenModel:
    """Open a model from a folder, a hub name, a ``.gguf`` file, or ``demo``.

    ``dtype`` is ``auto`` (as stored; GGUF: float32) or a name. Raises ``HeadcountError`` for all errors that a user
    can fix; nothing is written outside the hub cache.
    """
    name = str(source)
    if dtype != "auto" and dtype not in DTYPES:
        raise HeadcountError(f"unknown dtype {dtype!r}", fix=f"use auto or one of {', '.join(DTYPES)}")
    place = locate(name, allow_pickle, trust_remote_code)
    with quiet_transformers(), read_once() if place.gguf else contextlib.nullcontext():
        model: Any = _load_model(name, place, dtype, allow_pickle, trust_remote_code)
        loaded_tokenizer = _load_tokenizer(name, place, trust_remote_code) if tokenizer else None
    model = model.to(device).eval().requires_grad_(False)
    if loaded_tokenizer is not None:
        check_vocabulary(loaded_tokenizer, model.get_input_embeddings().weight.shape[0], place.vocabulary)
    return OpenModel(name, model, loaded_tokenizer, read_spec(model), fingerprint(model), source_of(name, place))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress log messages and progress bars of transformers inside the ``with`` block."""
    from transformers.utils import logging

    shown, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(shown)
        if bars:
            logging.enable_progress_bar()


def _load_model(source: str, place: Place, dtype: str, allow_pickle: bool, trust: bool) -> PreTrainedModel:
    """Load config and weights; every failure becomes a one-line error that names the source."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    register_trimmed()
    folder = str(place.folder)
    options = _options(place, trust)
    with _readable(source, "its config"):
        config = AutoConfig.from_pretrained(folder, **options)
    family = family_of(config)
    _check_depth(source, config, family, place)
    auto: Any = AutoModelForCausalLM if family.causal else AutoModel
    # The attention implementation is set explicitly, since a config may name one that is downloaded and executed.
    attention: dict[str, Any] = {} if trust else {"attn_implementation": "sdpa"}
    with _readable(source, "its config"), torch.device("meta"):
        empty = auto.from_config(config, trust_remote_code=trust, **attention)
    _check_shapes(source, empty, place)
    if not place.gguf:
        options["use_safetensors"] = None if allow_pickle else True
    stored: Any = torch.float32 if place.gguf else "auto"
    with _readable(source, "its weights"):
        loaded: Any = auto.from_pretrained(
            folder,
            config=config,
            dtype=stored if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            **attention,
            **options,
        )
    model, report = loaded
    if place.gguf:
        # De-quantised to plain floats: remove the quantisation settings, which would otherwise be saved.
        vars(model.config).pop("quantization_config", None)
        model.hf_quantizer, model.is_quantized = None, False
    opened: PreTrainedModel = model
    _check_loaded(source, opened, report, place)
    return opened


def _options(place: Place, trust: bool) -> dict[str, Any]:
    """Options for every ``from_pretrained`` call. Without trust, only local files are used."""
    options: dict[str, Any] = {"trust_remote_code": trust, "local_files_only": not trust}
    return options | ({"gguf_file": place.gguf} if place.gguf else {})


def _load_tokenizer(source: str, place: Place, trust: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with _readable(source, "its tokenizer"):
        return AutoTokenizer.from_pretrained(str(place.folder), **_options(place, trust))


@contextlib.contextmanager
def _readable(source: str, what: str) -> Iterator[None]:
    """Convert any exception of a library that reads a file into a one-line error; its types cannot be enumerated."""
    try:
        yield
    except Exception as error:
        if "mismatched" in str(error):
            raise HeadcountError(f"{source}: the config contradicts the weights", fix="mend config.json") from error
        raise HeadcountError(
            f"{source}: {what} cannot be read ({type(error).__name__}: {brief(error)})", fix="fetch it again"
        ) from error


def _check_depth(source: str, config: PreTrainedConfig, family: Family, place: Place) -> None:
    """Check that the config and the weights have the same number of layers (``check_gguf`` does so for GGUF)."""
    if not place.shapes:
        return
    pattern = re.compile(rf"(?:^|\.){family.layers.split('.')[-1]}\.(\d+)\.")
    stored = 1 + max((int(match[1]) for name in place.shapes if (match := pattern.search(name))), default=-1)
    if stored != config.num_hidden_layers:
        raise HeadcountError(
            f"{source}: the config asks for {config.num_hidden_layers} layers, the weights have {stored}",
            fix="mend config.json or the checkpoint",
        )


def _check_shapes(source: str, empty: PreTrainedModel, place: Place) -> None:
    """Check that the config matches the stored shapes before allocating memory; ``empty`` is on the meta device."""
    expected = {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}
    prefix = f"{empty.base_model_prefix}."
    for name, shape in place.shapes.items():
        for known in (name, prefix + name, name.removeprefix(prefix)):
            if expected.get(known, shape) != shape:
                raise HeadcountError(
                    f"{source}: {name} is {shape}, but the config asks for {expected[known]}",
                    fix="mend config.json or the checkpoint",
                )
    numbers = sum(parameter.numel() for parameter in empty.parameters())
    if numbers > TIED * place.numbers:
        raise HeadcountError(
            f"{source}: the config asks for {numbers:,} parameters, the weights hold {place.numbers:,}",
            fix="mend config.json",
        )


def _check_loaded(source: str, model: PreTrainedModel, report: JsonObject, place: Place) -> None:
    """Check that no weights are missing, unexpected or non-finite."""
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise HeadcountError(
            f"{source}: the weights lack {missing[0]!r}, which the config asks for ({len(missing)} in all)",
            fix="mend config.json or the checkpoint",
        )
    family = family_of(model.config)
    layers = family.layers.split(".")[-1]
    left = sorted(key for key in report.get("unexpected_keys", ()) if f"{layers}." in key)
    if left:
        raise HeadcountError(
            f"{source}: the weights have {left[0]!r}, which the config has no place for ({len(left)} in all)",
            fix="mend config.json",
        )
    used = sum(parameter.numel() for parameter in layers_of(model, family).parameters())
    if place.layer_numbers not in (None, used):
        raise HeadcountError(
            f"{source}: the layers hold {place.layer_numbers:,} numbers, but transformers reads {used:,} of them",
            fix="give the model's safetensors",
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise HeadcountError(f"{source}: {name} has NaN or infinite weights", fix="fetch the model again")


def is_trimmed(model: PreTrainedModel) -> bool:
    """Whether the model was trimmed by headcount."""
    return str(model.config.model_type).startswith(TRIMMED_PREFIX)


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU if available) or a device by name; unavailable devices are rejected."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HeadcountError(f"device {name!r} cannot be used ({brief(error)})", fix="use cpu or auto") from error
    return device
