"""State collisions: found where the state is small, never claimed where it is large or was not found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headcount import refute, tasks
from headcount.core.errors import HeadcountError
from headcount.pbit.recurrent import QuantisedRNN, RecurrentNet, random_rnn
from headcount.refutation.witness import Refutation


def check(answer: Refutation, net: RecurrentNet, q: int) -> None:
    """Walk both histories by hand: equal states before the query, targets 2/q apart by a plain mean."""
    witness = answer.witness
    assert witness is not None
    n = len(witness.first["z"])
    x = np.stack([np.concatenate([w["z"], w["y"], np.arange(n)[:, None]], 1) for w in (witness.first, witness.second)])
    assert (x[:, -1] == x[0, -1]).all() and (x[:, :-1] != x[:1, :-1]).any()
    state = net.initial_state(2)
    with torch.no_grad():
        for token in torch.from_numpy(x)[:, :-1].unbind(1):
            state = net.step(state, token)
    assert (state[0] == state[1]).all()
    subset = witness.first["y"][-1]
    targets = [w["z"][subset].mean(0) for w in (witness.first, witness.second)]
    assert np.linalg.norm(targets[0] - targets[1]) == pytest.approx(2 / q)
    assert witness.target_distance == pytest.approx(2 / q) and witness.output_distance == 0
    assert witness.token == n - 1


@pytest.mark.parametrize(("units", "bits"), [(1, 1), (2, 2), (3, 3), (4, 3)])
@pytest.mark.parametrize("cell", ["rnn", "gru"])
@pytest.mark.parametrize("q", [1, 3])
def test_small_states_always_collide(units: int, bits: int, cell: str, q: int) -> None:
    n = units * bits + q + 1  # one sign more than the state holds
    for seed in range(4):
        net = random_rnn(n, q, 2, units, bits, cell, seed)
        answer = refute(net, tasks.get("qsa", tokens=n, sparsity=q, dim=2))
        assert answer.witness_found and answer.impossible
        assert (answer.has, answer.needed) == (units * bits, n - q)
        check(answer, net, q)
        shorter = tasks.get("qsa", tokens=n - 1, sparsity=q, dim=2)
        answer = refute(random_rnn(n - 1, q, 2, units, bits, cell, seed), shorter)
        assert not answer.witness_found and not answer.impossible
        assert "no witness from this bound" in answer.reason


def test_large_states_of_random_nets_collide_too() -> None:
    for seed in range(2):
        net = random_rnn(150, 2, 4, 16, 8, "gru", seed)
        answer = refute(net, tasks.get("qsa", tokens=150, sparsity=2, dim=4), limit=2**10)
        assert answer.witness_found and answer.has == 128
        check(answer, net, 2)


class Register(nn.Module):
    """Keeps the last ``size`` signs: a state of that many bits, used perfectly (q = 1, d' = 1)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @property
    def state_bits(self) -> int:
        return self.size

    def initial_state(self, count: int) -> Tensor:
        return torch.ones(count, self.size, dtype=torch.float64)

    def step(self, state: Tensor, tokens: Tensor) -> Tensor:
        signs = torch.where(tokens[:, :1] < 0, -1.0, 1.0).double()
        return torch.cat([state[:, 1:], signs], 1)

    def read(self, state: Tensor) -> Tensor:
        return state[:, :1]

    def forward(self, x: Tensor) -> Tensor:
        """Exact for q = 1 where the register is long enough: reads the sign that the last token asks for."""
        state, outputs = self.initial_state(len(x)), []
        for position, token in enumerate(x.unbind(1)):
            place = (self.size - position + token[:, 1].long()).clamp(0, self.size - 1)
            outputs.append(state.gather(1, place[:, None]))
            state = self.step(state, token)
        return torch.stack(outputs, 1)


def test_a_net_with_enough_memory_is_right_and_not_refuted() -> None:
    n = 9
    task = tasks.get("qsa", tokens=n, sparsity=1, dim=1)
    net = Register(n - 1)
    rng = np.random.default_rng(0)
    for _ in range(50):
        z = rng.choice([-1.0, 1.0], (1, n, 1))
        y = rng.integers(0, n - 1, (1, n, 1))
        batch = task.batch(z=z, y=y)
        x = torch.from_numpy(np.concatenate([z, y, np.arange(n)[None, :, None]], 2))
        assert net(x)[0, -1].item() == batch.targets[0, -1, 0]
    assert not refute(net, task).witness_found


@pytest.mark.parametrize("size", [1, 5, 40])
def test_a_net_that_forgets_the_first_token_is_refuted(size: int) -> None:
    """Also at 40 bits, far too many to enumerate: the pair differs in one early token alone."""
    net = Register(size)
    answer = refute(net, tasks.get("qsa", tokens=size + 2, sparsity=1, dim=1), limit=2**8)
    assert answer.witness_found and answer.has == size
    check(answer, net, 1)


class Hash(nn.Module):
    """An invertible 48-bit mixing of all signs: too small for 60 of them, but no search here finds where."""

    state_bits = 48

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def initial_state(self, count: int) -> Tensor:
        return torch.zeros(count, 1, dtype=torch.int64)

    def step(self, state: Tensor, tokens: Tensor) -> Tensor:
        state = (state + torch.where(tokens[:, :1] < 0, 0x5DEECE66D, 0xB)) % 2**48
        state = state ^ (state >> 23)
        return (state * 0x2545F4914F6D) % 2**48

    def read(self, state: Tensor) -> Tensor:
        return self.scale * state / 2**48

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = self.initial_state(len(x)), []
        for token in x.unbind(1):
            state = self.step(state, token)
            outputs.append(self.read(state))
        return torch.stack(outputs, 1)


def test_beyond_the_search_no_witness_is_made_up_and_nothing_is_claimed_of_a_net_of_unknown_type() -> None:
    answer = refute(Hash(), tasks.get("qsa", tokens=61, sparsity=1, dim=1), limit=2**10)
    assert not answer.witness_found and not answer.impossible and answer.verdict == "undecided"
    assert "48 < 60" in answer.reason and "cannot be checked from outside" in answer.reason


def test_beyond_the_search_the_counting_stands_for_nets_that_answer_from_their_state() -> None:
    task = tasks.get("qsa", tokens=24, sparsity=1, dim=1)
    net = random_rnn(24, 1, 1, 2, 11, "gru", seed=4)  # 22 bits of state for 23 signs; this one forgets little
    answer = refute(net, task, limit=1)
    assert not answer.witness_found and answer.impossible and answer.verdict == "counting"
    assert "rules the model out by counting: 22 < 23" in answer.reason
    hook = net.readout.register_forward_hook(lambda module, inputs, output: output)
    assert refute(net, task, limit=1).verdict == "undecided"  # a hook may do anything
    hook.remove()
    assert refute(net, task, limit=1).verdict == "counting" and refute(net, task).verdict == "witness"


def test_a_state_of_more_values_than_declared_is_outside_the_bound() -> None:
    net = Register(12)
    net.__class__ = type("Liar", (Register,), {"state_bits": 3})
    answer = refute(net, tasks.get("qsa", tokens=13, sparsity=1, dim=1))
    assert not answer.impossible and answer.verdict == "does not apply"
    assert "more than 2^3" in answer.reason


def test_a_net_that_peeks_around_its_state_gives_no_false_witness() -> None:
    class Peek(Register):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, :1].cumsum(1) + super().forward(x)

    answer = refute(Peek(2), tasks.get("qsa", tokens=8, sparsity=1, dim=1))
    assert not answer.witness_found and not answer.impossible and answer.verdict == "does not apply"
    assert "answers for the last one from its state" in str(answer.failing_hypothesis)


