"""Refute a fully connected net on qSA: a direction of z that its first layer does not see.

The argument is that of ``qsa_mlp``. Here it is run: the columns of the first linear layer that multiply z
are measured by feeding basis vectors (so it does not matter how the net arranges its input), a kernel
vector delta comes from an orthogonal basis of their row space, and z = delta, z = -delta go through the
whole net.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headcount.bounds.qsa_mlp import UNITS
from headcount.bounds.witness import Inputs, Refutation, Run, measure, no_witness
from headcount.errors import HeadcountError
from headcount.seeds import numpy_generator
from headcount.tasks.qsa import QSA

Encode = Callable[[Inputs], Tensor]
"""The model's input from a batch of qSA inputs ``z`` (count, N, d') and ``y`` (count, N, q)."""

_BATCH = 256  # basis vectors fed at once


def first_linear(model: nn.Module) -> nn.Linear:
    """The first linear layer in the order of the modules."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return module
    raise HeadcountError(f"{type(model).__name__} has no torch.nn.Linear", fix="give a fully connected net on vec(X)")


def default_encode(model: nn.Module, task: QSA) -> Encode:
    """vec(X), or the tokens (z; y; i) as rows, whichever the first linear layer takes."""
    weight = first_linear(model).weight
    features = task.dim + task.sparsity + 1
    if weight.shape[1] not in (features, features * task.tokens):
        raise HeadcountError(
            f"the first linear layer takes {weight.shape[1]} numbers, not N (d' + q + 1) = {features * task.tokens}",
            fix="build it for this task, or pass encode=, which maps z and y to the net's input",
        )

    def encode(inputs: Inputs) -> Tensor:
        z, y = (torch.from_numpy(np.ascontiguousarray(inputs[name])).to(weight) for name in ("z", "y"))
        position = torch.arange(task.tokens).to(weight)[None, :, None].expand(len(z), -1, 1)
        rows = torch.cat([z, y, position], dim=-1)
        return rows if weight.shape[1] == features else rows.flatten(1)

    return encode


