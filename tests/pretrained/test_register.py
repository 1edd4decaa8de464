"""transformers knows trimmed models once headcount is imported, and headcount imports nothing heavy for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headcount.pretrained.register import register_trimmed

KNOWN = (
    "from transformers import AutoConfig, AutoModelForCausalLM; "
    "assert AutoConfig.for_model('headcount_gpt2').model_type"
)


def test_registering_again_changes_nothing() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    register_trimmed()
    before = AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model("headcount_llama"))]
    register_trimmed()
    assert AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model("headcount_llama"))] is before


@pytest.mark.parametrize(
    "code",
    [
        f"import headcount, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; {KNOWN}",
        f"import transformers.models.auto.modeling_auto, headcount; {KNOWN}",
    ],
    ids=["headcount first", "transformers first"],
)
def test_in_whatever_order_they_are_imported(code: str) -> None:
    code += "; import sys; assert not [f for f in sys.meta_path if type(f).__module__.startswith('headcount')]"
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
