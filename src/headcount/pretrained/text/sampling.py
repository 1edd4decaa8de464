"""Text sampled from the model itself: a kind of text that is available for every model.

Narrow calibration text makes a trimmed model lose far more quality on other text; unconditional samples cover the
model's training distribution.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from headcount.core.errors import HeadcountError
from headcount.core.progress import Progress, silent
from headcount.core.seeds import torch_generator
from headcount.core.store import digest, read_tensors, write_tensors
from headcount.pretrained.text.texts import Blocks, block_prefix

BATCH_WINDOWS = 40
"""Windows per batch; completed batches are stored, so a killed run can resume."""


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token at the start of a text."""
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

    Sampling continues past end-of-sequence tokens, with the model's prediction of the next text. With ``folder``,
    completed batches are stored there and reused. The returned ids are (count, context), int64, on the CPU.
    """
    first = start_token(tokenizer)
    parts = []
    for number, start in enumerate(range(0, count, BATCH_WINDOWS)):
        size = min(BATCH_WINDOWS, count - start)
        batch_file = folder / f"self-{number:03d}.safetensors" if folder is not None else None
        if batch_file is not None and batch_file.is_file():
            parts.append(_reuse(batch_file, (size, context)))
            continue
        generator = torch_generator(seed, "self", number, device=model.device)
        cache = DynamicCache(config=model.config)
        token = torch.full((size, 1), first, device=model.device)
        tokens = [token]
        for step in range(context - 1):
            progress("sample", start * context + step * size, count * context)
            logits = model(token, past_key_values=cache, use_cache=True).logits[:, -1].float()
            if not bool(logits.isfinite().all()):
                raise HeadcountError(
                    f"the model's logits are not finite after {step + 1} tokens", fix="use --dtype float32, or check it"
                )
            token = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            tokens.append(token)
        ids = torch.cat(tokens, 1).cpu()
        if batch_file is not None:
            write_tensors(batch_file, {"ids": ids.to(torch.int32)})
        parts.append(ids)
    progress("sample", count * context, count * context)
    ids = torch.cat(parts)
    return Blocks("self", ids, digest(ids.numpy().tobytes()))


def _reuse(batch_file: Path, shape: tuple[int, int]) -> torch.Tensor:
    """Load a completed batch of the same run."""
    ids = read_tensors(batch_file).get("ids")
    if ids is None or tuple(ids.shape) != shape:
        stored = "no ids" if ids is None else f"ids {tuple(ids.shape)}"
        raise HeadcountError(f"{batch_file} has {stored}, not {shape}", fix="remove it, it is sampled again")
    return ids.long()
