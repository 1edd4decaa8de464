"""Tree (poly) attention: logits are sums over the edges of a tree; computed exactly by message passing in O(N^2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headcount.attention.machinery.layout import Layout, prepare
from headcount.attention.operators.pairwise import biased
from headcount.core.errors import HeadcountError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def tree(
    q: Float[Tensor, "batch heads queries dim"],
    ks: Sequence[Float[Tensor, "batch kv_heads tokens dim"]],
    vs: Sequence[Float[Tensor, "batch kv_heads tokens v_dim"]],
    parents: Sequence[int],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] | None = None,
    key_padding_mask: Bool[Tensor, "batch tokens"] | None = None,
    dropout_p: float = 0.0,
    check_finite: bool = False,
) -> Float[Tensor, "batch heads queries v_dim"]:
    """Attention over tuples whose logit is a sum over the edges of a tree (poly-attention, arXiv 2602.02422).

    Node 0 is the query; node s = 1, 2, .. is a child of node p(s) = ``parents[s - 1]`` < s and ranges over all
    tokens T_s:

        out_i = sum_T softmax_T(scale sum_s <k_p(s)[T_p(s)], k_s[T_s]>) prod_s v_s[T_s],   k_0 = q, T_0 = i.

    The softmax factorises over the edges. A node's message to its parent is ordinary attention over the node's
    tokens, where the log-sum-exps of the messages from its children are added to the logits as a key bias and the
    values are multiplied by those messages; only log-sum-exps and averages are passed, so nothing overflows.
    O(N^2 dim) work per edge.

    parents [0, 0]: two independent attentions, multiplied. [0, 1]: a chain, function composition. scale:
    1/sqrt(dim) if None, on every edge. causal, window (one length per node): along the edges, a node's
    token is no later than its parent's and among the last w up to it. key_padding_mask: True where a token is
    padding. Queries are the last positions when there are fewer of them than keys. A query with nothing to
    attend to gives zeros.

    Raises HeadcountError for parents that do not form a tree, for shapes, dtypes or windows that do not fit, and
    for dropout_p other than 0.

    >>> import torch
    >>> q, k, v = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0], [3.0]]]])
    >>> tree(q, [k, k], [v, v], [0, 1])
    tensor([[[[4.]]]])
    """
    nodes = len(ks)
    if nodes == 0 or len(vs) != nodes or len(parents) != nodes:
        raise HeadcountError(
            f"tree: {nodes} key sets, {len(vs)} value sets and {len(parents)} parents",
            fix="pass equally many of each, at least one",
        )
    if any(not 0 <= parent < node for node, parent in enumerate(parents, start=1)):
        raise HeadcountError(
            f"tree: parents {list(parents)} make no tree",
            fix="number the nodes from 1 so that parents[s - 1] is less than s; 0 is the query",
        )
    keys = {f"ks[{index}]": key for index, key in enumerate(ks)}
    values = {f"vs[{index}]": value for index, value in enumerate(vs)}
    options: dict[str, Any] = {"causal": causal, "key_padding_mask": key_padding_mask}
    from_query = prepare(
        "tree",
        {"q": q},
        keys,
        values,
        scale=scale,
        window=window,
        dropout_p=dropout_p,
        check_finite=check_finite,
        **options,
    )
    # Edges between keys: the queries are the keys of the parent, at every position.
    from_key = prepare(
        "tree",
        {"key": ks[0]},
        keys,
        values,
        scale=from_query.scale,
        window=window,
        dropout_p=0.0,
        check_finite=False,
        **options,
    )
    mixed: dict[int, Tensor] = {}
    bias: dict[int, Tensor] = {}
    for node in range(nodes, 0, -1):
        parent = parents[node - 1]
        layout = from_query if parent == 0 else from_key
        above = q if parent == 0 else ks[parent - 1]
        value = vs[node - 1] if node not in mixed else vs[node - 1] * mixed.pop(node)
        out, lse = _message(layout, node - 1, above, ks[node - 1], bias.pop(node, None), value)
        mixed[parent] = out if parent not in mixed else mixed[parent] * out
        bias[parent] = lse if parent not in bias else bias[parent] + lse
    return mixed[0].to(q.dtype)


def _message(
    layout: Layout, side: int, above: Tensor, key: Tensor, bias: Tensor | None, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Average (batch, heads, queries, v_dim) and log-sum-exp (batch, heads, queries) over a node's tokens."""
    added = key.new_zeros(key.shape[:-1]) if bias is None else bias
    out, lse = biased(
        layout.rows(above),
        layout.keys(key),
        layout.keys(added[..., None])[..., 0],
        layout.keys(value),
        layout.ranges[:, side : side + 1].contiguous(),
        layout.scale,
    )
    return layout.unfold(out), layout.unfold(lse[..., None])[..., 0]
