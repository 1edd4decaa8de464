"""A model without wrong answers is never called impossible, whatever it does around the bound's hypotheses.

Every model here solves its task exactly (checked on samples first) and looks too small to the bound: it carries
tokens around the layer that the bound counts, or declares fewer bits than it uses, or uses singular values that
look like rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headcount import bounds, refute
from headcount.pbit.examples import (
    histogram_layer,
    match3_from_histogram,
    match3_from_thresholds,
    random_match3_layer,
    random_qsa_layer,
    sign_key_layer,
    threshold_bits,
    threshold_layer,
)
from headcount.pbit.layer import PBitAttention
from headcount.refutation.witness import Refutation
from headcount.tasks.match import Match3
from headcount.tasks.qsa import QSA


def check(answer: Refutation) -> None:
    """Not impossible, in no form; and the reason names a hypothesis of the bound or that it allows the model."""
    assert not answer.impossible and answer.witness is None
    assert answer.verdict in ("allowed", "undecided", "does not apply")
    assert answer.as_dict()["impossible"] is False
    assert "rules the model out" not in answer.reason
    if answer.verdict == "does not apply":
        assert "this bound does not apply" in answer.reason
        assert answer.failing_hypothesis in bounds.get(answer.bound).hypotheses
        assert str(answer.failing_hypothesis) in answer.reason
    else:
        assert answer.failing_hypothesis is None


def mean(z: Tensor, y: Tensor) -> Tensor:
    """The exact answer: (count, N, d') from z (count, N, d') and y (count, N, q)."""
    rows = torch.gather(z[:, None].expand(-1, z.shape[1], -1, -1), 2, y[..., None].expand(-1, -1, -1, z.shape[2]))
    return rows.mean(2)


# -- nets with a linear layer -------------------------------------------------------------------------------


class Around(nn.Module):
    """A net that reads the answer off its input, beside a linear layer of any width: ``kind`` says how."""

    def __init__(self, task: QSA, width: int, kind: str) -> None:
        super().__init__()
        self.task, self.kind = task, kind
        n, features, vectors = task.tokens, task.dim + task.sparsity + 1, task.tokens * task.dim
        self.first = nn.Linear(n * features, width)
        self.then = nn.Linear(width, vectors)
        self.whole = nn.Linear(vectors, vectors, bias=False)  # a second input layer, of full rank
        with torch.no_grad():
            self.whole.weight.copy_(torch.linalg.qr(torch.randn(vectors, vectors))[0])
            if kind == "two input layers":
                self.first.weight.view(width, n, features)[:, :, : task.dim] = 0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        n, d, q = self.task.tokens, self.task.dim, self.task.sparsity
        rows = x.view(-1, n, d + q + 1)
        z, y = rows[..., :d], rows[..., d : d + q].long()
        small = 1e-9 * torch.tanh(self.then(torch.relu(self.first(x)))).view(-1, n, d)
        if self.kind == "two input layers":
            z = (self.whole(z.flatten(1)) @ self.whole.weight).view(-1, n, d)
        if self.kind == "a nonlinearity first":
            small = 1e-9 * torch.tanh(self.then(self.first(torch.tanh(x)))).view(-1, n, d)
        return mean(z, y) + small


class Solving(nn.Module):
    """A fully connected net that solves qSA exactly, in float64.

    The first layer passes z on, each coordinate times a power of two, and computes the three pieces of the hat
    h(y - j) for every member of every set. The second computes relu(z + 1 + 2 h - 2): z + 1 where h = 1 and 0
    where h = 0, for |z| <= 1.
    """

    def __init__(self, task: QSA, exponents: np.ndarray) -> None:
        super().__init__()
        n, d, q = task.tokens, task.dim, task.sparsity
        self.task = task
        features = d + q + 1
        self.first = nn.Linear(n * features, n * d + 3 * n * q * n)
        self.register_buffer("unscale", torch.from_numpy(2.0 ** -exponents.astype(np.float64)))
        weight = torch.zeros(n * d + 3 * n * q * n, n, features, dtype=torch.float64)
        bias = torch.zeros(len(weight), dtype=torch.float64)
        for j in range(n):
            for c in range(d):
                weight[j * d + c, j, c] = 2.0 ** float(exponents[j * d + c])
        unit = n * d
        for i in range(n):
            for member in range(q):
                for j in range(n):
                    for shift in (1, 0, -1):
                        weight[unit, i, d + member], bias[unit] = 1, shift - j
                        unit += 1
        self.double()
        with torch.no_grad():
            self.first.weight.copy_(weight.flatten(1))
            self.first.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        n, d, q = self.task.tokens, self.task.dim, self.task.sparsity
        hidden = self.first(x.flatten(1))
        z = (hidden[:, : n * d] * self.unscale).view(-1, 1, 1, n, d)
        steps = torch.relu(hidden[:, n * d :]).view(-1, n, q, n, 3)
        hat = (steps[..., 0] - 2 * steps[..., 1] + steps[..., 2])[..., None]  # 1 where the member is j, else 0
        return (torch.relu(z + 1 + 2 * hat - 2).sum(3) - 1).mean(2)


def flat_input(task: QSA, inputs: Any) -> Tensor:
    z, y = (torch.from_numpy(np.asarray(inputs[name], dtype=np.float64)) for name in ("z", "y"))
    position = torch.arange(task.tokens).double()[None, :, None].expand(len(z), -1, 1)
    return torch.cat([z, y, position], -1).flatten(1)


def assert_net_is_right(net: nn.Module, task: QSA) -> None:
    kinds = ("uniform", "adversarial") if task.sparsity < task.tokens else ("uniform",)
    for kind in kinds:
        batch = task.sample(1, 8, kind)  # type: ignore[arg-type]
        with torch.no_grad():
            outputs = net(flat_input(task, batch.inputs)).numpy()
        assert task.score(outputs.reshape(batch.targets.shape), batch, epsilon=1e-6).wrong == 0


@given(
    n=st.integers(1, 6),
    d=st.integers(1, 3),
    kind=st.sampled_from(["residual", "two input layers", "a nonlinearity first"]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_nets_with_another_path(n: int, d: int, kind: str, data: st.DataObject) -> None:
    task = QSA(tokens=n, sparsity=data.draw(st.integers(1, n)), dim=d)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    net = Around(task, data.draw(st.integers(1, 2 * n * d)), kind)
    assert_net_is_right(net, task)
    answer = refute(net, task)
    check(answer)
    if kind == "two input layers" and (n > task.sparsity or task.sparsity == 1):
        assert answer.verdict == "does not apply" and answer.has == 0


@given(n=st.integers(1, 4), d=st.integers(1, 2), data=st.data())
@settings(max_examples=40, deadline=None)
def test_fully_connected_nets_that_solve_the_task(n: int, d: int, data: st.DataObject) -> None:
    """Also where a singular value of the first layer is 2^-200 of the largest: the net uses it all the same."""
    task = QSA(tokens=n, sparsity=data.draw(st.integers(1, n)), dim=d)
    exponents = data.draw(st.lists(st.sampled_from([0, 3, -20, -40, -60, -200]), min_size=n * d, max_size=n * d))
    net = Solving(task, np.array(exponents))
    assert_net_is_right(net, task)
    answer = refute(net, task)
    check(answer)
    if min(exponents) == max(exponents) and (n > task.sparsity or task.sparsity == 1):
        assert answer.verdict == "allowed" and answer.has == answer.needed == n * d


# -- recurrent nets -----------------------------------------------------------------------------------------


class Reads(nn.Module):
    """A recurrent net, exact at the last token. ``peek``: it reads x itself; else its state holds all tokens."""

    def __init__(self, task: QSA, bits: int, peek: bool, mixing: bool) -> None:
        super().__init__()
        self.task, self.state_bits, self.peek, self.mixing = task, bits, peek, mixing
        self.width = task.tokens * (task.dim + task.sparsity + 1)
        self.like = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def initial_state(self, count: int) -> Tensor:
        return torch.zeros(count, 1 if self.peek else self.width, dtype=torch.float64)

    def step(self, state: Tensor, tokens: Tensor) -> Tensor:
        if not self.peek:
            return torch.cat([state[:, tokens.shape[1] :], tokens.double()], 1)
        mixed = 3 * state + (tokens[:, :1] > 0) + 1 if self.mixing else 0 * state
        return torch.remainder(mixed, 2.0**self.state_bits)

    def read(self, state: Tensor) -> Tensor:
        rows = state.view(len(state), self.task.tokens, -1)
        d, q = self.task.dim, self.task.sparsity
        return mean(rows[..., :d], rows[..., d : d + q].long())[:, -1]

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.zeros(*x.shape[:2], self.task.dim, dtype=torch.float64)
        if self.peek:
            outputs[:, -1] = self.read(x.flatten(1).double())
            return outputs
        state = self.initial_state(len(x))
        for token in x.unbind(1):
            state = self.step(state, token)
        outputs[:, -1] = self.read(state)
        return outputs


@given(
    n=st.integers(2, 20), d=st.integers(1, 2), bits=st.integers(1, 25), peek=st.booleans(), mixing=st.booleans(),
    data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_recurrent_nets_that_know_more_than_their_state(
    n: int, d: int, bits: int, peek: bool, mixing: bool, data: st.DataObject
) -> None:
    task = QSA(tokens=n, sparsity=data.draw(st.integers(1, n)), dim=d)
    net = Reads(task, bits, peek, mixing)
    batch = task.sample(2, 8)
    outputs = net(flat_input(task, batch.inputs).view(8, n, -1)).detach().numpy()
    assert np.abs(outputs[:, -1] - batch.targets[:, -1]).max() < 1e-9
    check(refute(net, task, limit=data.draw(st.sampled_from([8, 2**10]))))


# -- attention units ----------------------------------------------------------------------------------------


class Unit:
    """Exact averages; ``embed`` is what the unit says it reads, ``outputs`` does not keep to it."""

    def __init__(self, task: QSA, m: int, p: int, embed: Callable[..., np.ndarray]) -> None:
        self.task, self.embedding_dim, self.precision_bits, self._embed = task, m, p, embed

    def embed(self, tokens: Any) -> np.ndarray:
        return self._embed(tokens, self.embedding_dim, self.precision_bits)

    def outputs(self, tokens: Any) -> np.ndarray:
        return np.asarray(tokens["z"], dtype=np.float64)[tokens["y"]].mean(1)


def few_bits(tokens: Any, m: int, p: int) -> np.ndarray:
    """Honest embeddings of m p bits: the output comes from the tokens themselves (a residual)."""
    hashed = (tokens["y"] * (1 + np.arange(tokens["y"].shape[1]))).sum(1)[:, None] * (7 + np.arange(m))
    return hashed % 2**p


def too_many_values(tokens: Any, m: int, p: int) -> np.ndarray:
    """The whole subset in one number."""
    powers = 64.0 ** np.arange(tokens["y"].shape[1])
    return np.tile((tokens["y"] @ powers)[:, None], (1, m))


def too_many_numbers(tokens: Any, m: int, p: int) -> np.ndarray:
    return np.hstack([np.zeros((len(tokens["y"]), m)), tokens["y"]])


def of_the_whole_sequence(tokens: Any, m: int, p: int) -> np.ndarray:
    """Zero for a token alone, and what it should not know in a sequence."""
    return np.tile((tokens["z"] - tokens["z"][:1]).sum(1)[:, None], (1, m))


@given(
    n=st.integers(2, 40), d=st.integers(1, 2), m=st.integers(1, 2), p=st.integers(1, 20),
    embed=st.sampled_from([few_bits, too_many_values, too_many_numbers, of_the_whole_sequence]), data=st.data(),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_units_that_read_around_their_embedding(
    n: int, d: int, m: int, p: int, embed: Callable[..., np.ndarray], data: st.DataObject
) -> None:
    task = QSA(tokens=n, sparsity=data.draw(st.integers(1, min(n, 8))), dim=d)
    unit = Unit(task, m, p, embed)
    batch = task.sample(3)
    outputs = unit.outputs({name: array[0] for name, array in batch.inputs.items()})
    assert task.score(outputs[None], batch, epsilon=1e-6).wrong == 0
    check(refute(unit, task, limit=data.draw(st.sampled_from([16, 2**10]))))


class Residual(PBitAttention):
    """A p-bit layer with a residual connection that carries the answer."""

    def outputs(self, tokens: Any) -> np.ndarray:
        return 1e-9 * super().outputs(tokens) + np.asarray(tokens["z"], dtype=np.float64)[tokens["y"]].mean(1)


def as_class(kind: type[PBitAttention], layer: PBitAttention) -> PBitAttention:
    return kind(**vars(layer))


@given(n=st.integers(3, 14), m=st.integers(1, 2), p=st.integers(1, 6), seed=st.integers(0, 9), data=st.data())
@settings(max_examples=40, deadline=None)
def test_p_bit_layers_with_a_residual(n: int, m: int, p: int, seed: int, data: st.DataObject) -> None:
    q = data.draw(st.integers(1, n - 1))
    task = QSA(tokens=n, sparsity=q, dim=1)
    layer = as_class(Residual, random_qsa_layer(n, q, 1, m, p, seed=seed))
    answer = refute(layer, task, limit=2**10)
    check(answer)
    if answer.has is not None and answer.needed is not None and answer.has < answer.needed:
        assert answer.verdict in ("undecided", "does not apply")


def test_p_bit_layers_that_solve_the_task_are_allowed() -> None:
    answer = refute(sign_key_layer(10, 2, 1, 10, keys=200), QSA(tokens=10, sparsity=2, dim=1))
    check(answer)
    assert answer.verdict == "allowed"


# -- Match3 -------------------------------------------------------------------------------------------------


def labels(x: list[int], modulus: int) -> np.ndarray:
    present = set(x)
    return np.array([any((-a - b) % modulus in present for b in present) for a in x])


class Answers(PBitAttention):
    """Says the label whatever its sums are; ``everywhere`` also where the layer is asked for codes."""

    modulus = 2
    everywhere = True

    def __call__(self, tokens: Any, queries: slice = slice(None)) -> Any:
        if not self.everywhere:
            return super().__call__(tokens, queries)
        return labels(tokens["x"].tolist(), self.modulus)[queries, None].astype(np.int64)

    def outputs(self, tokens: Any) -> np.ndarray:
        return labels(tokens["x"].tolist(), self.modulus)[:, None].astype(np.float64)


@given(n=st.integers(41, 90), everywhere=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_match3_layers_that_know_more_than_their_sums(n: int, everywhere: bool, seed: int) -> None:
    modulus = n + 1
    kind = type("Kind", (Answers,), {"modulus": modulus, "everywhere": everywhere})
    layer = as_class(kind, random_match3_layer(n, modulus, 1, 1, seed=seed))
    task = Match3(tokens=n, modulus=modulus)
    batch = task.sample(0)
    x = {"x": batch.inputs["x"][0], "position": np.arange(n)}
    assert (layer.outputs(x)[:, 0] == batch.targets[0]).all()
    answer = refute(layer, task, limit=64)
    check(answer)
    assert answer.has is not None and answer.needed is not None and answer.has < answer.needed
    assert answer.verdict == ("undecided" if everywhere else "does not apply")


@given(tokens=st.integers(3, 60), extra=st.integers(1, 30), thresholds=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_match3_layers_that_solve_the_task(tokens: int, extra: int, thresholds: bool, seed: int) -> None:
    modulus = tokens + extra
    task = Match3(tokens=tokens, modulus=modulus)
    bits = threshold_bits(tokens, modulus)
    layer = (threshold_layer if thresholds else histogram_layer)(tokens, modulus, bits)
    for kind in ("uniform", "adversarial"):
        batch = task.sample(seed, 1, kind)  # type: ignore[arg-type]
        x = batch.inputs["x"][0]
        codes = layer({"x": x, "position": np.arange(tokens)})
        for i in (0, tokens - 1):
            symbol = int(x[i])
            label = (
                match3_from_thresholds(codes[i], symbol, tokens, bits)
                if thresholds
                else match3_from_histogram(codes[i], symbol)
            )
            assert label == bool(batch.targets[0, i])
    answer = refute(layer, task)
    check(answer)
    assert answer.verdict == "allowed"


@pytest.mark.parametrize("kind", ["uniform", "adversarial"])
def test_two_embedding_dimensions_solve_match3_at_1025_tokens_and_14_bits(kind: str) -> None:
    """The counterexample to a bound on the embedding dimension: m = 2 and value width 1,027."""
    layer = threshold_layer(1025, 1026, 14)
    assert (layer.embedding_dim, layer.value_dim, layer.heads, layer.precision_bits) == (2, 1027, 1, 14)
    task = Match3(tokens=1025, modulus=1026)
    batch = task.sample(0, 2, kind)  # type: ignore[arg-type]
    for x in batch.inputs["x"]:
        means = layer({"x": x, "position": np.arange(1025)}, slice(0, 1))[0]
        right = labels(x.tolist(), 1026)
        for i in range(0, 1025, 31):
            assert match3_from_thresholds(means, int(x[i]), 1025, 14) == right[i]
    value = bounds.get("match3-protocol").evaluate(tokens=1025, precision_bits=14)
    assert (value.value, value.unit) == (13, "value width of a head (d_v)")
    assert layer.value_dim >= 13 > layer.embedding_dim
    assert refute(layer, task).verdict == "allowed"
