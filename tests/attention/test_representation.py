"""What theory says that the operators can represent: explicit weights, run through them, solve the tasks."""

from __future__ import annotations

import pytest
import torch

from headcount import attention, constructions
from headcount.attention.kernels import build

FLOAT64 = torch.float64


@pytest.mark.parametrize("kind", ["uniform", "balanced", "adversarial"])
@pytest.mark.parametrize(("name", "order", "tokens"), [("match2", 2, 24), ("match-s", 3, 16), ("match-s", 4, 9)])
@pytest.mark.parametrize("path", ["torch", "auto"])
def test_match_weights_solve_match(name: str, order: int, tokens: int, kind: str, path: str) -> None:
    """The weights of ``constructions`` on our operators against the tasks' exact solver, every token of each input.

    Match2 runs as pairwise attention, Match3 as third order. One blank token, all zeros, is attended to as well.
    """
    options = {} if name == "match2" else {"order": order}
    built = constructions.build(name, tokens=tokens, **options)
    module = built.module
    batch = built.task.sample(seed=order, count=16, kind=kind)
    (phi,) = module.angles(*module.arguments(batch))
    keyed = torch.cat([phi, torch.zeros_like(phi[:, :1])], dim=1)
    unit = module.unit
    # Weights (heads, m, e) and (heads, s - 1, m, e): heads are the operators' second axis.
    q = phi[:, None] @ unit.w_q
    ks, vs = ([keyed[:, None] @ w for w in weights.unbind(1)] for weights in (unit.w_k, unit.w_v))
    with build.use(path), torch.no_grad():
        if order == 2:
            out = attention.pairwise(q, ks[0], vs[0], scale=1.0)
        elif order == 3:
            out = attention.third_order(q, *ks, *vs, scale=1.0)
        else:
            out = attention.order_s(q, ks, vs, scale=1.0)
        # The construction's own attention unit is a second, independent implementation.
        torch.testing.assert_close(out.sum(1), unit(phi, keyed), rtol=0, atol=1e-9)
    found = out.sum(1)[..., 0].numpy()
    score = built.task.score(found, batch, built.certificate.epsilon)
    assert score.checked == 16 * tokens
    assert score.wrong == 0
    assert 0 < batch.targets.sum() < batch.targets.size  # both answers occur


def test_tree_chain_composes_functions() -> None:
    """With sharp logits the chain (0, 1) looks up f and then g: node 1 finds f(i), node 2 finds g at f(i)."""
    tokens = 6
    f, g = torch.tensor([3, 0, 5, 1, 1, 2]), torch.tensor([2, 4, 1, 0, 5, 3])
    eye = torch.eye(tokens, dtype=FLOAT64)
    # k1[j] is both the key that the query f(i) must find and the query that looks for g(j).
    q = torch.cat([eye[f], torch.zeros(tokens, tokens)], 1)
    k1 = torch.cat([eye, eye[g]], 1)
    k2 = torch.cat([torch.zeros(tokens, tokens), eye], 1)
    ones = torch.ones(tokens, 1, dtype=FLOAT64)
    values = torch.arange(tokens, dtype=FLOAT64)[:, None]
    out = attention.tree(
        *(q[None, None],),
        [k1[None, None], k2[None, None]],
        [ones[None, None], values[None, None]],
        [0, 1],
        scale=80.0,
    )
    torch.testing.assert_close(out[0, 0, :, 0], g[f].double(), rtol=1e-9, atol=1e-9)
