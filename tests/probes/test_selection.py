"""Selection: Cover's count, degenerate keys, margins against an exact quadratic programme, heads of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_tokens
from scipy.optimize import minimize

from headcount.core.errors import HeadcountError
from headcount.core.seeds import numpy_generator, torch_generator
from headcount.pretrained.families import read_spec
from headcount.pretrained.opening.loading import OpenModel, fingerprint
from headcount.probes.selection.capacity import cover_share, draw_subsets, margin_wanted, sizes_of, subset_margins
from headcount.probes.selection.run import selection
from headcount.probes.selection.separation import best_margins, separable_exactly


def gaussian(tokens: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, dim, generator=torch_generator(seed, "keys"), dtype=torch.float64)


def dichotomies(count: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Each token in with probability 1/2; the empty and the full one are separable for sure and left out."""
    drawn = torch.rand(count, tokens, generator=torch_generator(seed, "dichotomies")) < 0.5
    assert bool(drawn.any(1).all()) and not bool(drawn.all(1).any())
    return drawn


@pytest.mark.parametrize(("tokens", "dim"), [(32, 16), (40, 20), (60, 27), (60, 31), (48, 24)])
def test_gaussian_keys_follow_covers_count(tokens: int, dim: int) -> None:
    """Within 5 percentage points; 1,000 dichotomies have a standard error of 1.6 at most."""
    margins = best_margins(gaussian(tokens, dim), dichotomies(1000, tokens))
    share = float((margins.lower > 0).double().mean())
    assert abs(share - cover_share(tokens, dim)) < 0.05


@pytest.mark.parametrize("rank", [4, 10, 15])
def test_keys_of_rank_k_separate_what_rank_k_allows(rank: int) -> None:
    """30 keys in 24 dimensions that span k of them: Cover's count for k, far below that for 24."""
    keys = gaussian(30, rank) @ gaussian(rank, 24, 1)
    share = float((best_margins(keys, dichotomies(600, 30)).lower > 0).double().mean())
    assert abs(share - cover_share(30, rank)) < 0.05
    assert share < cover_share(30, 24) - 0.3
    assert cover_share(30, 24) > 0.99


def test_the_linear_program_agrees() -> None:
    keys, subsets = gaussian(40, 19), dichotomies(60, 40)
    found = best_margins(keys, subsets)
    exact = [separable_exactly(keys, subset) for subset in subsets]
    assert 10 < sum(exact) < 50, "both answers occur"
    assert exact == (found.lower > 0).tolist()


def test_margins_are_those_of_the_exact_quadratic_programme() -> None:
    """The distance of the hulls by SLSQP; the bounds enclose it, and the query has the lower one."""
    keys = gaussian(12, 5)
    subsets = torch.zeros(6, 12, dtype=torch.bool)
    for row, size in enumerate((1, 2, 3, 1, 2, 3)):
        subsets[row, torch.from_numpy(numpy_generator(0, row).permutation(12)[:size])] = True
    found = best_margins(keys, subsets)
    for row, subset in enumerate(subsets):
        x, y = keys[subset].numpy(), keys[~subset].numpy()

        def distance(weights: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            return float(np.sum((weights[: len(x)] @ x - weights[len(x) :] @ y) ** 2))

        start = np.concatenate([np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))])
        sums = [
            {"type": "eq", "fun": lambda w, n=len(x): w[:n].sum() - 1},
            {"type": "eq", "fun": lambda w, n=len(x): w[n:].sum() - 1},
        ]
        options = {"ftol": 1e-14, "maxiter": 500}
        solved = minimize(distance, start, bounds=[(0, 1)] * 12, constraints=sums, method="SLSQP", options=options)
        exact = float(np.sqrt(solved.fun))
        assert float(found.lower[row]) <= exact + 1e-6 and float(found.upper[row]) >= exact - 1e-6
        if exact > 1e-3:
            assert float(found.lower[row]) == pytest.approx(exact, rel=0.03)
            scores = keys @ found.query[row]
            assert float(found.query[row].norm()) == pytest.approx(1.0)
            assert float(scores[subset].min() - scores[~subset].max()) == pytest.approx(float(found.lower[row]))