def make_run(model: nn.Module, task: QSA, encode: Encode) -> Run:
    """The net on batches of qSA inputs, in evaluation mode, (count, N, d')."""

    def run(inputs: Inputs) -> NDArray[np.float64]:
        with evaluation(model):
            outputs = model(encode(inputs))
        if outputs.numel() != len(inputs["z"]) * task.tokens * task.dim:
            raise HeadcountError(
                f"the net gives outputs of shape {tuple(outputs.shape)}",
                fix=f"let it give N d' = {task.tokens * task.dim} numbers a sequence",
            )
        return outputs.reshape(-1, task.tokens, task.dim).double().cpu().numpy()

    return run


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def first_activations(model: nn.Module, x: Tensor) -> Tensor:
    """What the first linear layer that runs makes of x, without its bias, (count, outputs) in float64."""
    seen: list[Tensor] = []

    def remember(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not seen:
            assert isinstance(module, nn.Linear)
            seen.append((args[0].double() @ module.weight.double().T).flatten(1))

    hooks = [m.register_forward_pre_hook(remember) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        with evaluation(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise HeadcountError(f"no torch.nn.Linear of {type(model).__name__} ran")
    return seen[0]


def first_layer_on_z(model: nn.Module, task: QSA, encode: Encode) -> Tensor | None:
    """The first layer as a matrix (outputs, N d') on vec(z); ``None`` if it does not see z linearly."""
    n, d = task.tokens, task.dim
    y = np.broadcast_to(np.arange(task.sparsity), (1, n, task.sparsity))

    def activations(z: NDArray[np.float64]) -> Tensor:
        z = z.reshape(-1, n, d)
        return first_activations(model, encode({"z": z, "y": np.repeat(y, len(z), axis=0)}))

    origin = activations(np.zeros((1, n * d)))
    basis = np.eye(n * d)
    rows = [activations(basis[start : start + _BATCH]) - origin for start in range(0, n * d, _BATCH)]
    matrix = torch.cat(rows).T
    probe = numpy_generator(0, "bounds", "linearity probe").uniform(-1, 1, n * d) / math.sqrt(d)
    seen = (activations(probe[None]) - origin)[0]
    expected = matrix @ torch.from_numpy(probe).to(matrix)
    # The input may have been rounded to the net's own dtype on the way: a few units of float32 or half.
    slack = 100 * torch.finfo(first_linear(model).weight.dtype).eps
    scale = matrix.abs().sum(1).max() + origin.abs().max()
    return matrix if bool((seen - expected).abs().max() <= slack * scale) else None


def kernel_directions(matrix: Tensor, tries: int, seed: int) -> tuple[NDArray[np.float64], int]:
    """Vectors of the kernel, (up to ``tries``, N d'), and the rank, at most the number of rows.

    A matrix of N d' rows or more has a kernel where singular values vanish up to float64 rounding.
    """
    width, n = matrix.shape
    if width < n:
        rows = torch.linalg.qr(matrix.T)[0]  # an orthonormal basis of a space that holds all rows
        noise = torch.from_numpy(numpy_generator(seed, "bounds", "kernel").standard_normal((n, tries)))
        inside = noise.to(matrix)
        for _ in range(2):  # the second pass removes the rounding of the first
            inside = inside - rows @ (rows.T @ inside)
        return inside.T.cpu().numpy(), width
    _, sizes, directions = torch.linalg.svd(matrix, full_matrices=False)
    dead = sizes <= sizes[0] * n * torch.finfo(torch.float64).eps
    return directions[dead][:tries].cpu().numpy(), n - int(dead.sum())


def best_subset(blocks: NDArray[np.float64], q: int) -> tuple[NDArray[np.int64], float]:
    """A q-subset of the blocks (N, d') whose sum is long, and that length.

    In a direction e the longest sums are those of the q largest and of the q smallest <block, e>; starting
    from e the largest block, and then turning e to the sum found, the length only grows. Starting there it
    is at least half of the largest block (``qsa_mlp.full_width_any_sparsity``).
    """
    e = blocks[np.linalg.norm(blocks, axis=1).argmax()]
    best: tuple[NDArray[np.int64], float] = (np.arange(q), -1.0)
    for _ in range(20):
        order = np.argsort(blocks @ e)
        y = max((order[:q], order[len(order) - q :]), key=lambda s: float(np.linalg.norm(blocks[s].sum(0))))
        total = blocks[y].sum(0)
        length = float(np.linalg.norm(total))
        if length <= best[1]:
            break
        best, e = (np.sort(y), length), total
    return best


def refute_mlp(model: nn.Module, task: QSA, encode: Encode | None = None, seed: int = 0, tries: int = 8) -> Refutation:
    """Two inputs between which a net with a first layer of rank below N d' does not tell.

    The bound is ``qsa-mlp-q1`` or ``qsa-mlp-any-q``; neither applies for q = N, where all targets are the
    mean of all z, which d' units hold.
    """
    n, d, q = task.tokens, task.dim, task.sparsity
    bound = "qsa-mlp-q1" if q == 1 else "qsa-mlp-any-q"
    needed = n * d
    encode = encode or default_encode(model, task)
    matrix = first_layer_on_z(model, task, encode)
    if q == n or matrix is None:
        why = "q = N" if q == n else "the first linear layer does not see z linearly"
        reason = f"no witness from this bound ({bound}): it does not apply, {why}"
        return Refutation(task, bound, 0, 0, UNITS, reason)
    directions, has = kernel_directions(matrix, tries, seed)
    if not len(directions):
        return no_witness(task, bound, needed, has, UNITS)
    choices = []
    for direction in directions:
        blocks = direction.reshape(n, d)
        blocks = blocks / np.linalg.norm(blocks, axis=1).max()
        choices.append((*best_subset(blocks, q), blocks))
    y, _, blocks = max(choices, key=lambda choice: choice[1])
    dtype = np.float64 if first_linear(model).weight.dtype == torch.float64 else np.float32
    z, sets = blocks.astype(dtype), np.tile(y, (n, 1))
    witness = measure(task, make_run(model, task, encode), {"z": z, "y": sets}, {"z": -z, "y": sets}, 0)
    if not witness.holds:
        return no_witness(task, bound, needed, has, UNITS, "yet the outputs differ: another path carries z")
    reason = (
        f"the first layer has rank {has} below {needed} on z: z and -z, {witness.target_distance:.3g} apart "
        f"after averaging, give outputs {witness.output_distance:.2g} apart"
    )
    return Refutation(task, bound, needed, has, UNITS, reason, witness)
