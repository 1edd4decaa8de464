"""Trimmed models under the clients that people run: what each does, and the truth that it is held against.

The truth is the trimmed model's own forward without a cache, on whole sequences without padding. A client gives
logits that must equal it, or an error that must name what is refused.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from client_tools import compiled, exported, lora, torchao_int8
from client_truth import Pair, in_pieces, uncached
from conftest import tiny_model, tiny_tokens
from transformers import DynamicCache, QuantizedCache, StaticCache

NEW = 12
"""Tokens generated: with the prompt, more than the tiny models' windows of 9."""
PROMPT = 9


def generated(model: Any, ids: torch.Tensor | None = None, **options: Any) -> Pair:
    """Greedy decoding by ``generate``: its logits at every step against a whole forward of what it wrote."""
    ids = tiny_tokens(2, PROMPT, seed=7) if ids is None else ids
    made = model.generate(
        ids,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    wanted = uncached(model, made.sequences)[:, ids.shape[1] - 1 : -1]
    return Pair(torch.stack(made.logits, 1), wanted)


def static(model: Any) -> Pair:
    """``generate`` with a static cache."""
    return generated(model, cache_implementation="static")


def static_object(model: Any) -> Pair:
    """A ``StaticCache`` with room to spare: a prefill, a second chunk, single tokens."""
    ids = tiny_tokens(2, 24, seed=3)
    return Pair(
        in_pieces(model, ids, StaticCache(model.config, max_cache_len=40), (11, 6, 1, 1, 5)), uncached(model, ids)
    )


def sliding(model: Any) -> Pair:
    """``generate`` with the static cache that slides where layers do."""
    return generated(model, cache_implementation="sliding_window")


def dynamic_without_config(model: Any) -> Pair:
    """A ``DynamicCache()`` that knows nothing of the model: its layers come as they are needed."""
    ids = tiny_tokens(2, 24, seed=3)
    return Pair(in_pieces(model, ids, DynamicCache(), (11, 1, 1, 6, 5)), uncached(model, ids))


class _NoStream(contextlib.nullcontext):  # type: ignore[type-arg]
    """A stream of a machine that has none: work in it is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def offloaded(model: Any) -> Pair:
    """The cache that keeps layers on the CPU between their turns. Without an accelerator its streams do nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Stream", _NoStream)
        patch.setattr(torch.cuda, "default_stream", lambda *_: _NoStream())
        patch.setattr(torch.cuda, "synchronize", lambda *_: None)
        patch.setattr(_NoStream, "wait_stream", lambda *_: None, raising=False)
        patch.setattr(_NoStream, "synchronize", lambda *_: None, raising=False)
        return generated(model, past_key_values=DynamicCache(config=model.config, offloading=True))


@contextlib.contextmanager
def lossless_fp8() -> Iterator[None]:
    """transformers' quantised cache in 8-bit floats, with 64 bits in their place: its code without its loss."""
    from transformers.cache_utils import Fp8QuantizedLayer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fp8QuantizedLayer, "fp8_dtype", torch.float64)
        patch.setattr(Fp8QuantizedLayer, "fp8_max", 1.0)
        yield


def quantised(model: Any) -> Pair:
    """``generate`` with a quantised cache."""
    with lossless_fp8():
        return generated(model, past_key_values=QuantizedCache("fp8", model.config))