def test_margins_do_not_see_a_shift_and_scale_with_the_keys() -> None:
    keys, subsets = gaussian(20, 8), dichotomies(10, 20)
    one, two = best_margins(keys, subsets), best_margins(100.0 * keys + 7.0, subsets)
    torch.testing.assert_close(two.lower.clamp_min(0), 100.0 * one.lower.clamp_min(0), rtol=1e-4, atol=1e-6)
    assert float(best_margins(torch.ones(6, 3), dichotomies(4, 6)).upper.max()) == 0.0


def test_points_on_a_moment_curve_are_neighbourly() -> None:
    """Every subset of m // 2 of keys placed at best is separable: here the trigonometric moment curve, m = 8."""
    at = torch.arange(24, dtype=torch.float64) * 2 * torch.pi / 24
    keys = torch.cat([torch.stack([(n * at).cos(), (n * at).sin()], 1) for n in range(1, 5)], 1)
    subsets = torch.zeros(40, 24, dtype=torch.bool)
    for row in range(40):
        subsets[row, torch.from_numpy(numpy_generator(1, row).permutation(24)[:4])] = True
    assert all(separable_exactly(keys, subset) for subset in subsets)
    assert bool((best_margins(keys, subsets).lower > 0).all())


def test_subsets_have_their_sizes_and_kinds() -> None:
    drawn = draw_subsets(40, 5, numpy_generator(0, "subsets"))
    for kind, subsets in drawn.items():
        assert subsets.sum(-1).tolist() == [[size] * 5 for size in sizes_of(40)], kind
    edges = drawn["contiguous"].int().diff(dim=-1).abs().sum(-1)
    assert int(edges.max()) <= 2
    sizes = torch.tensor(sizes_of(40))
    weight = sizes * margin_wanted(40).exp() / (sizes * margin_wanted(40).exp() + 40 - sizes)
    torch.testing.assert_close(weight, torch.full_like(weight, 0.5))
    margins = subset_margins(gaussian(40, 6), drawn)
    every = subset_margins(gaussian(40, 6), {kind: part.flip(0) for kind, part in drawn.items()})
    torch.testing.assert_close(margins.lower["random"], every.lower["random"].flip(0))


def test_the_heads_of_a_model(tmp_path: Path) -> None:
    model = tiny_model("llama")
    opened = OpenModel("tiny", model, None, read_spec(model), fingerprint(model))
    found = selection(opened, {"a": tiny_tokens(2, 32)}, out=tmp_path / "s", subsets=3, matmul_dtype="model")
    record = found.record
    assert record.sizes == [1, 2, 4, 8, 16] and record.trimmed_rank == 8
    assert record.checked == record.agreed == 6
    assert [line.neighbourly for line in record.theory] == [8, 4]
    heads = [head for layer in record.layers for head in layer.heads]
    assert len(heads) == 12 and all(head.query_norm > 0 for head in heads)
    for head in heads:
        for form in (head.dense, head.trimmed):
            for kind in ("random", "contiguous"):
                # Selecting is more than separating.
                assert all(a <= b for a, b in zip(form.selected[kind], form.separable[kind], strict=True))
    # 8 dimensions separate less than 16 of the same keys do, over all heads.
    dense, trimmed = (sum(getattr(h, f).separable_half["random"] for h in heads) for f in ("dense", "trimmed"))
    assert trimmed < dense
    again = selection(opened, {"a": tiny_tokens(2, 32)}, out=tmp_path / "s", subsets=3, matmul_dtype="model")
    assert again.record == record
    with pytest.raises(HeadcountError, match="0 subsets"):
        selection(opened, {"a": tiny_tokens(2, 32)}, out=tmp_path / "t", subsets=0)
