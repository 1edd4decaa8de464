"""Refute a recurrent net with a quantised state on qSA with two histories that lead to the same state.

This applies the argument of ``qsa_rnn``. The search processes the tokens in order, keeps one history for every
state reached, and extends each with z = e1 and z = -e1. If the state takes 2^S values, then after S + 1 free
tokens two histories must share one: with a frontier of more than 2^S states the search always finds a collision. If
the limit is smaller, it keeps a random part of the frontier (birthday collisions, at about 2^(S/2) states), and it
also tries pairs that differ only in one early token, which detects nets that forget. If nothing is found, the
counting argument still applies to a net whose type guarantees that its answer depends only on its state
(``answers_from_state``); for any other net the result is undecided.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headcount.bounds.statements.qsa_rnn import STATE_BITS
from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.pbit.recurrent import QuantisedRNN, RecurrentNet
from headcount.refutation.mlp import evaluation
from headcount.refutation.witness import Comparison, Inputs, Refutation, Run, Witness, measure
from headcount.tasks.qsa import QSA

Signs = NDArray[np.int8]
_CANDIDATES = 16  # collisions that are run through the net before the search continues


def _like(model: nn.Module) -> Tensor:
    """A tensor with the device and dtype of the net."""
    return next(model.parameters(), torch.zeros(()))


class _Reader:
    """Encode sign patterns as tokens: token j has the value signs_j e1, the last q-1 before the query have 0."""

    def __init__(self, net: RecurrentNet, task: QSA) -> None:
        self.net, self.task = net, task
        self.free = task.tokens - task.sparsity
        assert isinstance(net, nn.Module)
        self.like = _like(net)

    def token(self, position: int, signs: Signs) -> Tensor:
        """The token at ``position``, (count, d' + q + 1)."""
        q, dim = self.task.sparsity, self.task.dim
        rows = np.zeros((len(signs), dim + q + 1))
        rows[:, 0] = signs
        rows[:, dim:-1] = np.arange(q)
        rows[:, -1] = position
        return torch.from_numpy(rows).to(self.like)

    def inputs(self, signs: Signs, j: int) -> Inputs:
        """The whole sequence: these signs, and a last token that queries token j and the tokens with value 0."""
        n, q = self.task.tokens, self.task.sparsity
        z = np.zeros((n, self.task.dim))
        z[: self.free, 0] = signs
        y = np.tile(np.arange(q), (n, 1))
        y[-1] = [j, *range(self.free, n - 1)]
        return {"z": z, "y": y}


def _collisions(states: Tensor) -> list[tuple[int, int]]:
    """Pairs of equal rows, one pair for each repeated state."""
    wide = states.detach().double() if states.is_floating_point() else states.long()
    rows = np.ascontiguousarray(wide.cpu().numpy())
    # Sort by a random linear hash of the bits (wrapping), then compare: fast and without false pairs.
    factors = numpy_generator(0, "bounds", "state hash").integers(-(2**63), 2**63, rows.shape[1]) | 1
    order = np.argsort(rows.view(np.int64) @ factors, kind="stable")
    same = (rows[order[1:]] == rows[order[:-1]]).all(1)
    return [(int(order[k]), int(order[k + 1])) for k in np.flatnonzero(same)]


def make_run(model: nn.Module, task: QSA) -> Run:
    """The function that runs the net on batches of qSA inputs, with outputs (count, N, d')."""
    like = _like(model)

    def run(inputs: Inputs) -> NDArray[np.float64]:
        z, y = (torch.from_numpy(np.ascontiguousarray(inputs[name])).to(like) for name in ("z", "y"))
        position = torch.arange(task.tokens).to(like)[None, :, None].expand(len(z), -1, 1)
        with evaluation(model):
            outputs: NDArray[np.float64] = model(torch.cat([z, y, position], dim=-1)).double().cpu().numpy()
            return outputs

    return run


def answers_from_state(net: object) -> bool:
    """Whether the type of ``net`` guarantees that its answer depends only on a state of ``state_bits`` bits.

    True for a ``QuantisedRNN`` with a torch cell and a linear readout, without hooks; false for subclasses
    of these.
    """
    if type(net) is not QuantisedRNN or type(net.cell) not in (nn.RNNCell, nn.GRUCell):
        return False
    hooks = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in net.modules())
    return type(net.readout) is nn.Linear and not hooks