def left_padded(model: Any) -> Pair:
    """A batch of rows of two lengths, padded on the left."""
    rows = [tiny_tokens(1, 6, seed=5), tiny_tokens(1, 12, seed=6)]
    ids, mask = padded(rows, "left")
    made = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    got = torch.stack(made.logits, 1)
    wanted = [
        uncached(model, torch.cat((row, made.sequences[index : index + 1, ids.shape[1] :]), 1))[
            0, row.shape[1] - 1 : -1
        ]
        for index, row in enumerate(rows)
    ]
    return Pair(got, torch.stack(wanted))


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (1, T) as one batch: ids and attention mask."""
    longest = max(row.shape[1] for row in rows)
    ids, mask = [], []
    for row in rows:
        blank = torch.zeros(1, longest - row.shape[1], dtype=torch.long)
        seen = torch.ones_like(row)
        ids.append(torch.cat((blank, row) if side == "left" else (row, blank), 1))
        mask.append(torch.cat((blank, seen) if side == "left" else (seen, blank), 1))
    return torch.cat(ids), torch.cat(mask)


def turns(model: Any, sides: tuple[str, ...], held: Any = None) -> Pair:
    """Turns of a conversation, each a batch of rows of two lengths padded on its own side, then single tokens.

    Positions count a row's real tokens, as ``generate`` counts them. The truth is the whole padded batch without a
    cache, and each row alone without padding; the second where there are no windows, which count padding in
    transformers.
    """
    lengths = [(7, 4), (3, 6), (5, 2)]
    held = DynamicCache(config=model.config) if held is None else held
    pieces = [
        padded([tiny_tokens(1, n, seed=10 * turn + row) for row, n in enumerate(lengths[turn])], side)
        for turn, side in enumerate(sides)
    ]
    pieces += [padded([tiny_tokens(1, 1, seed=90 + 2 * step + row) for row in (0, 1)], "left") for step in range(3)]
    ids, mask = (torch.cat(parts, 1) for parts in zip(*pieces, strict=True))
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    got, stop = [], 0
    with torch.no_grad():
        for piece, _ in pieces:
            start, stop = stop, stop + piece.shape[1]
            own = {"attention_mask": mask[:, :stop], "position_ids": positions[:, start:stop]}
            got.append(model(piece, past_key_values=held, use_cache=True, **own).logits)
        whole = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    seen = mask.bool()
    pair = Pair(torch.cat(got, 1)[seen], whole[seen])
    if getattr(model.config, "sliding_window", None) is not None:
        return pair
    alone = torch.cat([uncached(model, row[real][None])[0] for row, real in zip(ids, seen, strict=True)])
    return Pair(torch.cat((pair.got, pair.got)), torch.cat((pair.wanted, alone)))


def right_padded(model: Any) -> Pair:
    """A first turn padded on the right, then single tokens."""
    return turns(model, ("right",))


def two_turns(model: Any) -> Pair:
    """A first turn padded on the right, a second one on the left."""
    return turns(model, ("right", "left"))


def three_turns(model: Any) -> Pair:
    """Left, right, left."""
    return turns(model, ("left", "right", "left"))


def turns_static(model: Any) -> Pair:
    """Two padded turns in a static cache."""
    return turns(model, ("right", "left"), StaticCache(model.config, max_cache_len=40))


def packed(model: Any) -> Pair:
    """Two sequences in one row, told apart by positions that start again."""
    first, second = tiny_tokens(1, 7, seed=1), tiny_tokens(1, 12, seed=2)
    positions = torch.cat((torch.arange(7), torch.arange(12)))[None]
    with torch.no_grad():
        got = model(torch.cat((first, second), 1), position_ids=positions, use_cache=False).logits
    return Pair(got[0], torch.cat((uncached(model, first)[0], uncached(model, second)[0])))


def beams(model: Any) -> Pair:
    """Beam search, which reorders the cache at every step: its best sequences' scores against whole forwards."""
    ids = tiny_tokens(2, 6, seed=8)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "num_beams": 3, "length_penalty": 0.0}
    made = model.generate(ids, do_sample=False, output_scores=True, return_dict_in_generate=True, **options)
    logits = uncached(model, made.sequences)[:, ids.shape[1] - 1 : -1].clone()
    logits[..., 2] = -torch.inf  # min_new_tokens keeps the end token out
    # transformers takes the logarithm of probabilities first and the end token out behind it.
    scores = uncached(model, made.sequences)[:, ids.shape[1] - 1 : -1].log_softmax(-1)
    chosen = scores.gather(-1, made.sequences[:, ids.shape[1] :, None])[..., 0].sum(1)
    return Pair(made.sequences_scores, chosen)


