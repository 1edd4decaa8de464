"""Sample output: greedy continuations of one prompt."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from headcount.core.errors import HeadcountError

PROMPT = "The three things that matter most when you learn a new language are"
NEW_TOKENS = 48


@torch.no_grad()
def greedy_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int = NEW_TOKENS
) -> str:
    """Greedy decoding until the model ends the text or ``new_tokens`` tokens are generated.

    Only the continuation is returned. The model's generation settings (temperature, penalties) are ignored.
    """
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    if ids.numel() == 0:
        raise HeadcountError("the sample prompt has no tokens", fix="give a prompt, or none at all")
    defaults: Any = model.generation_config
    end = (
        defaults.eos_token_id if defaults is not None and defaults.eos_token_id is not None else tokenizer.eos_token_id
    )
    last = end[0] if isinstance(end, list) else end
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else last
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=pad)
    generate: Any = model.generate
    written = generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
