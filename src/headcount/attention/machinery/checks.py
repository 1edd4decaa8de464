"""Input validation of the operators: every error message states the shapes and a fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headcount.core.errors import HeadcountError

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def sizes(tensors: Mapping[str, Tensor]) -> str:
    """``q (2, 4, 8, 16), k (2, 2, 8, 16)``: names and shapes for a message."""
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())


def check_common(
    operator: str,
    tensors: Mapping[str, Tensor],
    *,
    axes: Sequence[str],
    dropout_p: float,
    check_finite: bool,
) -> None:
    """Check rank, dtype, device and content of every tensor; ``axes`` names the axes.

    Raises HeadcountError for a rank other than ``len(axes)``, an empty axis, a dtype that is not one of
    float64, float32 and bfloat16 (or differs between tensors), different devices, dropout, and, when
    ``check_finite`` is set, an infinite or NaN entry.
    """
    if dropout_p != 0.0:
        raise HeadcountError(
            f"{operator}: dropout of attention weights (dropout_p={dropout_p}) is not offered",
            fix="leave dropout_p at 0 and drop out the layer's output instead",
        )
    for name, tensor in tensors.items():
        if tensor.dim() != len(axes):
            raise HeadcountError(
                f"{operator}: {name} {tuple(tensor.shape)} has {tensor.dim()} axes, not {len(axes)}",
                fix=f"pass ({', '.join(axes)})",
            )
        if 0 in tensor.shape:
            raise HeadcountError(f"{operator}: {name} {tuple(tensor.shape)} is empty", fix="give every axis at least 1")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        named = ", ".join(f"{name} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors.items())
        raise HeadcountError(
            f"{operator}: dtypes {named}", fix="use one of float64, float32 and bfloat16 for every tensor"
        )
    if len({tensor.device for tensor in tensors.values()}) > 1:
        named = ", ".join(f"{name} {tensor.device}" for name, tensor in tensors.items())
        raise HeadcountError(f"{operator}: devices {named}", fix="move every tensor to one device")
    if check_finite:
        for name, tensor in tensors.items():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise HeadcountError(
                    f"{operator}: {bad} of the {tensor.numel()} entries of {name} {tuple(tensor.shape)} "
                    "are infinite or NaN",
                    fix="mend what made them; check_finite=False lets them through",
                )


def check_streams(
    operator: str,
    queries: Mapping[str, Tensor],
    keys: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    shown: Mapping[str, Tensor] | None = None,
) -> None:
    """Check that batch and token counts agree and that the KV heads divide the query heads.

    ``shown``: the tensors as the user passed them, if they differ.
    """
    everything = {**queries, **keys, **values} if shown is None else shown
    first_query, first_key = next(iter(queries.values())), next(iter(keys.values()))
    first_value = next(iter(values.values()))
    wrong = (
        any(t.shape != first_query.shape for t in queries.values())
        or any(t.shape != first_key.shape for t in keys.values())
        or any(t.shape != first_value.shape for t in values.values())
        or first_key.shape[0] != first_query.shape[0]
        or first_key.shape[-1] != first_query.shape[-1]
        or first_key.shape[:-1] != first_value.shape[:-1]
    )
    if wrong:
        raise HeadcountError(
            f"{operator}: shapes do not fit together: {sizes(everything)}",
            fix="queries share one shape, keys one, values one; batch and tokens agree; "
            "keys have the queries' dim; values have the keys' heads",
        )
    heads, kv_heads = first_query.shape[1], first_key.shape[1]
    if heads % kv_heads:
        raise HeadcountError(
            f"{operator}: {heads} query heads are not a multiple of {kv_heads} key-value heads",
            fix="make the number of query heads a multiple",
        )


def check_window(operator: str, window: int | Sequence[int] | None, sides: int) -> tuple[int, ...] | None:
    """The window as one length per key set, each at least 1."""
    if window is None:
        return None
    lengths = (window,) if isinstance(window, int) else tuple(window)
    if len(lengths) != sides:
        raise HeadcountError(
            f"{operator}: window {window} has {len(lengths)} lengths for {sides} key sets",
            fix=f"give {sides}, one for each key set",
        )
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise HeadcountError(
                f"{operator}: window {window} is below 1 or no integer",
                fix="a window counts positions, the query's own included: use 1 or more",
            )
    return lengths


def check_limit(operator: str, count: int, limit: int, what: str, fix: str) -> None:
    """Raise HeadcountError if an explicit sum has more than ``limit`` logits."""
    if count > limit:
        raise HeadcountError(f"{operator}: {what} means {count:,} logits, more than {limit:,}", fix=fix)
