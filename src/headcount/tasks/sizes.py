"""The sizes shared by several tasks, bounds and commands: name, symbol in the papers, type, least value, help.

A task accepts a size through a field, ``sparsity: int = SPARSITY.field(4)``; a size that only one task has is declared
in that task's file. The following are generated from these declarations: the options of ``headcount task``, ``learn``,
``construct``, ``bound`` and ``refute``, the fields of run specs and sweeps (``headcount.lab.specs.run``), the sizes of
bounds (``headcount.bounds.base``) and the range checks of the tasks. Nothing heavy is imported here.
"""

from __future__ import annotations

from headcount.core.options import Option

TOKENS = Option("tokens", "tokens of a sequence.", letter="N", axes=(("x", -1), ("z", -2)))
SPARSITY = Option("sparsity", "tokens that are averaged.", letter="q", axes=(("y", -1),))
DIM = Option("dim", "dimension of the averaged vectors.", letter="d'", axes=(("z", -1),))
MODULUS = Option("modulus", "residues are taken mod M.", letter="M", least=2)
ORDER = Option("order", "how many residues are summed.", letter="s")
WINDOW = Option("window", "how far the other tokens may be.", letter="K", least=0)
SYMBOLS = Option("symbols", "Number of input symbols.", least=2)
HOPS = Option("hops", "how often an induction head is followed.", letter="k")
DISTINCT = Option("distinct", "Whether indices of a tuple must differ.", kind=bool, off="repeats", rank=1)
NONLINEAR = Option("nonlinear", "ngram: tanh of the sum, or the sum.", kind=bool, off="linear", rank=1)

PRECISION_BITS = Option("precision_bits", "bits of a number.", letter="p")
HEADS = Option("heads", "attention heads of the layer.", letter="H")
DOMAIN = Option("domain", "elements that the functions map.", letter="n")
WIDTH = Option("width", "embedding dimension of an attention layer.", letter="m")
VALUE_WIDTH = Option("value_width", "value width of a head.", letter="d_v")

OF_BOUNDS = (TOKENS, SPARSITY, DIM, MODULUS, PRECISION_BITS, HEADS, DOMAIN)
"""The sizes in which lower bounds are stated, in addition to those declared in a task's file."""
