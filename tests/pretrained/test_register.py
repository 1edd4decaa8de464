"""transformers knows trimmed models once headcount is imported, and headcount imports nothing heavy for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headcount.pretrained.runtimes.register import register_trimmed, register_with_transformers


def test_registering_again_changes_nothing() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    register_trimmed()
    before = AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model("headcount_llama"))]
    register_trimmed()
    assert AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model("headcount_llama"))] is before


def test_after_transformers_it_is_done_at_once() -> None:
    import transformers.models.auto.modeling_auto  # noqa: F401

    before = list(sys.meta_path)
    register_with_transformers()
    assert sys.meta_path == before


def test_importing_headcount_imports_nothing_heavy_and_waits_for_transformers() -> None:
    code = (
        "import headcount, sys\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "config = AutoConfig.for_model('headcount_gpt2')\n"
        "assert AutoModelForCausalLM._model_mapping[type(config)].__name__ == 'HeadcountGPT2ForCausalLM'\n"
        "assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith('headcount')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "first", ["LlamaForCausalLM", "GenerationMixin", "AutoTokenizer", "pipeline", "GPT2LMHeadModel, LlamaForCausalLM"]
)
def test_whatever_of_transformers_is_imported_first(first: str) -> None:
    """The auto classes may be imported on the way to something else that our models need themselves."""
    code = (
        "import headcount, sys\n"
        f"from transformers import {first}, AutoConfig, AutoModelForCausalLM\n"
        "from transformers import AutoModelForCausalLM as again\n"
        "assert again is AutoModelForCausalLM\n"
        "for name in ('headcount_llama', 'unequal_llama'):\n"
        "    assert type(AutoConfig.for_model(name)) in AutoModelForCausalLM._model_mapping\n"
        "assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith('headcount')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
