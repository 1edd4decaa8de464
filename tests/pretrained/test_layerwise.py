"""One layer at a time is the model's own forward; streams survive in their files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, tiny_model, tiny_tokens

from headcount.core.errors import HeadcountError
from headcount.pretrained.families import base_model, family_of, layers_of
from headcount.pretrained.running.layerwise import StreamFile, batches_of, layer_calls, run_layer


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_by_layer_is_the_models_own_forward(name: str) -> None:
    """Bit for bit: the same modules on the same numbers. The calls of one batch fit another of its shape."""
    model = tiny_model(name)
    family = family_of(model.config)
    layers = layers_of(model, family)
    own = list(layers)
    first, second = tiny_tokens(2, 20, seed=0), tiny_tokens(2, 20, seed=1)
    _, calls = layer_calls(model, family, first)
    assert list(layers) == own and len(calls) == len(own)
    for ids in (first, second):
        stream, _ = layer_calls(model, family, ids)
        options = {"use_cache": False} if family.causal else {}
        wanted = base_model(model)(ids, output_hidden_states=True, **options).hidden_states
        assert torch.equal(stream, wanted[0])
        for index, layer in enumerate(layers):
            stream = run_layer(layer, stream, calls[index])
            # The last of the model's hidden states has passed the final norm, except in an encoder.
            if index + 1 < len(own):
                assert torch.equal(stream, wanted[index + 1])
        norms = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}
        last = stream if name == "bert" else base_model(model).get_submodule(norms.get(name, "norm"))(stream)
        assert torch.equal(last, wanted[-1])


def test_layers_are_put_back_when_the_model_fails() -> None:
    model = tiny_model("llama")
    family = family_of(model.config)
    own = list(layers_of(model, family))
    with pytest.raises(IndexError):
        layer_calls(model, family, torch.full((1, 4), 97))
    assert list(layers_of(model, family)) == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_streams_survive_re_opening(tmp_path: Path, dtype: torch.dtype) -> None:
    shape = (5, 3, 4)
    data = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    stream = StreamFile(tmp_path / "s.bin", shape, dtype)
    assert not stream.rows.any(), "a new file holds zeros"
    for rows in batches_of(5, 2):
        stream.write(rows, data[rows].double())
    del stream
    again = StreamFile(tmp_path / "s.bin", shape, dtype)
    assert again.rows.dtype == dtype
    assert all(torch.equal(again.read(rows, torch.device("cpu")), data[rows]) for rows in batches_of(5, 3))
    again.write(slice(1, 2), torch.zeros(1, 3, 4))
    assert not StreamFile(tmp_path / "s.bin", shape, dtype).rows[1].any()
    assert (tmp_path / "s.bin").stat().st_size == 60 * dtype.itemsize


def test_what_is_read_does_not_change_when_the_file_does(tmp_path: Path) -> None:
    stream = StreamFile(tmp_path / "s.bin", (2, 1, 3), torch.float32)
    stream.write(slice(0, 2), torch.ones(2, 1, 3))
    read = stream.read(slice(0, 1), torch.device("cpu"))
    stream.write(slice(0, 1), torch.zeros(1, 1, 3))
    assert read.sum() == 3


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    StreamFile(tmp_path / "s.bin", (2, 3, 4), torch.float32)
    for shape in ((3, 3, 4), (2, 3, 3)):
        with pytest.raises(HeadcountError, match=r"s\.bin has 96 bytes, not the \d+ of") as caught:
            StreamFile(tmp_path / "s.bin", shape, torch.float32)
        assert caught.value.fix
    assert (tmp_path / "s.bin").stat().st_size == 96


def test_a_disk_that_fills_up_is_found_out_before_the_file_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(HeadcountError, match="no space left to write"):
        StreamFile(tmp_path / "s.bin", (2, 3, 4), torch.float32)
    assert not list(tmp_path.iterdir())


def test_without_fallocate_the_file_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    stream = StreamFile(tmp_path / "s.bin", (2, 3, 4), torch.float32)
    assert not stream.rows.any() and (tmp_path / "s.bin").stat().st_blocks > 0


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (3, 3), (7, 3), (9, 1)])
def test_batches_cover_every_window_once(count: int, size: int) -> None:
    slices = batches_of(count, size)
    assert [i for rows in slices for i in range(rows.start, rows.stop)] == list(range(count))
    assert all(0 < rows.stop - rows.start <= size for rows in slices)
