"""Directions against closed forms: Eckart-Young in a metric, known ranks, the identity at full rank."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.trimming.audit.spectra import directions, head_blocks


def random_psd(width: int, rank: int, generator: torch.Generator) -> torch.Tensor:
    half = torch.randn(width, rank, dtype=torch.float64, generator=generator)
    return half @ half.T / rank


def error(D: torch.Tensor, C: torch.Tensor, G: torch.Tensor) -> float:
    return float((G @ D @ C @ D.T).trace())


@given(st.integers(2, 10), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_dropped_energies_are_the_error_and_the_least(width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    C, G = (random_psd(width, width + 2, generator) for _ in range(2))
    mean = torch.randn(width, dtype=torch.float64, generator=generator)
    spectrum = directions(mean, C + torch.outer(mean, mean), G)
    eye = torch.eye(width, dtype=torch.float64)
    for rank in range(1, width + 1):
        down, up = spectrum.projection(rank)
        assert down.shape == (rank, width) and up.shape == (width, rank)
        dropped_error = error(eye - up @ down, C, G)
        # Float64 through two roots of matrices with condition numbers up to about 1e6.
        torch.testing.assert_close(dropped_error, float(spectrum.energies[rank:].sum()), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(up.T @ up, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-9)
        other = torch.randn(width, rank, dtype=torch.float64, generator=generator)
        best_for_other = other @ torch.linalg.solve(other.T @ G @ other, other.T @ G)
        assert error(eye - best_for_other, C, G) >= dropped_error - 1e-8


def test_a_known_rank_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    C, G = random_psd(12, 5, generator), random_psd(12, 12, generator)
    spectrum = directions(torch.zeros(12, dtype=torch.float64), C, G)
    # Directions that never occur cost nothing, up to eigenvalue noise (1e-16 of the largest).
    assert float(spectrum.energies[5:].abs().max()) < 1e-12 * float(spectrum.energies[0])
    assert float(spectrum.energies[4]) > 1e-4 * float(spectrum.energies[0])
    down, up = spectrum.projection(5)
    x = torch.linalg.cholesky(C + 1e-12 * torch.eye(12, dtype=torch.float64))[:, :5]
    torch.testing.assert_close(up @ (down @ x), x, rtol=0, atol=1e-4)


def test_full_rank_is_the_identity_even_where_moments_are_singular() -> None:
    C = torch.zeros(6, 6, dtype=torch.float64)
    spectrum = directions(torch.zeros(6, dtype=torch.float64), C, None)
    down, up = spectrum.projection(6)
    assert torch.equal(up @ down, torch.eye(6, dtype=torch.float64))
    down, up = spectrum.projection(3)
    assert bool(torch.isfinite(up @ down).all())


def test_the_mean_costs_nothing() -> None:
    mean = torch.tensor([100.0, 0.0, 0.0], dtype=torch.float64)
    C = torch.diag(torch.tensor([0.0, 4.0, 1.0], dtype=torch.float64))
    spectrum = directions(mean, C + torch.outer(mean, mean), None)
    torch.testing.assert_close(spectrum.energies, torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-9)


def test_head_blocks_see_one_head_each() -> None:
    generator = torch.Generator().manual_seed(1)
    C, G = random_psd(8, 9, generator), random_psd(8, 9, generator)
    zero = torch.zeros(8, dtype=torch.float64)
    blocks = head_blocks(zero, C, G, 2)
    for head, rows in enumerate((slice(0, 4), slice(4, 8))):
        energies = torch.linalg.eigvals(C[rows, rows] @ G[rows, rows]).real.sort(descending=True).values
        torch.testing.assert_close(blocks[head].energies, energies, rtol=1e-8, atol=1e-10)
