"""Turns a forward and a backward rule into an operator that works with autograd, torch.compile and torch.func.

Each rule becomes a custom op with a fake kernel (torch.compile traces shapes through it without tracing the
implementation) and a vmap rule (the mapped axis is merged into the groups). Two autograd functions connect them; these
are used instead of ``register_autograd`` because only they work under torch.func.grad. The second derivative
differentiates the operator's explicit form, which materialises all logits, so it is limited to small sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from headcount.attention.machinery.checks import check_limit

SECOND_LIMIT = 2**22
"""Maximum number of logits in a second derivative; at the peak, a dozen float64 copies of them exist."""

Tensors = tuple[Tensor, ...]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and logits: float32 for bfloat16, else the input dtype."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def operator(
    name: str,
    names: Sequence[str],
    *,
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., Tensors],
    explicit: Callable[..., tuple[Tensor, Tensor]],
    logits: Callable[..., int],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Build ``apply(*tensors, ranges, scale) -> (out, lse)``, registered as ``headcount::name``.

    names: the tensors, starting with one whose rows are the queries and ending with a value; all share axis 0.
    forward(*tensors, ranges, scale) -> (out, lse), both in the accumulation dtype, so that the backward
    does not start from a rounded output; lse (log-sum-exp of each row's logits) is -inf on empty rows.
    backward(grad_out, grad_lse, *tensors, out, lse, ranges, scale) -> one gradient for each tensor.
    explicit: same as forward, in float64 and twice differentiable by plain autograd.
    logits(*tensors) -> number of logits that explicit materialises.
    """
    count = len(names)
    arguments = ", ".join(f"Tensor {tensor}" for tensor in names)

    forward_op = torch.library.custom_op(
        f"headcount::{name}",
        lambda *args: forward(*args),
        mutates_args=(),
        schema=f"({arguments}, Tensor ranges, float scale) -> (Tensor, Tensor)",
    )
    backward_op = torch.library.custom_op(
        f"headcount::{name}_backward",
        lambda *args: tuple(grad.contiguous() for grad in backward(*args)),
        mutates_args=(),
        schema=f"(Tensor grad_out, Tensor grad_lse, {arguments}, Tensor out, Tensor lse, Tensor ranges, "
        f"float scale) -> ({', '.join('Tensor' for _ in names)})",
    )

    @forward_op.register_fake
    def _(*args: Any) -> tuple[Tensor, Tensor]:
        query, value = args[0], args[count - 1]
        wide = accumulation_dtype(query.dtype)
        out = query.new_empty((*query.shape[:-1], value.shape[-1]), dtype=wide)
        return out, query.new_empty(query.shape[:-1], dtype=wide)

    @backward_op.register_fake
    def _(*args: Any) -> Tensors:
        return tuple(tensor.new_empty(tensor.shape) for tensor in args[2 : 2 + count])

    for op in (forward_op, backward_op):
        op.register_vmap(_vmap_rule(op))
    # torch.compile can trace the registered overloads, but not the Python objects that registered them.
    run_forward = getattr(torch.ops.headcount, name).default
    run_backward = getattr(torch.ops.headcount, f"{name}_backward").default

    class Forward(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return run_forward(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.scale = inputs[-1]
            ctx.save_for_backward(*inputs[:-1], *output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            *tensors, ranges, out, lse = ctx.saved_tensors
            # Compiled graphs are differentiated only once, and tracing does not support a nested function.
            run = run_backward if torch.compiler.is_compiling() else Backward.apply
            return (*run(*grads, *tensors, out, lse, ranges, ctx.scale), None, None)

    class Backward(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return run_backward(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.scale = inputs[-1]
            ctx.save_for_backward(*inputs[: 2 + count], inputs[-2])

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            *inputs, ranges = ctx.saved_tensors
            check_limit(
                f"{name}: second derivative",
                logits(*inputs[2:]),
                SECOND_LIMIT,
                f"{names[0]} {tuple(inputs[2].shape)}, {names[1]} {tuple(inputs[3].shape)}",
                "take second derivatives at fewer tokens, heads or batch entries",
            )

            def gradients(grad_out: Tensor, grad_lse: Tensor, *tensors: Tensor) -> Any:
                pulled = torch.func.vjp(lambda *leaves: explicit(*leaves, ranges, ctx.scale), *tensors)
                return pulled[1]((grad_out, grad_lse))

            wide = [tensor.double() for tensor in inputs]
            pulled = torch.func.vjp(gradients, *wide)
            input_grads = pulled[1](tuple(cotangent.double() for cotangent in cotangents))
            input_grads = tuple(grad.to(tensor.dtype) for grad, tensor in zip(input_grads, inputs, strict=True))
            # out and lse are functions of the tensors, and `input_grads` already includes the gradients
            # through them.
            return (*input_grads, None, None, None, None)

    def apply(*args: Any) -> tuple[Tensor, Tensor]:
        run: Callable[..., tuple[Tensor, Tensor]] = Forward.apply
        return run(*args)

    return apply


def _vmap_rule(op: Callable[..., Any]) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Any, *args: Any) -> Any:
        size = info.batch_size
        folded = []
        for value, axis in zip(args, in_dims, strict=True):
            if isinstance(value, Tensor):
                value = value.unsqueeze(0).expand(size, *value.shape) if axis is None else value.movedim(axis, 0)
                value = value.flatten(0, 1)
            folded.append(value)
        out = op(*folded)
        return tuple(tensor.unflatten(0, (size, -1)) for tensor in out), tuple(0 for _ in out)

    return rule


def product(sizes: Sequence[int]) -> int:
    """The product of sizes, 1 for none."""
    return math.prod(sizes)
