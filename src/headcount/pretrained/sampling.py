"""Text sampled from the model itself: a kind of text that every model brings along.

Narrow calibration text makes a trimmed model lose far more elsewhere; what a model writes when left alone is
spread over all that it was trained on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from headcount.errors import HeadcountError
from headcount.pretrained.texts import Blocks, block_prefix
from headcount.progress import Progress, silent
from headcount.seeds import torch_generator
from headcount.store import digest, read_tensors, write_tensors

BATCH_WINDOWS = 40
"""Windows sampled at once; finished batches are kept, so that a killed run goes on."""


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token a text begins with."""
    prefix = block_prefix(tokenizer)
    for token in (prefix[0] if prefix else None, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise HeadcountError("the tokenizer has no token that texts begin with", fix="give --text files instead")


@torch.no_grad()
def sample_blocks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    context: int,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Blocks:
    """Sample ``count`` windows of ``context`` tokens at temperature 1, each from the start token.

    Sampling goes on past end-of-sequence tokens: what follows is the model's idea of a next text. With ``folder``,
    finished batches are kept there and reused.
    """
    first = start_token(tokenizer)
    parts = []
    for number, start in enumerate(range(0, count, BATCH_WINDOWS)):
        size = min(BATCH_WINDOWS, count - start)
        kept = folder / f"self-{number:03d}.safetensors" if folder is not None else None
        if kept is not None and kept.is_file():
            parts.append(read_tensors(kept)["ids"].long())
            continue
        generator = torch_generator(seed, "self", number, device=model.device)
        cache = DynamicCache(config=model.config)
        token = torch.full((size, 1), first, device=model.device)
        tokens = [token]
        for step in range(context - 1):
            progress("sample", start * context + step * size, count * context)
            logits = model(token, past_key_values=cache, use_cache=True).logits[:, -1]
            token = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
            tokens.append(token)
        ids = torch.cat(tokens, 1).cpu()
        if kept is not None:
            write_tensors(kept, {"ids": ids.to(torch.int32)})
        parts.append(ids)
    progress("sample", count * context, count * context)
    ids = torch.cat(parts)
    return Blocks("self", ids, digest(ids.numpy().tobytes()))
