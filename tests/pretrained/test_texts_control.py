"""Text that spells out control tokens: no window holds their ids, they are counted, and the text is all there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tokenizers as tk
from conftest import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from headcount.pretrained.text.texts import Document, control_ids, control_words, cut_blocks, encode_plain

HTML = "<p>see <s>old</s> new <s>text</s></p>\n"
"""Two begins and two ends."""
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def byte_level() -> Any:
    """As GPT-2, Qwen and Llama 3: any text is bytes, control tokens lie beside the vocabulary."""
    own = tk.Tokenizer(tk.models.BPE())
    own.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = tk.decoders.ByteLevel()
    alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        ["the old text and the new text " * 3],
        tk.trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, vocab_size=280),
    )
    return PreTrainedTokenizerFast(tokenizer_object=own, **NAMES)


def sentence_pieces() -> Any:
    """As Llama 2 and Gemma: pieces with spaces in them, bytes for what has none."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(letter, -10.0) for letter in "▁abcdefghijklmnopqrstuvwxyz<>/\n"]
    own = tk.Tokenizer(tk.models.Unigram(pieces, unk_id=3, byte_fallback=True))
    own.normalizer = tk.normalizers.Replace(" ", "▁")
    own.decoder = tk.decoders.Sequence([tk.decoders.ByteFallback(), tk.decoders.Fuse(), tk.decoders.Replace("▁", " ")])
    return PreTrainedTokenizerFast(tokenizer_object=own, **NAMES)


def whole_words() -> Any:
    """A vocabulary of words with the spellings among them: telling it to split them changes nothing."""
    words = [*SPECIAL, "see", "old", "new", "text", "<", "s>", "/s>", "<p>", "</p>", "\n"]
    own = tk.Tokenizer(tk.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    own.pre_tokenizer = tk.pre_tokenizers.Split(tk.Regex(r"</?[a-z]+>|/?[a-z]+>|\w+|\n|\S"), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=own, **NAMES)


def one_for_all() -> Any:
    """As GPT-2: one token is beginning, end and unknown."""
    own = byte_level()
    return PreTrainedTokenizerFast(
        tokenizer_object=own.backend_tokenizer, bos_token="</s>", eos_token="</s>", unk_token="</s>"
    )


KINDS = [byte_level, sentence_pieces, whole_words, one_for_all, tiny_tokenizer]


@pytest.mark.parametrize("make", KINDS)
def test_spellings_are_text_and_counted(make: Callable[[], Any]) -> None:
    tokenizer = make()
    controls = control_ids(tokenizer)
    certain = set(controls.values()) - {tokenizer.unk_token_id}
    as_they_come = tokenizer(HTML, add_special_tokens=False).input_ids
    assert certain & set(as_they_come) or make is one_for_all, "the case needs a tokenizer that gives control ids"
    ids, spelled = encode_plain(tokenizer, HTML)
    assert not certain & set(ids) and spelled == 4
    if make is whole_words:
        assert tokenizer.convert_ids_to_tokens(ids) == (
            ["<p>", "see", "<", "s>", "old", "<", "/s>", "new", "<", "s>", "text", "<", "/s>", "</p>", "\n"]
        )
    else:
        assert tokenizer.decode(ids) == HTML
    # What the tokenizer does afterwards, and text without spellings, are as before.
    assert tokenizer(HTML, add_special_tokens=False).input_ids == as_they_come
    plain = "see old text\n"
    assert encode_plain(tokenizer, plain) == (tokenizer(plain, add_special_tokens=False).input_ids, 0)


def test_the_one_token_of_gpt2_is_found() -> None:
    """Its only control token is also its unknown one, which ordinary text never gives."""
    ids, spelled = encode_plain(one_for_all(), "a</s>b")
    assert spelled == 1 and one_for_all().unk_token_id not in ids


def test_unknown_characters_are_not_counted() -> None:
    tokenizer = tiny_tokenizer()
    ids, spelled = encode_plain(tokenizer, "aéb</s>é<unk>")
    assert spelled == 2  # </s> and <unk>
    # a, é, b and é; the pieces of both spellings; é alone is unknown.
    assert ids.count(tokenizer.unk_token_id) == 2 and len(ids) == 3 + 4 + 1 + 5


@pytest.mark.parametrize("template", [True, False])
def test_windows_hold_control_ids_only_where_the_tokenizer_puts_them(template: bool) -> None:
    tokenizer = tiny_tokenizer()
    if not template:
        tokenizer.backend_tokenizer.post_processor = tk.processors.TemplateProcessing("$A", special_tokens=[])
    docs = [Document("page", HTML * 20), Document("plain", "nothing to see here\n" * 20)]
    blocks = cut_blocks(tokenizer, "text", docs, 100, 16, 0)
    assert blocks.control_tokens == 80
    body = blocks.ids[:, 1:] if template else blocks.ids
    assert not bool((body < 3).any())
    assert not template or bool((blocks.ids[:, 0] == 1).all())
    stream = "".join(tokenizer.decode(row) for row in body)
    assert all(stream.count(tag) >= 30 for tag in ("<s>", "</s>"))  # windows cut a few in two
    assert cut_blocks(tokenizer, "text", docs[1:], 100, 16, 0).control_tokens == 0


def test_the_line_names_kinds_that_have_some() -> None:
    assert control_words({"prose": 0, "self": 0}) is None
    words = control_words({"prose": 0, "code": 3, "text": 1200})
    assert words is not None and words.endswith("3 in code, 1,200 in text.")
