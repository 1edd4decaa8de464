"""Refute a fully connected net on qSA with a direction of z in the kernel of its first layer.

This applies the argument of ``qsa_mlp`` to a concrete net: the columns W_z of the first linear layer that multiply z
are measured with basis vectors as inputs (so the layout of the net's input does not matter), and the whole net is
run on z = delta and z = -delta, with delta in the kernel of W_z. The rank of W_z matters, not the
number of units: a wide layer of low rank also has a kernel.

The rank is numerical: rounding errors alone give a product of two factors, stored in float32, full rank.
Singular values below ``rank_tolerance`` count as zero. A net that does use such small singular
values gives different outputs on the pair; its rank is then computed up to float64 rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headcount.bounds.statements.qsa_mlp import RANK
from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator
from headcount.refutation.witness import Comparison, Inputs, Refutation, Run, measure
from headcount.tasks.qsa import QSA

Encode = Callable[[Inputs], Tensor]
"""The model's input from a batch of qSA inputs ``z`` (count, N, d') and ``y`` (count, N, q)."""

_BATCH = 256  # basis vectors per forward pass


def first_linear(model: nn.Module) -> nn.Linear:
    """The first linear layer in the order of the modules."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return module
    raise HeadcountError(f"{type(model).__name__} has no torch.nn.Linear", fix="give a fully connected net on vec(X)")


def default_encode(model: nn.Module, task: QSA) -> Encode:
    """vec(X), or the tokens (z; y; i) as rows, whichever matches the first linear layer."""
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
    """The function that runs the net on batches of qSA inputs in evaluation mode, with outputs (count, N, d')."""

    def run(inputs: Inputs) -> NDArray[np.float64]:
        with evaluation(model):
            outputs = model(encode(inputs))
        if outputs.numel() != len(inputs["z"]) * task.tokens * task.dim:
            raise HeadcountError(
                f"the net gives outputs of shape {tuple(outputs.shape)}",
                fix=f"let it give N d' = {task.tokens * task.dim} numbers a sequence",
            )
        rows: NDArray[np.float64] = outputs.reshape(-1, task.tokens, task.dim).double().cpu().numpy()
        return rows

    return run


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of each module is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def first_activations(model: nn.Module, x: Tensor) -> Tensor:
    """The output, without bias, of the first linear layer that runs on x: (count, outputs) in float64."""
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
    """The first layer as a matrix (outputs, N d') on vec(z); ``None`` if it does not depend linearly on z."""
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
    # The input may have been rounded to the dtype of the net: an error of a few units of float32 or half.
    slack = 100 * torch.finfo(first_linear(model).weight.dtype).eps
    scale = matrix.abs().sum(1).max() + origin.abs().max()
    return matrix if bool((seen - expected).abs().max() <= slack * scale) else None


@dataclass(frozen=True)
class Kernel:
    """The numerical kernel of a first layer on z.

    ``directions`` (count, N d') are orthonormal or, below N d' rows, normal random vectors of the kernel.
    ``rank`` counts the singular values above ``rank_tolerance``, ``exact_rank`` those above float64 rounding.
    """

    directions: NDArray[np.float64]
    rank: int
    exact_rank: int


def rank_tolerance(matrix: Tensor, dtype: torch.dtype) -> float:
    """The threshold below which a singular value of a matrix in ``dtype`` may be rounding error: 4 eps ||W||_F.

    Rounding every entry to a relative eps changes the matrix by at most eps ||W||_F in the Frobenius norm,
    and so every singular value by at most as much (Weyl); the factor 4 allows for rounding of intermediate
    sums, as in a product of two factors. The threshold is at least the rounding error of this float64 computation.

    >>> rank_tolerance(torch.eye(4), torch.float32) == 4 * 2.0**-23 * 2
    True
    """
    frobenius = float(matrix.norm())
    return max(4 * torch.finfo(dtype).eps * frobenius, max(matrix.shape) * torch.finfo(torch.float64).eps * frobenius)


