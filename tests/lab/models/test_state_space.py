"""The dual form against transformers' Mamba-2 with the same weights, and against its own recurrence."""

from __future__ import annotations

import pytest
import torch

from headcount.lab.models.state_space import Mamba2, decays


def test_it_is_transformers_mamba2() -> None:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        vocab_size=1, bos_token_id=None, eos_token_id=None, pad_token_id=None, hidden_size=12, expand=2, num_heads=3,
        head_dim=8, n_groups=1, state_size=5, num_hidden_layers=1, chunk_size=4, conv_kernel=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference, ours = Mamba2Mixer(config, 0).double(), Mamba2(12, 5, 3).double()
        for tensor in reference.parameters():
            torch.nn.init.normal_(tensor, std=0.5)
        inputs = torch.randn(3, 11, 12, dtype=torch.float64)
    ours.load_state_dict(reference.state_dict())
    # Their recurrence parameters pass through float32.
    assert (reference(inputs) - ours(inputs)).abs().max() < 1e-5


@pytest.mark.parametrize("size", [1.0, 400.0])
def test_decays_are_products(size: float) -> None:
    """exp of partial sums, entry by entry; strong forgetting underflows to 0 and never overflows."""
    logs = -size * torch.rand(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = decays(logs)
    for t in range(6):
        for s in range(6):
            expected = logs[:, s + 1 : t + 1].sum(-1).exp() if s <= t else torch.zeros(2)
            assert torch.allclose(factors[:, t, s], expected.double(), rtol=1e-9, atol=1e-300)
    assert torch.isfinite(factors).all()
