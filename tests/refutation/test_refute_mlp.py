"""Nets that are too narrow are refuted every time, wide enough ones never; witnesses are re-measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headcount import refute, tasks
from headcount.core.errors import HeadcountError
from headcount.refutation.mlp import best_subset, default_encode
from headcount.refutation.samples import random_mlp
from headcount.refutation.witness import Refutation
from headcount.tasks.qsa import QSA


def qsa(n: int, q: int, d: int) -> QSA:
    return QSA(tokens=n, sparsity=q, dim=d)


def check(answer: Refutation, net: nn.Module, q: int) -> None:
    """The witness, measured again from scratch: model input by the task, targets by a plain mean."""
    witness = answer.witness
    assert witness is not None
    outputs, targets = [], []
    for inputs in (witness.first, witness.second):
        z, y = inputs["z"].astype(np.float64), inputs["y"]
        assert np.linalg.norm(z, axis=1).max() <= 1 + 1e-6
        assert all(len(set(row)) == q for row in y.tolist())
        n, d = z.shape
        position = np.arange(n)[:, None]
        x = torch.from_numpy(np.concatenate([z, y, position], axis=1)).to(next(net.parameters()).dtype)
        with torch.no_grad():
            outputs.append(net(x.flatten()[None]).double().numpy().reshape(n, d)[witness.token])
        targets.append(z[y[witness.token]].mean(0))
    output_distance = np.linalg.norm(outputs[0] - outputs[1])
    target_distance = np.linalg.norm(targets[0] - targets[1])
    assert output_distance == pytest.approx(witness.output_distance, abs=1e-4)
    assert target_distance == pytest.approx(witness.target_distance, abs=1e-6)
    assert target_distance >= (2 if q == 1 else 1 / q) - 1e-5
    assert output_distance < 0.01 * target_distance


@given(st.integers(2, 7), st.integers(1, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_random_nets_below_n_d_are_refuted_and_above_not(n: int, d: int, data: st.DataObject) -> None:
    q = data.draw(st.integers(1, n - 1))
    narrow = data.draw(st.integers(1, n * d - 1))
    depth = data.draw(st.integers(1, 3))
    activation = data.draw(st.sampled_from(["ReLU", "Tanh", "GELU"]))
    seed = data.draw(st.integers(0, 99))
    inputs, outputs = n * (d + q + 1), n * d
    net = random_mlp([inputs, narrow, *[8] * (depth - 1), outputs], activation, seed)
    answer = refute(net, qsa(n, q, d))
    assert answer.witness_found and answer.impossible
    assert (answer.needed, answer.has) == (n * d, narrow)
    check(answer, net, q)
    wide = random_mlp([inputs, n * d, *[8] * (depth - 1), outputs], activation, seed)
    answer = refute(wide, qsa(n, q, d))
    assert not answer.witness_found and not answer.impossible
    assert answer.reason.startswith("no witness from this bound")


def train(width: int, n: int, d: int, steps: int = 300) -> nn.Sequential:
    """Adam on the squared error of q = 1 averaging."""
    task = qsa(n, 1, d)
    torch.manual_seed(width)
    net = nn.Sequential(nn.Linear(n * (d + 2), width), nn.ReLU(), nn.Linear(width, n * d))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    rng = np.random.default_rng(width)
    for _ in range(steps):
        batch = task.sample(rng, 64)
        x = torch.from_numpy(task.model_input(batch)).flatten(1)
        loss = (net(x) - torch.from_numpy(batch.targets).float().flatten(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("width", [3, 8, 14, 15])
def test_trained_nets_below_n_d_are_refuted(width: int) -> None:
    net = train(width, 8, 2)
    answer = refute(net, qsa(8, 1, 2))
    assert answer.witness_found and answer.has == width and answer.needed == 16
    check(answer, net, 1)
    assert answer.witness is not None and answer.witness.error > 0.99


@pytest.mark.parametrize("width", [16, 17, 40])
def test_trained_nets_at_n_d_are_not(width: int) -> None:
    answer = refute(train(width, 8, 2), qsa(8, 1, 2))
    assert not answer.witness_found and answer.has >= answer.needed


def test_a_wide_layer_of_low_rank_is_refuted_by_a_true_witness() -> None:
    net = random_mlp([6 * 5, 40, 18], seed=3)
    linear = net[0]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():  # token 2's second coordinate is ignored
        linear.weight[:, 2 * 5 + 1] = 0
    answer = refute(net, qsa(6, 1, 3))
    assert answer.witness_found and answer.has == 17
    check(answer, net, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("rank", [1, 11, 17])
def test_a_wide_first_layer_that_is_a_product_of_narrow_factors_is_refuted(
    rank: int, q: int, dtype: torch.dtype
) -> None:
    """300 units, rank below N d' = 18: rounding the product adds to the rank, and the bound holds all the same."""
    features = 6 * (3 + q + 1)
    net = random_mlp([features, 300, 18], seed=rank, first_rank=rank).to(dtype)
    linear = net[0]
    assert isinstance(linear, nn.Linear)
    if dtype == torch.float64:  # a product that is rounded to float64
        torch.manual_seed(rank)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(300, rank).double() @ torch.randn(rank, features).double() / 20)
    on_z = linear.weight.detach().double().view(300, 6, -1)[:, :, :3].flatten(1)
    assert np.linalg.matrix_rank(on_z.numpy(), tol=1e-18) > rank  # by rounding alone
    answer = refute(net, qsa(6, q, 3))
    assert answer.witness_found and answer.impossible and answer.verdict == "witness"
    assert (answer.has, answer.needed, answer.unit) == (rank, 18, "rank of the first layer on z")
    assert "300 units" in answer.reason and f"rank {rank} below 18" in answer.reason
    check(answer, net, q)