def test_quantised_states_take_few_values() -> None:
    net = random_rnn(30, 1, 2, 3, 2)
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (200, 30, 4)))
    state, seen = net.initial_state(200), set()
    with torch.no_grad():
        for token in x.unbind(1):
            state = net.step(state, token)
            seen |= set(state.flatten().tolist())
        assert net(x).shape == (200, 30, 2)
        assert torch.equal(net(x)[:, -1], net.read(state))
    assert len(seen) <= 4 and min(seen) == -1 and max(seen) == pytest.approx(1)


def test_bad_recurrent_nets_are_refused() -> None:
    with pytest.raises(HeadcountError, match="not in \\[-1, 1\\]"):
        QuantisedRNN(nn.RNNCell(4, 2, nonlinearity="relu"), nn.Linear(2, 2), 3, 8, 2)
    with pytest.raises(HeadcountError, match="0 bits"):
        random_rnn(8, 1, 2, 2, 0)
    with pytest.raises(HeadcountError, match="no cell 'lstm'"):
        random_rnn(8, 1, 2, 2, 2, "lstm")


def test_a_net_for_another_task_is_refused() -> None:
    with pytest.raises(HeadcountError, match="takes 4 numbers a token, the task has 5"):
        refute(random_rnn(9, 1, 2, 2, 2), tasks.get("qsa", tokens=9, sparsity=2, dim=2))