def kernel_of(matrix: Tensor, dtype: torch.dtype, tries: int, seed: int) -> Kernel:
    """Up to ``tries`` directions that ``matrix`` (units, N d') maps to zero up to rounding in ``dtype``."""
    units, n = matrix.shape
    tolerance, exact = rank_tolerance(matrix, dtype), rank_tolerance(matrix, torch.float64)
    if units < n:
        rows, triangle = torch.linalg.qr(matrix.T)  # rows: an orthonormal basis of a space that contains all rows
        sizes = torch.linalg.svdvals(triangle)
        noise = torch.from_numpy(numpy_generator(seed, "bounds", "kernel").standard_normal((n, tries)))
        inside = noise.to(matrix)
        for _ in range(2):  # the second pass removes the rounding errors of the first
            inside = inside - rows @ (rows.T @ inside)
        directions = inside.T
    else:
        _, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        # A kernel up to float64 rounding is preferred; directions within the tolerance are the fallback.
        directions = right[sizes <= (exact if sizes[-1] <= exact else tolerance)].flip(0)[:tries]
    return Kernel(directions.cpu().numpy(), int((sizes > tolerance).sum()), int((sizes > exact).sum()))


def best_subset(blocks: NDArray[np.float64], q: int) -> tuple[NDArray[np.int64], float]:
    """A q-subset of the blocks (N, d') with a sum of large norm, and that norm.

    In a direction e the largest sums are those of the q largest and of the q smallest <block, e>; starting
    with the largest block as e and then replacing e by the current sum, the norm never decreases. With this start it
    is at least half the norm of the largest block (``qsa_mlp.full_rank_any_sparsity``).
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
    """Two inputs that a net whose first layer has rank below N d' on z cannot distinguish.

    The bound is ``qsa-mlp-q1`` or ``qsa-mlp-any-q``. It does not apply to a net in which z reaches the
    output by bypassing the first linear layer (a residual connection, a second input layer), nor for q = N, where
    all targets are the mean of all z, for which rank d' suffices.
    """
    n, d, q = task.tokens, task.dim, task.sparsity
    bound, needed = "qsa-mlp-q1" if q == 1 else "qsa-mlp-any-q", n * d
    encode = encode or default_encode(model, task)
    nothing_counted = Comparison(task, bound, None, None, RANK)
    if q == n and q > 1:
        return nothing_counted.fails("q < N", f"q = N = {n}, and all targets are the mean of all z")
    matrix = first_layer_on_z(model, task, encode)
    if matrix is None:
        return nothing_counted.fails("fully connected", "the first linear layer does not see z linearly")
    dtype = first_linear(model).weight.dtype
    kernel = kernel_of(matrix, dtype, tries, seed)
    compared = Comparison(task, bound, needed, kernel.rank, RANK)
    if not len(kernel.directions):
        return compared.allowed()
    choices = []
    for direction in kernel.directions:
        blocks = direction.reshape(n, d)
        blocks = blocks / np.linalg.norm(blocks, axis=1).max()
        choices.append((*best_subset(blocks, q), blocks))
    y, _, blocks = max(choices, key=lambda choice: choice[1])
    z, sets = blocks.astype(np.float64 if dtype == torch.float64 else np.float32), np.tile(y, (n, 1))
    witness = measure(task, make_run(model, task, encode), {"z": z, "y": sets}, {"z": -z, "y": sets}, 0)
    if witness.holds:
        rounding = f" up to rounding in {dtype}" if kernel.exact_rank >= needed else ""
        reason = (
            f"the first layer ({matrix.shape[0]} units) has rank {kernel.rank} below {needed} on z{rounding}: "
            f"z and -z, {witness.target_distance:.3g} apart after averaging, give outputs "
            f"{witness.output_distance:.2g} apart"
        )
        return compared.refuted(witness, reason)
    if kernel.exact_rank >= needed:
        return dataclasses.replace(compared, has=kernel.exact_rank).allowed()
    if not np.isfinite(witness.output_distance):
        return compared.undecided("the outputs on the constructed inputs are not finite")
    return compared.fails(
        "fully connected",
        f"z and -z are the same to the first layer, of rank {kernel.rank} on z, yet the outputs are "
        f"{witness.output_distance:.2g} apart: another path carries z",
    )