def test_a_narrow_first_layer_is_counted_by_its_rank() -> None:
    net = random_mlp([6 * 5, 12, 18], seed=0, first_rank=4)
    answer = refute(net, qsa(6, 1, 3))
    assert answer.witness_found and answer.has == 4  # not its 12 units
    check(answer, net, 1)


def test_small_singular_values_that_a_net_uses_count() -> None:
    """Two coordinates of z come 2^-40 as large, far below float32 rounding of the rest; the readout undoes it.

    Every token gets the sum of all z, so each direction of z changes the output.
    """
    net = nn.Sequential(nn.Linear(4 * 3, 4, bias=False), nn.Identity(), nn.Linear(4, 4, bias=False))
    scale = torch.tensor([1.0, 2.0**-40, 1.0, 2.0**-40])
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[torch.arange(4), 3 * torch.arange(4)] = scale
        net[2].weight.copy_((1 / scale).expand(4, 4))
    answer = refute(net, qsa(4, 1, 1))
    assert answer.verdict == "allowed" and answer.has == answer.needed == 4
    with torch.no_grad():  # where the readout does not use them, the witness is true
        net[2].weight.fill_(1)
    answer = refute(net, qsa(4, 1, 1))
    assert answer.verdict == "witness" and answer.has == 2
    check(answer, net, 1)


def test_a_path_around_the_first_layer_gives_no_false_witness() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.out = nn.Linear(6 * 4, 3), nn.Linear(3, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = x.view(-1, 6, 4)[:, :, :2].flatten(1)
            return self.out(torch.relu(self.narrow(x))) + z

    answer = refute(Residual(), qsa(6, 1, 2))
    assert not answer.witness_found and not answer.impossible and answer.verdict == "does not apply"
    assert "another path carries z" in answer.reason and "this bound does not apply" in answer.reason
    assert "sees X through it alone" in str(answer.failing_hypothesis)
    assert (answer.has, answer.needed) == (3, 12)


def test_a_net_that_does_not_see_z_linearly_is_left_alone() -> None:
    net = nn.Sequential(nn.Tanh(), nn.Linear(6 * 4, 3), nn.Linear(3, 12))
    answer = refute(net, qsa(6, 1, 2))
    assert not answer.witness_found and not answer.impossible and answer.verdict == "does not apply"
    assert "does not see z linearly" in answer.reason and answer.has is None and answer.needed is None


def test_the_mean_of_all_tokens_is_outside_the_bound() -> None:
    answer = refute(random_mlp([4 * 6, 2, 4]), qsa(4, 4, 1))
    assert answer.verdict == "does not apply" and answer.failing_hypothesis == "q < N"
    assert refute(random_mlp([3, 1, 1]), qsa(1, 1, 1)).verdict == "allowed"  # q = N = 1: rank d' is needed


def test_a_layer_on_each_token_sees_every_z() -> None:
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    answer = refute(net, qsa(6, 1, 2))
    assert not answer.witness_found and answer.has == 12
    narrow = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2))
    answer = refute(narrow, qsa(6, 1, 2))
    assert answer.witness_found and answer.has == 6


