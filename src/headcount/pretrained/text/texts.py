"""The text that models are measured on: kinds, documents, splits, and blocks of tokens.

Six kinds need no network: reference ``prose``, ``code`` and the remaining ``library`` code are part of CPython,
``licences`` and ``descriptions`` are part of the installed dependencies of headcount, and ``self`` is
sampled from the model (``sampling``). Statistics are gathered on prose, code and self, the *calibrated* kinds;
licences and descriptions are never calibrated on by default, so they measure quality on unseen kinds of text.
The library kind is for models trained from scratch.

Documents are split by a hash of their name: each document is used either for calibration or for evaluation.
"""

from __future__ import annotations

import importlib.metadata
import re
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headcount.core.errors import HeadcountError
from headcount.core.seeds import derive, numpy_generator
from headcount.core.store import digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Split = Literal["calibration", "evaluation"]
CALIBRATED = ("prose", "code")
"""Kinds of text that statistics are gathered on, in addition to text sampled from the model."""
UNSEEN = ("licences", "descriptions")
"""Kinds of text that are used only for evaluation."""

EVALUATION_SHARE = 4
"""One in this many documents is held out for evaluation."""

_DISTRIBUTIONS = (
    *("gguf", "huggingface-hub", "jinja2", "markdown-it-py", "mpmath", "networkx", "numpy", "packaging"),
    *("pandas", "plotly", "psutil", "pydantic", "pygments", "python-dateutil", "regex", "rich"),
    *("safetensors", "sympy", "tokenizers", "torch", "tqdm", "transformers", "typer"),
)
_CODE_FOLDERS = (
    *("asyncio", "concurrent", "email", "html", "http", "importlib", "json", "logging", "unittest", "xml"),
)
_LIBRARY_FOLDERS = (
    *("collections", "ctypes", "curses", "dbm", "distutils", "ensurepip", "idlelib", "lib2to3", "multiprocessing"),
    *("re", "sqlite3", "tkinter", "tomllib", "turtledemo", "urllib", "venv", "wsgiref", "xmlrpc", "zoneinfo"),
)


@dataclass(frozen=True)
class Document:
    """A named text of one kind."""

    name: str
    text: str


def _prose() -> list[Document]:
    """CPython's reference manual, one document per topic (465,000 characters of English)."""
    from pydoc_data.topics import topics

    return [Document(name, topics[name]) for name in sorted(topics)]


def _code() -> list[Document]:
    """Source files of CPython's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for folder in _CODE_FOLDERS for file in (root / folder).glob("*.py"))
    return [Document(str(file.relative_to(root)), file.read_text(encoding="utf-8")) for file in files]


def _library() -> list[Document]:
    """The remaining source of the standard library, without duplicates: modules and packages not in ``code``."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        [*root.glob("*.py"), *(file for folder in _LIBRARY_FOLDERS for file in (root / folder).glob("*.py"))]
    )
    known = {document.text for document in _code()}
    sources = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        if text not in known:
            sources.append(Document(str(file.relative_to(root)), text))
            known.add(text)
    return sources