def assisted(model: Any) -> Pair:
    """Speculative decoding by a smaller draft (here: another tiny model), which crops the cache."""
    return generated(model, tiny_tokens(1, PROMPT, seed=7), assistant_model=_draft())


@cache
def _draft() -> Any:
    model = tiny_model("llama", seed=5)
    model.generation_config.num_assistant_tokens = 4
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0
    return model


def prompt_lookup(model: Any) -> Pair:
    """Speculative decoding by what the prompt repeats."""
    ids = tiny_tokens(1, 5, seed=7).repeat(1, 3)
    return generated(model, ids, prompt_lookup_num_tokens=3)


def continuous(model: Any) -> Pair:
    """Continuous batching, which has a paged cache."""
    model.generate_batch([[1, 2, 3], [4, 5, 6, 7]], max_new_tokens=3)
    raise AssertionError("generate_batch ran")


def eager(model: Any) -> Pair:
    """The library's eager attention, with a cache and padding; its weights are those of each row."""
    model = copy.copy(model)
    own = copy.deepcopy(model)
    own.set_attn_implementation("eager")
    return left_padded(own)


def forked(model: Any) -> Pair:
    """Two shallow copies of a cache go different ways from one prefix."""
    prefix, ways = tiny_tokens(1, 10, seed=1), [tiny_tokens(1, 8, seed=2), tiny_tokens(1, 8, seed=3)]
    held = DynamicCache(config=model.config)
    in_pieces(model, prefix, held, (10,))
    forks = []
    for _ in ways:
        fork = copy.copy(held)
        fork.layers = [copy.copy(layer) for layer in held.layers]
        forks.append(fork)
    got: list[list[torch.Tensor]] = [[], []]
    for start in (0, 1, 2):  # in turns, so that either could write over the other
        for index, way in enumerate(ways):
            piece = way[:, start : start + 1] if start < 2 else way[:, 2:]
            got[index].append(in_pieces(model, piece, forks[index], (piece.shape[1],)))
    wanted = [uncached(model, torch.cat((prefix, way), 1))[:, 10:] for way in ways]
    return Pair(torch.cat([torch.cat(parts, 1) for parts in got]), torch.cat(wanted))


def saved_cache(model: Any) -> Pair:
    """A filled cache, written to disk and read back."""
    ids = tiny_tokens(2, 20, seed=4)
    held = DynamicCache(config=model.config)
    first = in_pieces(model, ids[:, :9], held, (9,))
    file = io.BytesIO()
    torch.save(held, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    return Pair(torch.cat((first, in_pieces(model, ids[:, 9:], again, (1, 10))), 1), uncached(model, ids))


Client = Callable[[Any], Pair]
CLIENTS: dict[str, Client] = {
    "static": static,
    "static object": static_object,
    "sliding": sliding,
    "dynamic, no config": dynamic_without_config,
    "offloaded": offloaded,
    "quantised": quantised,
    "left pad": left_padded,
    "right pad": right_padded,
    "two turns": two_turns,
    "three turns": three_turns,
    "two turns, static": turns_static,
    "packed": packed,
    "beam": beams,
    "assisted": assisted,
    "prompt lookup": prompt_lookup,
    "eager": eager,
    "forked cache": forked,
    "cache on disk": saved_cache,
    "LoRA": lora,
    "torchao int8": torchao_int8,
    "compiled": compiled,
    "exported": exported,
}
"""Clients that must give the truth."""
REFUSED: dict[str, tuple[Client, str]] = {"continuous": (continuous, "cannot use continuous batching")}
"""Clients that must be refused by name, and how."""
NOT_IN_TRANSFORMERS = {
    (family, "quantised"): "only supported for models with only full attention layers"
    for family in ("mistral", "gemma3_text")
}
"""What transformers refuses the dense model too, and how."""
