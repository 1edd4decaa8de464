"""Two-party computation of one token's output of a p-bit attention layer, with every transmitted bit counted.

Match3 (THEORY section 3, after [A] Theorem 7): the query token is public, and each party has half of the other
tokens. For each head:

    first -> second   the largest logit of its tokens              p bits
    second -> first   the largest logit of all tokens              p bits
    first -> second   the sum of its softmax weights               D bits      (``widths.denominator_bits``)
                      the sums of its weighted values              d * B bits  (``widths.numerator_bits``;
                                                                               d the value width of a head)

The second party adds the sums of its tokens and of the query token, divides and rounds, as in step 6 of the layer.
The maximum is sent in both directions because weights are rounded after it is subtracted.

qSA (after [A] Theorem 4): the first party has only the query token. It sends the token's embedding, m p
bits, and the second party computes the rest.

Both parties know the layer (it is public). The channel carries bits, not objects: each number is written
with a width fixed in advance, and the receiver uses the decoded value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headcount.pbit.layer import Codes, PBitAttention
from headcount.pbit.widths import denominator_bits, numerator_bits
from headcount.protocols.disjointness import FIRST, PUBLIC, SECOND, Instance


@dataclass
class Channel:
    """Bits sent, by sender; ``send`` returns the value that the receiver decodes."""

    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)

    def send(self, sender: int, number: int, bits: int, signed: bool = True) -> int:
        """Send ``number`` with ``bits`` bits (two's complement if signed)."""
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
        assert low <= number < high, f"{number} does not fit {bits} bits"
        text = format(number % 2**bits, f"0{bits}b")
        (self.first if sender == FIRST else self.second).append(text)
        read = int(text, 2)
        return read - 2**bits if signed and text[0] == "1" else read

    def send_array(self, sender: int, numbers: Codes, bits: int, signed: bool = True) -> Codes:
        """Send an array of known shape, one number at a time."""
        read = [self.send(sender, number, bits, signed) for number in numbers.ravel().tolist()]
        return np.array(read, dtype=np.int64).reshape(numbers.shape)

    @property
    def first_bits(self) -> int:
        """Bits sent by the first party."""
        return sum(map(len, self.first))

    @property
    def second_bits(self) -> int:
        """Bits sent by the second party."""
        return sum(map(len, self.second))


@dataclass(frozen=True)
class Run:
    """One simulation: the output that the second party computed (d codes) and its cost in bits."""

    output: Codes
    first_bits: int
    second_bits: int

    @property
    def bits(self) -> int:
        """All transmitted bits."""
        return self.first_bits + self.second_bits


def match3_bits(layer: PBitAttention, first_tokens: int) -> int:
    """The cost of ``run_match3``, known in advance: H (2p + D + d B), d the value width of a head.

    The cost does not depend on the embedding width: embeddings are never sent.
    """
    p = layer.precision_bits
    sums = denominator_bits(first_tokens, p) + layer.value_dim * numerator_bits(first_tokens, p)
    return layer.heads * (2 * p + sums)


def run_match3(layer: PBitAttention, instance: Instance) -> Run:
    """Simulate the layer at the public token 0; all other tokens of the instance are FIRST or SECOND."""
    channel, p = Channel(), layer.precision_bits
    first_embedded = layer.embed(instance.rows(FIRST))
    # The second party also includes the public token as a key: both parties know it, and it is counted once.
    second_embedded = layer.embed(instance.rows(PUBLIC, SECOND))
    query = layer.queries(layer.embed(instance.rows(PUBLIC)))

    first_logits = layer.logits(query, layer.keys(first_embedded))
    second_logits = layer.logits(query, layer.keys(second_embedded))
    told = channel.send_array(FIRST, first_logits.max(-1), p)
    largest = np.maximum(told, second_logits.max(-1))
    heard = channel.send_array(SECOND, largest, p)

    bottom, top = layer.sums(layer.weights(first_logits, heard), layer.values(first_embedded))
    n = first_embedded.shape[0]
    bottom = channel.send_array(FIRST, bottom, denominator_bits(n, p), signed=False)
    top = channel.send_array(FIRST, top, numerator_bits(n, p))

    second_bottom, second_top = layer.sums(layer.weights(second_logits, largest), layer.values(second_embedded))
    output = layer.finish(bottom + second_bottom, top + second_top)[0]
    return Run(output, channel.first_bits, channel.second_bits)


def run_qsa(layer: PBitAttention, instance: Instance) -> Run:
    """Simulate the layer at token 0, the only token of the first party."""
    channel = Channel()
    sent = channel.send_array(FIRST, layer.embed(instance.rows(FIRST)), layer.precision_bits)
    embedded = np.vstack([sent, layer.embed(instance.rows(SECOND))])
    logits = layer.logits(layer.queries(sent), layer.keys(embedded))
    sums = layer.sums(layer.weights(logits, logits.max(-1)), layer.values(embedded))
    return Run(layer.finish(*sums)[0], channel.first_bits, channel.second_bits)