def test_float64_and_flattening_nets_work_and_modes_are_put_back() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 12)).double()
    net.train()
    net[2].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    answer = refute(net, qsa(6, 1, 2))
    assert answer.witness is not None and answer.witness.output_distance < 1e-12
    assert [module.training for module in net] == [True, True, False, True, True]
    assert all((net.state_dict()[name] == tensor).all() for name, tensor in before.items())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert torch.is_grad_enabled()


def test_an_encoder_of_one_s_own() -> None:
    """One-hot sets instead of indices."""
    net = random_mlp([6 * 2 + 36, 11, 12], seed=1)

    def encode(inputs: dict[str, np.ndarray]) -> torch.Tensor:
        hot = np.zeros((len(inputs["y"]), 6, 6))
        np.put_along_axis(hot, inputs["y"], 1, axis=2)
        x = np.concatenate([inputs["z"].reshape(len(hot), -1), hot.reshape(len(hot), -1)], axis=1)
        return torch.from_numpy(x).float()

    answer = refute(net, qsa(6, 1, 2), encode=encode)
    assert answer.witness_found and answer.has == 11
    with pytest.raises(HeadcountError, match="takes 48 numbers"):
        refute(net, qsa(6, 1, 2))


def test_nets_without_numbers_are_no_witness() -> None:
    net = random_mlp([24, 5, 12])
    with torch.no_grad():
        net[2].bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    answer = refute(net, qsa(6, 1, 2))
    assert not answer.witness_found and not answer.impossible and answer.verdict == "undecided"


def test_the_default_encoding_is_the_task_s_own() -> None:
    task = qsa(7, 3, 2)
    batch = task.sample(0, 4)
    flat = default_encode(random_mlp([7 * 6, 3]), task)(batch.inputs)
    rows = default_encode(random_mlp([6, 3]), task)(batch.inputs)
    assert (rows.numpy() == task.model_input(batch)).all()
    assert (flat.numpy() == task.model_input(batch).reshape(4, -1)).all()


def test_averaging_everything_is_outside_the_bound() -> None:
    answer = refute(random_mlp([5 * 8, 2, 10]), qsa(5, 5, 2))
    assert not answer.witness_found and not answer.impossible and "q = N" in answer.reason


@pytest.mark.parametrize("q", [1, 2, 3, 5])
def test_best_subset_keeps_its_promise(q: int) -> None:
    rng = np.random.default_rng(q)
    for _ in range(100):
        blocks = rng.standard_normal((6, 2))
        blocks[1:] -= rng.random() * blocks[:1] / q  # near cancellation
        y, length = best_subset(blocks, q)
        assert len(set(y.tolist())) == q
        assert length == pytest.approx(np.linalg.norm(blocks[y].sum(0)))
        assert length >= np.linalg.norm(blocks, axis=1).max() / 2 - 1e-12


def test_models_that_are_no_net() -> None:
    task = tasks.get("qsa", tokens=6, sparsity=1, dim=2)
    with pytest.raises(HeadcountError, match="has no torch"):
        refute(nn.ReLU(), task)
    with pytest.raises(HeadcountError, match="cannot be refuted"):
        refute(object(), task)
    with pytest.raises(HeadcountError, match="match2"):
        refute(nn.Linear(2, 2), tasks.get("match2"))
    with pytest.raises(HeadcountError, match="outputs of shape"):
        refute(random_mlp([24, 5, 7]), task)
