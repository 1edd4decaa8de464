"""Two parties compute one token's output of a p-bit attention layer, and every bit between them is counted.

Match3 (THEORY section 3, after [A] Theorem 7): the query token is public, each party has half of the other
tokens. For each head:

    first -> second   the largest logit of its tokens              p bits
    second -> first   the largest logit of all tokens              p bits
    first -> second   the sum of its softmax weights               D bits      (``widths.denominator_bits``)
                      the sums of its weighted values              d * B bits  (``widths.numerator_bits``;
                                                                               d the value width of a head)

The second party adds its own sums and those of the query token, divides and rounds: the layer's own step 6.
The maximum goes both ways because weights are rounded after it is subtracted.

qSA (after [A] Theorem 4): the first party has the query token alone. It sends the token's embedding, m p
bits, and the second party does the rest.

Both parties know the layer (it is public). The channel carries bits, not objects: each number is written
with a width fixed in advance, and the receiver uses what it reads back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headcount.pbit.layer import Codes, PBitAttention
from headcount.pbit.widths import denominator_bits, numerator_bits
from headcount.protocols.disjointness import FIRST, PUBLIC, SECOND, Instance


@dataclass
class Channel:
    """Bits sent, by sender; ``send`` returns what the receiver reads."""

    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)

    def send(self, sender: int, number: int, bits: int, signed: bool = True) -> int:
        """Write ``number`` with ``bits`` bits (two's complement if signed)."""
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
        assert low <= number < high, f"{number} does not fit {bits} bits"
        text = format(number % 2**bits, f"0{bits}b")
        (self.first if sender == FIRST else self.second).append(text)
        read = int(text, 2)
        return read - 2**bits if signed and text[0] == "1" else read

    def send_array(self, sender: int, numbers: Codes, bits: int, signed: bool = True) -> Codes:
        """Write an array of known shape, one number after the other."""
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
    """One simulation: the output that the second party computed (d codes), and what it cost."""

    output: Codes
    first_bits: int
    second_bits: int

    @property
    def bits(self) -> int:
        """All transmitted bits."""
        return self.first_bits + self.second_bits


def match3_bits(layer: PBitAttention, first_tokens: int) -> int:
    """The cost of ``run_match3``, known in advance: H (2p + D + d B), d the value width of a head.

    The embedding width does not occur: embeddings are never sent.
    """
    p = layer.precision_bits
    sums = denominator_bits(first_tokens, p) + layer.value_dim * numerator_bits(first_tokens, p)
    return layer.heads * (2 * p + sums)


def run_match3(layer: PBitAttention, instance: Instance) -> Run:
    """Simulate the layer at the public token 0; tokens of the instance are FIRST, SECOND and that one."""
    channel, p = Channel(), layer.precision_bits
    mine = layer.embed(instance.rows(FIRST))
    # The second party also plays the public token's part as a key: both know it, one of them counts it.
    theirs = layer.embed(instance.rows(PUBLIC, SECOND))
    query = layer.queries(layer.embed(instance.rows(PUBLIC)))

    my_logits = layer.logits(query, layer.keys(mine))
    their_logits = layer.logits(query, layer.keys(theirs))
    told = channel.send_array(FIRST, my_logits.max(-1), p)
    largest = np.maximum(told, their_logits.max(-1))
    heard = channel.send_array(SECOND, largest, p)

    bottom, top = layer.sums(layer.weights(my_logits, heard), layer.values(mine))
    n = mine.shape[0]
    bottom = channel.send_array(FIRST, bottom, denominator_bits(n, p), signed=False)
    top = channel.send_array(FIRST, top, numerator_bits(n, p))

    their_bottom, their_top = layer.sums(layer.weights(their_logits, largest), layer.values(theirs))
    output = layer.finish(bottom + their_bottom, top + their_top)[0]
    return Run(output, channel.first_bits, channel.second_bits)


def run_qsa(layer: PBitAttention, instance: Instance) -> Run:
    """Simulate the layer at token 0, which the first party holds alone."""
    channel = Channel()
    sent = channel.send_array(FIRST, layer.embed(instance.rows(FIRST)), layer.precision_bits)
    embedded = np.vstack([sent, layer.embed(instance.rows(SECOND))])
    logits = layer.logits(layer.queries(sent), layer.keys(embedded))
    sums = layer.sums(layer.weights(logits, logits.max(-1)), layer.values(embedded))
    return Run(layer.finish(*sums)[0], channel.first_bits, channel.second_bits)
