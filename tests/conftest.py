"""What tests share: a tiny random model of every family, the command line, a process without headcount."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
"""The repository."""

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 16}

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2", "gpt_neox")
FAMILIES = (*DECODERS, "bert")


def tiny_config(family: str) -> Any:
    """A config small enough for exact tests, with each family's own traits switched on."""
    import transformers as t

    if family == "llama":
        return t.LlamaConfig(**GROUPED, attention_bias=True)
    if family == "mistral":
        return t.MistralConfig(**GROUPED, sliding_window=9)
    if family == "qwen2":
        return t.Qwen2Config(**SMALL | {"num_key_value_heads": 2})
    if family == "qwen3":
        return t.Qwen3Config(**GROUPED)
    if family == "gemma3_text":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        own = {"num_key_value_heads": 1, "sliding_window": 9, "layer_types": kinds, "query_pre_attn_scalar": 20}
        return t.Gemma3TextConfig(**GROUPED | own)
    if family == "gpt2":
        names = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 64}
        return t.GPT2Config(vocab_size=97, bos_token_id=1, eos_token_id=2, pad_token_id=0, **names)
    if family == "gpt_neox":
        return t.GPTNeoXConfig(**SMALL, rotary_pct=0.5)
    if family == "bert":
        return t.BertConfig(**SMALL)
    raise AssertionError(family)


def tiny_model(family: str, seed: int = 0) -> Any:
    """A random model of a family, with weights large enough that attention is not flat."""
    import transformers as t

    config = tiny_config(family)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = t.BertModel(config) if family == "bert" else t.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.7 * parameter.shape[-1] ** -0.5 if "embed" not in name else 1.0)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    return model.float().eval().requires_grad_(False)


def tiny_tokens(windows: int = 6, context: int = 24, seed: int = 0) -> torch.Tensor:
    """Random windows of the tiny vocabulary, without its padding token."""
    return torch.randint(1, 97, (windows, context), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Any:
    """A tiny random decoder of each family."""
    return tiny_model(request.param)


def tiny_tokenizer() -> Any:
    """A tokenizer of single characters for the tiny vocabulary, with a begin token that texts start with."""
    import tokenizers as tk
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;()[]{}=+-*/_'\"\n#<>@"
    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}
    assert len(words) <= SMALL["vocab_size"]
    own = tk.Tokenizer(tk.models.WordLevel(words, unk_token="<unk>"))
    own.pre_tokenizer = tk.pre_tokenizers.Split("", "isolated")
    own.decoder = tk.decoders.Fuse()
    own.post_processor = tk.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.fixture
def tiny_folder(tmp_path: Any) -> Any:
    """A Llama folder as a hub would have it: safetensors, config, tokenizer."""
    folder = tmp_path / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def same_table(table: str, other: str) -> bool:
    """Whether two CSVs have equal words, and numbers within 1e-9: float64 sums in another order (threads, BLAS)."""
    rows, other_rows = ([line.split(",") for line in text.splitlines()] for text in (table, other))
    if [len(row) for row in rows] != [len(row) for row in other_rows]:
        return False
    cells = [pair for row, other_row in zip(rows, other_rows, strict=True) for pair in zip(row, other_row, strict=True)]
    return all(one == two or _close(one, two) for one, two in cells)


def _close(one: str, two: str) -> bool:
    try:
        return float(one) == pytest.approx(float(two), rel=1e-9)
    except ValueError:
        return False


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of text for the tiny tokenizer."""
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog; it was not amused.\n" * 40)
    return path


def run(*arguments: str | Path) -> int:
    """Run a command of headcount; returns its exit code."""
    from headcount.cli import main

    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def run_without_headcount(folder: Path, place: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Load a checkpoint by the code that travels with it, in a process that cannot import headcount.

    Returns the ids that it was run on, its logits, and five greedy tokens more; ``place``: a folder for its files.
    """
    script = textwrap.dedent(
        f"""
        import sys
        sys.modules["headcount"] = None  # importing it now fails
        import torch
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
        ids = torch.arange(1, 25).view(2, 12)
        torch.save([ids, model(ids).logits, model.generate(ids, max_new_tokens=5)], {str(place / "logits.pt")!r})
        """
    )
    environment = os.environ | {"HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ids, logits, made = torch.load(place / "logits.pt")
    return ids, logits, made
