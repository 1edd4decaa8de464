"""Tiny tokenizers and model files that tests of opening share."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
ALPHABET = (*SPECIAL, *string.ascii_letters, *" .,;:!?()[]'-\n0123456789")


def tiny_tokenizer(template: str = "$A", alphabet: tuple[str, ...] = ALPHABET) -> PreTrainedTokenizerFast:
    """One token a character. ``template`` says what is put around a text, e.g. ``<s> $A </s>``."""
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    own.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, index) for index, token in enumerate(SPECIAL)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=own, **names)


def save_tiny(folder: Path, family: str = "llama", tokenizer: bool = True) -> Any:
    """Write a tiny model's folder, as its makers would; returns the model."""
    model = tiny_model(family)
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer("<s> $A").save_pretrained(folder)
    return model


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as GGUF keeps Llama's queries and keys: a head's rotated pairs side by side, not half a head apart."""
    rows = weight.view(heads, 2, -1, *weight.shape[1:])
    return rows.transpose(1, 2).reshape(weight.shape)


def write_gguf(path: Path, changes: dict[str, Any] | None = None, without: tuple[str, ...] = ()) -> Any:
    """Write a tiny Llama as GGUF in float32; returns the model that it holds.

    ``changes`` overrides metadata (whole numbers, texts) by key, and adds tensors (arrays) by name; tensors whose name
    begins with one of ``without`` are left out.
    """
    import gguf
    import transformers as t

    rows = len(ALPHABET) + 1
    names = {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False, "rms_norm_eps": 1e-5}
    config = t.LlamaConfig(
        vocab_size=rows,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        bos_token_id=1,
        eos_token_id=2,
        **names,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = t.LlamaForCausalLM(config).float().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    numbers = {
        "llama.context_length": 128,
        "llama.embedding_length": 48,
        "llama.block_count": 3,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": rows,
    }
    tensors: dict[str, torch.Tensor] = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
        "output.weight": model.lm_head.weight,
    }
    for index, layer in enumerate(model.model.layers):
        tensors |= {
            f"blk.{index}.attn_norm.weight": layer.input_layernorm.weight,
            f"blk.{index}.ffn_norm.weight": layer.post_attention_layernorm.weight,
            f"blk.{index}.attn_q.weight": _interleaved(layer.self_attn.q_proj.weight, 4),
            f"blk.{index}.attn_k.weight": _interleaved(layer.self_attn.k_proj.weight, 2),
            f"blk.{index}.attn_v.weight": layer.self_attn.v_proj.weight,
            f"blk.{index}.attn_output.weight": layer.self_attn.o_proj.weight,
            f"blk.{index}.ffn_gate.weight": layer.mlp.gate_proj.weight,
            f"blk.{index}.ffn_up.weight": layer.mlp.up_proj.weight,
            f"blk.{index}.ffn_down.weight": layer.mlp.down_proj.weight,
        }
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items() if not name.startswith(without or "-")}
    for key, value in (changes or {}).items():
        if isinstance(value, np.ndarray):
            arrays[key] = value
        elif not isinstance(value, str):
            numbers[key] = value
    architecture = (changes or {}).get("general.architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    for key, number in numbers.items():
        writer.add_uint32(key, number)
    writer.add_float32("llama.rope.freq_base", 5000.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in (changes or {}).items():
        if isinstance(value, str) and key != "general.architecture":
            writer.add_string(key, value)
    writer.add_tokenizer_model("gpt2")
    # A byte-level vocabulary spells the space and the line break as these two; one merge, since none reads as missing.
    spelled = [token.translate({32: "Ġ", 10: "Ċ"}) for token in ALPHABET]
    writer.add_token_list([*spelled, "th"])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, array in arrays.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.requires_grad_(False)
