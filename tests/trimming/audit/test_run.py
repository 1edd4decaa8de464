"""Whole audits on tiny models: every family and metric, resuming after kill -9, refusals."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import DECODERS, FAMILIES, ROOT, tiny_model, tiny_tokens

import headcount
from headcount.core.errors import HeadcountError
from headcount.trimming.audit.record import Audit
from headcount.trimming.audit.run import resolve_matmul_dtype


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_audited_without_a_backward_pass(name: str) -> None:
    model = tiny_model(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    audit = headcount.audit(model, tiny_tokens(), metric="output", matmul_dtype="model")
    assert audit.record.tokens == 6 * 24
    assert [layer.layer for layer in audit.record.layers] == [0, 1, 2]
    spec = audit.record.spec.layers[0]
    for layer in audit.record.layers:
        assert set(layer.sides) == ({"keys", "rotated_keys", "values"} if spec.rotary_dim else {"keys", "values"})
        for side, energies in layer.sides.items():
            assert len(energies.joint) == (spec.v_width if side == "values" else spec.k_width)
            assert energies.joint == sorted(energies.joint, reverse=True)
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", DECODERS)
def test_whitened_energies_are_the_second_moments_of_real_keys_and_values(name: str) -> None:
    """The moments of an independent forward pass through the stock cache."""
    model, ids = tiny_model(name), tiny_tokens(4, 8)  # 8 tokens: inside every sliding window
    audit = headcount.audit(model, ids, metric="whitened", matmul_dtype="model")
    cache = model(ids, use_cache=True).past_key_values
    for index, layer in enumerate(cache.layers):
        side = "rotated_keys" if "rotated_keys" in audit.record.layers[index].sides else "keys"
        for name_, tensor in ((side, layer.keys), ("values", layer.values)):
            rows = tensor.transpose(1, 2).flatten(0, 1).flatten(1).double()
            # About the mean where a shift of all tokens changes nothing, else about zero.
            moment = torch.cov(rows.T, correction=0) if name_ == "rotated_keys" else rows.T @ rows / len(rows)
            expected = torch.linalg.eigvalsh(moment).flip(0).clamp_min(0)
            energies = torch.tensor(audit.record.layers[index].sides[name_].joint, dtype=torch.float64)
            # Float32 activations, summed in float64.
            torch.testing.assert_close(energies, expected, rtol=1e-4, atol=1e-5 * float(expected[0]))


def test_fisher_and_layerwise_see_the_same_keys_and_values() -> None:
    model, ids = tiny_model("llama"), tiny_tokens()
    fisher = headcount.audit(model, ids, metric="fisher", matmul_dtype="model")
    output = headcount.audit(model, ids, metric="output", matmul_dtype="model")
    for name in ("C", "mean"):
        for side in ("keys", "rotated_keys", "values"):
            key = f"layers.2.{side}.{name}"
            torch.testing.assert_close(fisher.moments[key], output.moments[key], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("metric", ["fisher", "output"])
def test_a_killed_audit_goes_on_to_the_same_bytes(metric: str, tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import torch
        torch.set_num_threads(1)
        from conftest import tiny_model, tiny_tokens
        import headcount
        import headcount.trimming.audit.gather as gather
        gather.CHECKPOINT_SECONDS, gather.BATCH_TOKENS = 0.0, 48
        out, after = sys.argv[1], int(sys.argv[2])

        def progress(stage, done, total):
            if done == after:
                os.kill(os.getpid(), signal.SIGKILL)

        headcount.audit(tiny_model("llama"), tiny_tokens(), metric={metric!r}, matmul_dtype="model", out=out,
                        progress=progress)
        """
    )

    def run(out: str, after: int) -> int:
        command = [sys.executable, "-c", script, str(tmp_path / out), str(after)]
        return subprocess.run(command, env=os.environ, capture_output=True, check=False).returncode

    assert run("whole", -1) == 0
    assert run("killed", 2) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "audit.json").exists()
    assert (tmp_path / "killed" / "work").exists()
    assert run("killed", -1) == 0
    for file in ("audit.json", "moments.safetensors", "tokens.safetensors", "headcount-run.json"):
        digests = {hashlib.sha256((tmp_path / out / file).read_bytes()).hexdigest() for out in ("whole", "killed")}
        assert len(digests) == 1, file
    assert not (tmp_path / "killed" / "work").exists()


def test_an_audit_folder_reads_back(tmp_path: Path) -> None:
    model, ids = tiny_model("qwen2"), {"a": tiny_tokens(4), "b": tiny_tokens(4, seed=1)}
    made = headcount.audit(model, ids, metric="fisher", count=2, matmul_dtype="model", out=tmp_path / "a")
    read = Audit.open(tmp_path / "a")
    assert read.record == made.record
    assert [text.windows for text in read.record.texts] == [2, 2]
    assert torch.equal(read.windows["b"].long(), ids["b"])
    assert list(read.to_pandas().columns) == ["entropy", "strongest", "first", "logit_range", "logit_peak"]
    assert read.timing is not None and read.timing.cost_ratio > 0
    again = headcount.audit(model, ids, metric="fisher", count=2, matmul_dtype="model", out=tmp_path / "a")
    assert again.record == made.record
    with pytest.raises(HeadcountError, match="made from other inputs"):
        headcount.audit(model, ids, metric="fisher", count=3, matmul_dtype="model", out=tmp_path / "a")


def test_refusals() -> None:
    model = tiny_model("llama")
    with pytest.raises(HeadcountError, match="unknown metric"):
        headcount.audit(model, tiny_tokens(), metric="other")
    with pytest.raises(HeadcountError, match="no language-model head"):
        headcount.audit(tiny_model("bert"), tiny_tokens(), metric="fisher")
    with pytest.raises(HeadcountError, match="beyond the model's 128 positions"):
        headcount.audit(model, tiny_tokens(1, 129))
    with pytest.raises(HeadcountError, match="the model has 97"):
        headcount.audit(model, torch.full((1, 8), 97))
    with pytest.raises(HeadcountError, match="windows, context"):
        headcount.audit(model, {"a": tiny_tokens(2, 8), "b": tiny_tokens(2, 9)})
    with pytest.raises(HeadcountError, match="no text"):
        headcount.audit(model, {})


def test_matmul_dtype_is_chosen_by_name() -> None:
    model = tiny_model("llama")
    assert resolve_matmul_dtype(model, "model") is None
    assert resolve_matmul_dtype(model, "bfloat16") == torch.bfloat16
    assert resolve_matmul_dtype(model.double(), "bfloat16") is None
    with pytest.raises(HeadcountError, match="unknown dtype"):
        resolve_matmul_dtype(model, "int8")
