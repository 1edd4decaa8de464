"""Refute a concrete model with two inputs on which it cannot be correct for both, found by running it."""

from __future__ import annotations

from typing import Any

from headcount.core.errors import HeadcountError
from headcount.pbit.layer import PBitAttention
from headcount.refutation.witness import Refutation
from headcount.tasks import Task
from headcount.tasks.match import Match3
from headcount.tasks.qsa import QSA


def refute(model: Any, task: Task, *, seed: int = 0, **options: Any) -> Refutation:
    """Search for a witness that ``model`` is too small for ``task``.

    - any torch net with linear layers, on qSA: a kernel direction of its first layer, whose rank matters and not
      its width (``encode``: maps z and y to the net's input if that is not vec(X));
    - a recurrent net with a quantised state (``RecurrentNet``, e.g. ``QuantisedRNN``), on qSA: a state
      collision (``limit``: number of states that the search keeps);
    - an attention unit on p-bit embeddings (``EmbeddedUnit``, e.g. ``PBitAttention``), on qSA: two query sets
      with the same embedding; a ``PBitAttention`` layer on Match3: two inputs with the same output (``limit``:
      number of candidates).

    For a model that is large enough the answer is "no witness from this bound"; a witness is returned only after
    the model has been run on it. For a model that violates a hypothesis of the bound (such as a residual connection
    that bypasses the counted layer) the answer is "this bound does not apply" with that hypothesis. A model is
    ``impossible`` only with a witness, or if its type guarantees the hypotheses (``witness.Verdict``).

    >>> import torch
    >>> from headcount import refute, tasks
    >>> task = tasks.get("qsa", tokens=8, sparsity=1, dim=2)
    >>> net = torch.nn.Sequential(torch.nn.Linear(8 * 4, 15), torch.nn.ReLU(), torch.nn.Linear(15, 16))
    >>> answer = refute(net, task)
    >>> answer.witness_found, answer.needed, answer.has
    (True, 16, 15)
    >>> round(answer.witness.target_distance, 3), answer.witness.output_distance < 1e-4
    (2.0, True)
    """
    if options.get("limit", 1) < 1:
        raise HeadcountError(f"limit is {options['limit']}", fix="let the search keep at least 1 candidate")

    from torch import nn

    from headcount.pbit.recurrent import RecurrentNet
    from headcount.refutation.attention import EmbeddedUnit, refute_embedding, refute_match3
    from headcount.refutation.mlp import refute_mlp
    from headcount.refutation.rnn import refute_rnn

    if isinstance(model, PBitAttention) and type(task) is Match3:
        return refute_match3(model, task, seed, **options)
    if not isinstance(task, QSA):
        raise HeadcountError(
            f"no bound for {task.name} refutes a {type(model).__name__}",
            fix="use the task qsa, or match3 with a PBitAttention layer",
        )
    if isinstance(model, EmbeddedUnit):
        return refute_embedding(model, task, seed, **options)
    if isinstance(model, RecurrentNet):
        return refute_rnn(model, task, seed, **options)
    if isinstance(model, nn.Module):
        return refute_mlp(model, task, seed=seed, **options)
    raise HeadcountError(
        f"a {type(model).__name__} cannot be refuted",
        fix="give a torch module, a quantised recurrent net or a p-bit attention layer",
    )
