"""GGUF files: read exactly, read once, and refused in one line wherever they are cut."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_files import ALPHABET, write_gguf
from transformers import modeling_gguf_pytorch_utils as loader

from headcount.core.errors import HeadcountError
from headcount.pretrained.opening.gguf_file import check_gguf, read_once
from headcount.pretrained.opening.loading import fingerprint, open_model
from headcount.pretrained.opening.places import demo_file


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


def refused(path: Path, said: str) -> HeadcountError:
    with pytest.raises(HeadcountError) as caught:
        open_model(path)
    error = caught.value
    assert str(path) in error.message and said in error.message, error.message
    assert error.fix and "\n" not in str(error)
    return error


def test_a_gguf_file_opens_as_the_model_it_holds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    capfd.readouterr()
    opened = open_model(tmp_path / "tiny.gguf")
    assert capfd.readouterr() == ("", ""), "no progress bar of the loader"
    ids = torch.randint(80, (2, 20), generator=torch.Generator().manual_seed(0))
    # The norm's epsilon is kept in float32: 1e-5 within 3e-13.
    torch.testing.assert_close(opened.model(ids).logits, model(ids).logits, atol=1e-6, rtol=0)
    assert opened.fingerprint == fingerprint(model)
    assert not hasattr(opened.model.config, "quantization_config")
    assert opened.tokenizer is not None and opened.tokenizer("th e").input_ids == [80, ALPHABET.index(" "), 8]


def test_it_can_be_saved_and_opened_again(good: Path, tmp_path: Path) -> None:
    opened = open_model(good)
    opened.model.save_pretrained(tmp_path)
    assert open_model(tmp_path, tokenizer=False).fingerprint == opened.fingerprint


def test_the_file_is_parsed_once_and_everything_put_back(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    stock = gguf.GGUFReader.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        parsed.append(args)
        stock(self, *args, **kwargs)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", counted)
    before = gguf.GGUFReader, gguf.get_tensor_name_map, loader.tqdm
    open_model(good)
    assert len(parsed) == 1
    with pytest.raises(ZeroDivisionError), read_once():
        assert before[0] is not gguf.GGUFReader
        raise ZeroDivisionError
    assert (gguf.GGUFReader, gguf.get_tensor_name_map, loader.tqdm) == before


def test_a_plain_reader_reads_what_the_stock_one_reads(good: Path) -> None:
    stock = gguf.GGUFReader(good)
    with read_once():
        ours = gguf.GGUFReader(good)
        assert gguf.GGUFReader(good) is ours
    assert list(stock.fields) == list(ours.fields)
    for name, field in stock.fields.items():
        assert field.contents() == ours.fields[name].contents()
    for one, other in zip(stock.tensors, ours.tensors, strict=True):
        assert one.name == other.name and np.array_equal(one.data, other.data)


def test_the_header_says_what_is_in_the_file(good: Path) -> None:
    header = check_gguf(good)
    reader = gguf.GGUFReader(good)
    assert header.architecture == "llama" and header.blocks == 3
    assert header.elements == {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    assert header.lengths == {"tokenizer.ggml.tokens": 81, "tokenizer.ggml.merges": 1}
    for key, value in header.metadata.items():
        assert reader.fields[key].contents() == value


def test_cut_short_anywhere(good: Path, tmp_path: Path) -> None:
    """Every prefix of the header, and several of the weights."""
    whole = good.read_bytes()
    start = gguf.GGUFReader(good).data_offset
    path = tmp_path / "cut.gguf"
    # A prefix that ends in the padding between header and weights, or later, has a whole header.
    for cut in (*range(4, start - 32, 7), start, start + 100, (start + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(HeadcountError, match="is cut short") as caught:
            check_gguf(path)
        assert str(path) in caught.value.message and caught.value.fix == "fetch it again"
    refused(path, f"the file has {len(whole) - 1:,}")
    for cut in range(4):
        path.write_bytes(whole[:cut])
        refused(path, "is not a GGUF file")


def test_bytes_that_are_no_gguf(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_text("<!DOCTYPE html>")
    refused(path, "is not a GGUF file")
    whole = good.read_bytes()
    path.write_bytes(whole[:4] + struct.pack("<I", 1) + whole[8:])
    refused(path, "version 1, not 2 or 3")
    path.write_bytes(whole[:4] + struct.pack(">I", 3) + whole[8:])
    refused(path, "version 50331648")
    refused(tmp_path / "none.gguf", "does not exist")


@pytest.mark.parametrize("count", [2**40, 2**63])
def test_stated_counts_and_lengths_are_held_against_the_file(count: int, good: Path, tmp_path: Path) -> None:
    """A reader that believed them would run out of memory, or never end."""
    whole = good.read_bytes()
    path = tmp_path / "x.gguf"
    for at in (8, 16, 24, whole.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8):
        path.write_bytes(whole[:at] + struct.pack("<Q", count) + whole[at + 8 :])
        with pytest.raises(HeadcountError, match=r"is cut short|has a damaged header"):
            open_model(path)


def test_a_bomb_of_nested_arrays(tmp_path: Path) -> None:
    key = b"general.architecture"
    nested = struct.pack("<IQ", 9, 1) * 10**5
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<I", 9) + nested)
    refused(path, "an array of the type 9")


@pytest.mark.parametrize(
    ("changes", "without", "said"),
    [
        ({"general.architecture": "mamba"}, (), "architecture 'mamba' is not supported"),
        ({"llama.block_count": 4}, (), "states 4 layers, but has weights for 3"),
        ({"llama.block_count": 2}, (), "states 2 layers, but has weights for 3"),
        ({"llama.block_count": 10**9}, (), "states 1000000000 layers"),
        ({}, ("blk.1.attn_q",), "the weights lack 'model.layers.1.self_attn.q_proj.weight'"),
        ({}, ("blk.",), "states 3 layers, but has weights for 0"),
        ({}, ("output_norm",), "the weights lack 'model.norm.weight'"),
        ({"blk.0.attn_q.bias": np.zeros(64, np.float32)}, (), "transformers reads"),
        ({"rope_freqs.weight": np.ones(8, np.float32)}, (), "scales its rotary embedding"),
        ({"llama.rope.scaling.type": "linear"}, (), "scales its rotary embedding"),
        ({"split.count": 3}, (), "is one of 3 parts"),
        ({"split.count": "two"}, (), "is one of two parts"),
        ({"general.alignment": 33}, (), "general.alignment is 33"),
        ({"llama.attention.head_count": 0}, (), "cannot be read"),
        ({"llama.attention.head_count": 8}, (), "contradicts"),
        ({"llama.embedding_length": 64}, (), "contradicts"),
        ({"llama.embedding_length": 2 * 10**9}, (), "the config asks for"),
        ({"llama.vocab_size": 2 * 10**9}, (), "the config asks for"),
        ({"llama.vocab_size": 80}, (), "contradicts"),
        ({"output_norm.weight": np.full(48, np.nan, np.float32)}, (), "model.norm.weight has NaN or infinite weights"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict | tuple) else "",
)
def test_a_header_that_contradicts_the_weights(
    changes: dict[str, Any], without: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, changes, without)
    refused(path, said)


@pytest.mark.real
@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.999999])
def test_the_demo_file_cut_short(share: float, tmp_path: Path) -> None:
    whole = demo_file().read_bytes()
    path = tmp_path / "demo.gguf"
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "is cut short")