def refute_rnn(model: RecurrentNet, task: QSA, seed: int = 0, limit: int = 2**13) -> Refutation:
    """Two sign histories that the net cannot distinguish; the search keeps at most ``limit`` states.

    The bound does not apply (``does not apply``) to a net that accesses earlier tokens other than through its state,
    or whose state takes more than 2^S values.
    """
    bound = "qsa-rnn-q1" if task.sparsity == 1 else "qsa-rnn-any-q"
    needed, has = task.tokens - task.sparsity, int(model.state_bits)
    compared = Comparison(task, bound, needed, has, STATE_BITS)
    if has >= needed:
        return compared.allowed()
    if not isinstance(model, nn.Module):
        raise HeadcountError(f"{type(model).__name__} is no torch module", fix="derive it from nn.Module")
    reader = _Reader(model, task)
    rng = numpy_generator(seed, "bounds", "rnn search")
    run = make_run(model, task)
    differing: Witness | None = None
    with evaluation(model):
        pairs, states = _by_walking(reader, rng, limit)
        if states > 2**has:
            evidence = f"its state took {states} values after one and the same token, more than 2^{has}"
            return compared.fails("from its state", evidence)
        for one, two in _then(pairs, reader, rng, limit):
            j = int(np.flatnonzero(one != two)[0])
            witness = measure(task, run, reader.inputs(one, j), reader.inputs(two, j), task.tokens - 1)
            if witness.holds:
                reason = (
                    f"{has} bits of state do not hold {needed} signs: two histories that differ at token {j} "
                    f"leave the same state, and the last token asks for it"
                )
                return compared.refuted(witness, reason)
            differing = differing or witness
    if differing is None:
        searched = f"{limit} histories at a time were searched"
        return compared.by_counting(searched) if answers_from_state(model) else compared.undecided(searched)
    if not np.isfinite(differing.output_distance):
        return compared.undecided("the outputs on the constructed inputs are not finite")
    return compared.fails(
        "from its state",
        f"two histories leave the same state, yet the outputs at the last token are {differing.output_distance:.2g} "
        "apart",
    )


Pair = tuple[Signs, Signs]


def _then(pairs: list[Pair], reader: _Reader, rng: np.random.Generator, limit: int) -> Iterator[Pair]:
    """These pairs, followed by the pairs for nets that forget if none of these suffices."""
    yield from pairs
    yield from _by_forgetting(reader, rng, limit)


def _by_walking(reader: _Reader, rng: np.random.Generator, limit: int) -> tuple[list[Pair], int]:
    """Pairs of sign patterns that lead to the same state, and the maximum number of distinct states after a token."""
    history: Signs = np.zeros((1, 0), dtype=np.int8)
    most = 1
    state = reader.net.initial_state(1)
    for position in range(reader.free):
        signs = np.repeat(np.array([1, -1], dtype=np.int8), len(history))
        history = np.hstack([np.vstack([history, history]), signs[:, None]])
        state = reader.net.step(torch.cat([state, state]), reader.token(position, signs))
        pairs = _collisions(state)
        if pairs:
            # The remaining tokens are the same for both, so any later signs will do.
            rest = np.ones(reader.free - position - 1, dtype=np.int8)
            chosen = pairs[:_CANDIDATES]
            return [(np.append(history[a], rest), np.append(history[b], rest)) for a, b in chosen], most
        most = max(most, len(history))
        if len(history) > limit:
            keep = np.sort(rng.permutation(len(history))[:limit])
            history, state = history[keep], state[torch.from_numpy(keep).to(state.device)]
    return [], most


def _by_forgetting(reader: _Reader, rng: np.random.Generator, limit: int) -> list[Pair]:
    """Pairs that differ only in the first token and lead to the same final state."""
    count = max(1, min(limit // 2, 1024))
    one = (2 * rng.integers(0, 2, (count, reader.free)) - 1).astype(np.int8)
    two = one.copy()
    two[:, 0] *= -1
    both = np.vstack([one, two])
    state = reader.net.initial_state(len(both))
    for position in range(reader.free):
        state = reader.net.step(state, reader.token(position, both[:, position]))
    same = (state[:count] == state[count:]).all(1).cpu().numpy()
    return [(one[k], two[k]) for k in np.flatnonzero(same)[:_CANDIDATES]]