def _distributions() -> list[importlib.metadata.Distribution]:
    installed = []
    for name in _DISTRIBUTIONS:
        try:
            installed.append(importlib.metadata.distribution(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _licences() -> list[Document]:
    """Licence texts of installed distributions, without duplicates."""
    texts: dict[str, Document] = {}
    for distribution in _distributions():
        for file in distribution.files or []:
            upper = file.name.upper()
            if ".dist-info" in str(file) and any(word in upper for word in ("LICEN", "COPYING", "NOTICE")):
                text = Path(str(file.locate())).read_text(encoding="utf-8", errors="replace")
                name = f"{distribution.metadata['Name']}/{file}"
                texts.setdefault("".join(text.split()), Document(name, text))
    return list(texts.values())


def _descriptions() -> list[Document]:
    """The description metadata of installed distributions."""
    descriptions = []
    for distribution in _distributions():
        payload = distribution.metadata.get_payload()  # type: ignore[attr-defined]
        text = payload or distribution.metadata["Description"] or ""
        descriptions.append(Document(distribution.metadata["Name"], str(text)))
    return descriptions


_KINDS: dict[str, Callable[[], list[Document]]] = {
    "prose": _prose,
    "code": _code,
    "library": _library,
    "licences": _licences,
    "descriptions": _descriptions,
}


def documents(kind: str, split: Split) -> list[Document]:
    """The documents of a built-in kind that belong to a split, in a fixed order."""
    if kind not in _KINDS:
        raise HeadcountError(f"unknown kind of text {kind!r}", fix=f"known kinds: {', '.join(_KINDS)}")
    everything = [document for document in _KINDS[kind]() if document.text.strip()]
    if kind in UNSEEN:
        return everything if split == "evaluation" else []
    held_out = split == "evaluation"
    return [d for d in everything if (derive(0, kind, d.name) % EVALUATION_SHARE == 0) is held_out]


def read_file(path: Path) -> Document:
    """A user's text file: UTF-8, not empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HeadcountError(f"{path} does not exist", fix="check --text") from None
    except IsADirectoryError:
        raise HeadcountError(f"{path} is a folder", fix="give files to --text") from None
    except UnicodeDecodeError as error:
        raise HeadcountError(f"{path} is not UTF-8 text (byte {error.start})", fix="convert it first") from None
    except (OSError, ValueError) as error:
        raise HeadcountError(f"{path} cannot be read ({error})", fix="check --text") from error
    if not text.strip():
        raise HeadcountError(f"{path} is empty", fix="give a file with text")
    return Document(path.name, text)


@dataclass(frozen=True)
class Blocks:
    """Token windows of one kind: ids (count, context), each a contiguous run of tokens."""

    kind: str
    ids: torch.Tensor
    text_digest: str
    """Hash of the documents that the windows were cut from: equal digests mean equal text."""
    control_tokens: int = 0
    """Number of control tokens that the documents spell out, read as plain text (see ``encode_plain``)."""


def block_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer adds before any text (a beginning-of-sequence token, or none).

    Determined from a one-letter text, to exclude tokens added after the text (an end-of-sequence token).
    """
    whole = list(tokenizer("a").input_ids)
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


def control_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Control tokens of a tokenizer by spelling: begin, end, padding, unknown, chat roles, ..."""
    added = {str(token): int(number) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {token: number for token, number in (added | named).items() if token}


def encode_plain(
    tokenizer: PreTrainedTokenizerBase, text: str, controls: Mapping[str, int] | None = None
) -> tuple[list[int], int]:
    """(ids of a text, number of control tokens it spells out): ``</s>`` in HTML is text, not the end of a document.

    A tokenizer maps spellings of control tokens to control ids unless it is told to split them. If splitting still
    yields a control id (the spelling is an entry of the ordinary vocabulary), the spelling is tokenised in two pieces.
    The unknown token is kept if it comes from ordinary text.

    Args:
        tokenizer: any tokenizer; no tokens are added around the text.
        text: a document.
        controls: ``control_ids`` of the tokenizer, if already known.
    """
    controls = control_ids(tokenizer) if controls is None else controls
    certain = set(controls.values()) - {tokenizer.unk_token_id}
    spelled = any(token in text for token in controls)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before = getattr(backend, "encode_special_tokens", None)
    try:
        ids = _encode(tokenizer, text, split=True)
        if not spelled and not certain & set(ids):
            return ids, 0
        read = _encode(tokenizer, text, split=False)
        if ids == read or certain & set(ids):
            pattern = "|".join(re.escape(token) for token in sorted(controls, key=len, reverse=True))
            pieces = [
                part
                for piece in re.split(f"({pattern})", text)
                for part in ((piece[:1], piece[1:]) if piece in controls else (piece,))
            ]
            ids = [n for part in pieces if part for n in _encode(tokenizer, part, split=True) if n not in certain]
    finally:
        if before is not None:  # the library keeps the setting of its last call
            backend.encode_special_tokens = before  # type: ignore[union-attr]
    unknown = tokenizer.unk_token_id
    return ids, sum(n in certain for n in read) + max(0, read.count(unknown) - ids.count(unknown))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, split: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=split, verbose=False).input_ids)


def cut_blocks(
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    docs: Sequence[Document],
    count: int,
    context: int,
    seed: int = 0,
) -> Blocks:
    """Tokenise documents in a seeded order, join them and cut up to ``count`` windows of ``context`` tokens.

    Windows do not overlap; each begins with the tokenizer's own prefix. Window selection is also
    seeded, so that a small count is spread over all documents. Control tokens spelled out in documents are read as
    plain text and counted. Raises ``HeadcountError`` if the text is shorter than one window.
    """
    import torch

    if count < 1:
        raise HeadcountError(f"{count} windows are none", fix="ask for at least 1")
    prefix = block_prefix(tokenizer)
    stride = context - len(prefix)
    if stride < 2:
        raise HeadcountError(f"a context of {context} tokens is too short", fix=f"use at least {len(prefix) + 2}")
    order = numpy_generator(seed, "documents", kind).permutation(len(docs))
    stream: list[int] = []
    control_tokens = 0
    controls = control_ids(tokenizer)
    for index in order:
        tokens, spelled = encode_plain(tokenizer, docs[index].text, controls)
        stream += tokens
        control_tokens += spelled
    windows = len(stream) // stride
    if windows == 0:
        name = "given" if kind == "text" else kind
        raise HeadcountError(
            f"the {name} text has {len(stream)} tokens, less than one window of {context}",
            fix="give more text or a smaller --context",
        )
    chosen = sorted(numpy_generator(seed, "windows", kind).permutation(windows)[:count])
    ids = torch.tensor([prefix + stream[i * stride : (i + 1) * stride] for i in chosen])
    text_digest = digest(*(part for d in docs for part in (d.name, d.text)))
    return Blocks(kind, ids, text_digest, control_tokens)


def control_words(control_tokens: Mapping[str, int]) -> str | None:
    """One line about control tokens spelled out in documents, by kind; ``None`` if there are none.

    >>> control_words({"prose": 0, "code": 1234})
    'Control tokens spelled out in the documents, such as </s>, were read as plain text: 1,234 in code.'
    """
    parts = [f"{count:,} in {kind}" for kind, count in control_tokens.items() if count]
    if not parts:
        return None
    return f"Control tokens spelled out in the documents, such as </s>, were read as plain text: {', '.join(parts)}."


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, own: int | None = None) -> None:
    """Reject a tokenizer with ids that have no embedding in the model.

    ``own``: the number of tokens in its file; a conversion may append a token that occurs in no text.
    """
    ids = {token: number for token, number in tokenizer.get_vocab().items() if own is None or number < own}
    if not ids:
        raise HeadcountError("the tokenizer has no tokens", fix="use the tokenizer that the model was trained with")
    token, largest = max(ids.items(), key=lambda item: item[1])
    if largest >= rows:
        raise HeadcountError(
            f"the tokenizer's token {token!r} has id {largest}, but the model has {rows} embeddings",
            fix="use the tokenizer that the model was trained with",
        )
