"""Run protocols on many set-disjointness instances and compare their bit counts with the lower bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.core.payload import JsonObject
from headcount.core.progress import Progress, silent
from headcount.core.seeds import numpy_generator
from headcount.pbit.examples import (
    histogram_layer,
    match3_from_histogram,
    random_match3_layer,
    random_qsa_layer,
    sign_key_layer,
)
from headcount.pbit.layer import Codes, PBitAttention
from headcount.protocols.disjointness import Instance, match3_instance, match3_sets, qsa_instance, set_pairs
from headcount.protocols.two_party import Run, run_match3, run_qsa

Kind = Literal["random", "solving"]
Sets = NDArray[np.bool_]


@dataclass(frozen=True)
class ProtocolResult:
    """Counts over all instances; ``right`` is ``None`` for a layer that is not designed to solve the task."""

    task: str
    layer: Kind
    tokens: int
    set_size: int
    heads: int
    embedding_dim: int
    value_width: int
    precision_bits: int
    first_bits: int
    second_bits: int
    instances: int
    equal: int
    right: int | None

    @property
    def bits(self) -> int:
        """Transmitted bits per run (the same for every instance because all widths are fixed)."""
        return self.first_bits + self.second_bits

    @property
    def disjointness_bits(self) -> int:
        """Bits required for set disjointness, and so for any layer that solves the task: the size of the sets."""
        return self.set_size

    @property
    def holds(self) -> bool:
        """Whether every output equals the layer's output, and a layer designed to solve the task solved it."""
        return self.equal == self.instances and self.right in (None, self.instances)

    def as_dict(self) -> JsonObject:
        """The fields of the JSON answer."""
        return {
            **vars(self),
            "bits": self.bits,
            "disjointness_bits": self.disjointness_bits,
            "enough_bits": self.bits >= self.disjointness_bits,
            "bit_for_bit": self.equal == self.instances,
        }

    def lines(self) -> list[str]:
        """The human-readable result."""
        lines = [
            f"{self.layer} layer for {self.task}: N = {self.tokens}, H = {self.heads}, m = "
            f"{self.embedding_dim}, d_v = {self.value_width}, p = {self.precision_bits}",
            f"output equal to the layer's own, bit for bit: {self.equal} of {self.instances} instances",
            f"transmitted bits: {self.bits:,} ({self.first_bits:,} from the first party, "
            f"{self.second_bits:,} from the second); set disjointness on {self.set_size:,} elements needs "
            f"{self.disjointness_bits:,}",
        ]
        if self.right is not None:
            lines.append(f"right about whether the sets meet: {self.right} of {self.instances}")
        if self.bits < self.disjointness_bits:
            sizes = "H, d_v and p" if self.task == "match3" else "m and p"
            lines.append(f"fewer bits than disjointness needs: no layer with these {sizes} solves the task")
        return lines


def run_protocol(
    task: str,
    *,
    tokens: int,
    width: int,
    precision_bits: int,
    heads: int = 1,
    sparsity: int | None = None,
    modulus: int | None = None,
    dim: int = 1,
    layer: Kind = "random",
    count: int = 20,
    seed: int = 0,
    progress: Progress = silent,
    value_width: int | None = None,
) -> ProtocolResult:
    """Simulate a layer on ``count`` hard pairs of sets and compare every output with that of the layer.

    ``width`` is the embedding width of a random layer, ``value_width`` the value width of its heads (Match3
    only; defaults to ``width``). ``solving`` ignores both and ``heads``: its layer has the
    required widths.
    """
    if value_width is not None and task != "match3":
        raise HeadcountError(f"the value width on {task} is d'", fix="leave value_width out, or set dim")
    if count < 1:
        raise HeadcountError(f"count is {count}", fix="ask for at least 1 instance")
    if tokens < 3:
        raise HeadcountError(f"{tokens} tokens hold no two sets", fix="choose at least 3 tokens")
    make: Callable[[Sets, Sets], Instance]
    run: Callable[[PBitAttention, Instance], Run]
    decide: Callable[[Codes], bool]
    if task == "match3":
        size = match3_sets(tokens)
        residues = 2 * size + 2 if modulus is None else modulus
        model = (
            histogram_layer(tokens, residues, precision_bits)
            if layer == "solving"
            else random_match3_layer(tokens, residues, width, precision_bits, heads, seed, value_width)
        )
        run = run_match3

        def make(first: Sets, second: Sets) -> Instance:
            return match3_instance(first, second, residues, tokens)

        def decide(output: Codes) -> bool:
            return match3_from_histogram(output, 1)  # the public token has the residue 1
    else:
        size = (tokens - 1) // 2 if sparsity is None else sparsity
        model = (
            sign_key_layer(tokens, size, dim, precision_bits, seed=seed)
            if layer == "solving"
            else random_qsa_layer(tokens, size, dim, width, precision_bits, heads, seed)
        )
        run = run_qsa

        def make(first: Sets, second: Sets) -> Instance:
            return qsa_instance(first, second, tokens, dim)

        def decide(output: Codes) -> bool:
            return bool(model.read(output)[0] > 1 / (2 * size))

    equal = right = first_bits = second_bits = 0
    rng = numpy_generator(seed, "bounds", "disjointness", task)
    for done, (first, second) in enumerate(set_pairs(rng, size, count), start=1):
        instance = make(first, second)
        simulated = run(model, instance)
        expected = model(instance.tokens, slice(0, 1))[0]
        equal += simulated.output.tobytes() == expected.tobytes()
        right += decide(simulated.output) == instance.meet if layer == "solving" else 0
        first_bits, second_bits = simulated.first_bits, simulated.second_bits
        progress("instances", done, count)
    return ProtocolResult(
        task=task,
        layer=layer,
        tokens=tokens,
        set_size=size,
        heads=model.heads,
        embedding_dim=model.embedding_dim,
        value_width=model.value_dim,
        precision_bits=precision_bits,
        first_bits=first_bits,
        second_bits=second_bits,
        instances=count,
        equal=equal,
        right=right if layer == "solving" else None,
    )
