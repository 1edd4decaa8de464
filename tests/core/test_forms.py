"""Forms of the cache: asked by everybody, named nowhere else, documented; a form registered from outside is taken.

The sizes of ``dense``, ``fast`` and ``small`` are counted by hand in ``tests/test_spec.py`` and held against real
modules, live caches and counted operations in ``tests/pretrained/test_families.py``.
"""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest
import torch
from conftest import ROOT, run, tiny_model, tiny_tokens

import headcount
from headcount.core import forms
from headcount.core.errors import HeadcountError
from headcount.core.spec import LayerSpec, ModelSpec
from headcount.report.collect import from_run, plan_view
from headcount.report.page.document import write_report
from headcount.report.terminal.tables import plan_tables
from headcount.trimming.audit.record import Audit
from headcount.trimming.evaluate.size import Size, Subject, cache_estimate_bytes
from headcount.trimming.plan.make import Plan

SOURCE = ROOT / "src" / "headcount"
NAMING = ("core/forms.py", "pretrained/runtimes/headcount_attention.py")
"""Where names of forms may stand: their home, and the runtime that travels without it."""

SMOLLM: dict[str, Any] = {
    "hidden": 576,
    "n_heads": 9,
    "n_kv_heads": 3,
    "qk_dim": 64,
    "v_dim": 64,
    "rotary_dim": 64,
}


class Decoupled(forms.Latent):
    """As DeepSeek-V2 caches (arXiv 2405.04434): latents, and one rotated key that all heads share.

    The latent is made of unrotated keys and never rebuilt; the shared key has ``rotary_dim`` numbers and a matrix.
    """

    name = "decoupled"
    summary = "one rotated key for all heads"

    def fixed_cache_numbers_per_token(self, layer: forms.Layer) -> int:
        return layer.rotary_dim

    def matrix_params(self, layer: forms.Layer) -> int:
        return super().matrix_params(layer) + layer.hidden * layer.rotary_dim

    def flops_per_token(self, layer: forms.Layer, seen: int) -> int:
        k_rank, v_rank = forms.ranks_of(layer)
        meeting = layer.n_heads * layer.qk_dim * k_rank
        per_seen = 2 * layer.n_heads * (k_rank + layer.rotary_dim + v_rank)
        return 2 * (self.products_per_token(layer) + meeting) + seen * per_seen


@pytest.fixture
def decoupled(monkeypatch: pytest.MonkeyPatch) -> forms.Form:
    form = Decoupled()
    monkeypatch.setitem(forms.FORMS, form.name, form)
    return form


@pytest.fixture(scope="module")
def audit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of the tiny Llama: 3 layers, 2 KV heads of 16, 192 cached numbers a token; all 16 dimensions rotate."""
    folder = tmp_path_factory.mktemp("forms") / "audit"
    headcount.audit(tiny_model("llama"), tiny_tokens(), matmul_dtype="model", name="tiny", out=folder)
    return folder


# --- what each form says ----------------------------------------------------------------------------------------------


def test_key_sides_folding_and_rebuilding_by_hand() -> None:
    """fast: rotated keys, which fold only without a rotation; small: plain keys, rebuilt (K d numbers a token)."""
    fast, small = forms.trimmed_form("fast"), forms.trimmed_form("small")
    assert [form.key_side(True) for form in (fast, small)] == ["rotated_keys", "keys"]
    assert [form.key_side(False) for form in (fast, small)] == ["keys", "keys"]
    assert [form.in_layer(True) for form in (fast, small)] == [fast, small]
    assert [form.in_layer(False) for form in (fast, small)] == [fast, fast]
    layers = {form: LayerSpec(**SMOLLM, form=form, k_rank=96, v_rank=40) for form in forms.trimmed_names()}
    assert [layers[form].folds_keys for form in ("fast", "small")] == [False, True]
    assert not layers["small"].model_copy(update={"qk_norm": True}).folds_keys, "a norm lies between"
    assert layers["fast"].model_copy(update={"rotary_dim": 0}).folds_keys
    assert [layers[form].rebuilds_keys for form in ("fast", "small")] == [False, True]
    assert [layers[form].rebuilt_numbers_per_token for form in ("fast", "small")] == [0, 3 * 64]
    dense = LayerSpec(**SMOLLM)
    assert not (dense.folds_keys or dense.folds_values or dense.rebuilds_keys or dense.rebuilt_numbers_per_token)


@pytest.mark.parametrize("name", ["dense", "tiny", "", None, ["fast"]], ids=str)
def test_what_no_plan_can_ask_for_is_refused(name: Any) -> None:
    with pytest.raises(HeadcountError) as refused:
        forms.trimmed_form(name)
    assert str(refused.value) == f"unknown form {name!r}; use fast or small"


# --- nobody else names them -------------------------------------------------------------------------------------------


def named_forms(source: str) -> list[tuple[int, str]]:
    """(line, name) of every string constant that is the name of a trimmed form."""
    return [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in forms.trimmed_names()
    ]


def test_only_the_home_of_forms_and_the_travelling_runtime_name_them() -> None:
    assert named_forms("if form == 'small':\n    x = {'fast': 1}\n") == [(1, "small"), (2, "fast")], "the scan bites"
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        if place not in NAMING:
            assert not (named := named_forms(path.read_text(encoding="utf-8"))), f"{place}: ask core.forms, not {named}"


def test_the_travelling_runtime_checks_once_for_rebuilt_keys() -> None:
    """Its one literal names the form that rebuilds keys."""
    named = named_forms((SOURCE / NAMING[1]).read_text(encoding="utf-8"))
    assert [name for _, name in named] == [name for name, form in forms.FORMS.items() if form.rebuilds_keys]


def test_every_form_is_documented_and_every_documented_one_exists() -> None:
    page = (ROOT / "docs" / "trimming.md").read_text(encoding="utf-8")
    section = page[page.index("## trim\n") : page.index("## evaluate\n")]
    assert re.findall(r"^- \*\*(\S+)\*\*: ", section, re.MULTILINE) == list(forms.trimmed_names())
    used = set()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        used |= set(re.findall(r"--form[ =]([a-z-]+)", path.read_text(encoding="utf-8")))
    assert used and used <= set(forms.trimmed_names())


# --- a third form, for sizes ------------------------------------------------------------------------------------------


def test_the_spec_takes_a_new_form(decoupled: forms.Form) -> None:
    """By hand at ranks 96 and 40: 64 numbers more in the cache, a matrix 576 x 64 more, 64 wider products per head."""
    layer = LayerSpec(**SMOLLM, form="decoupled", k_rank=96, v_rank=40)
    assert layer.cache_numbers_per_token == 96 + 40 + 64
    matrices = 576 * 576 + 576 * 96 + 96 * 192 + 576 * 40 + 9 * 40 * 576 + 576 * 64
    assert layer.matrix_params == matrices and layer.attention_params == matrices + 576
    products = 576 * 576 + 576 * 96 + 9 * 64 * 96 + 576 * 40 + 9 * 40 * 576 + 576 * 64
    assert layer.attention_flops_per_token(500) == 2 * products + 500 * 2 * 9 * (96 + 64 + 40)
    model = ModelSpec(family="llama", layers=(layer,) * 30)
    assert model.cache_bytes_per_token("bfloat16") == 30 * 200 * 2
    assert ModelSpec.model_validate_json(model.model_dump_json()) == model


def test_a_form_that_nobody_registered_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="Input should be 'dense', 'fast' or 'small'"):
        LayerSpec(**SMOLLM, form="decoupled", k_rank=96, v_rank=40)


@pytest.mark.parametrize("allocator", ["greedy", "uniform", "per-head"])
def test_the_plan_pays_for_the_fixed_part_first(audit_folder: Path, decoupled: forms.Form, allocator: Any) -> None:
    """Half of 192 numbers is 96; three shared keys take 48. So ranks are those of ``small``, which projects the same
    keys, at a quarter of the cache."""
    audit = Audit.open(audit_folder)
    assert audit.key_side == {"fast": "rotated_keys", "small": "keys", "decoupled": "keys"}
    plan = headcount.plan(audit, cache=0.5, form="decoupled", allocator=allocator, multiple=2)
    twin = headcount.plan(audit, cache=0.25, form="small", allocator=allocator, multiple=2)
    assert plan.record.layers == twin.record.layers
    assert plan.record.predicted_loss_increase == twin.record.predicted_loss_increase
    assert [layer.form for layer in plan.spec.layers] == ["decoupled"] * 3
    assert plan.spec.cache_numbers_per_token == 96 and plan.record.cache_ratio == 0.5
    # Points of the Pareto curve count the fixed part too: the smallest has it and a step of 2 in every column.
    steps = 12 if allocator == "per-head" else 6
    ratios = [point.cache_ratio for point in plan.record.pareto]
    assert min(ratios) >= (48 + 2 * steps) / 192 and max(ratios) == 1.0
    with pytest.raises(HeadcountError, match=r"smallest possible, 0\.3750 \(72 of 192 numbers"):
        headcount.plan(audit, cache=0.3, form="decoupled", multiple=4)


def test_the_memory_estimate_takes_a_new_form(decoupled: forms.Form) -> None:
    """One layer, 2 rows of 10 + 1 tokens, float16: what is held (half as much in reserve), a copy, 3 rows of scores."""
    layer = LayerSpec(**SMOLLM, form="decoupled", k_rank=96, v_rank=40)
    model: Any = SimpleNamespace(dtype=torch.float16)
    subject = Subject("toy", model, ModelSpec(family="llama", layers=(layer,)))
    own = 2 * 11 * 200
    assert cache_estimate_bytes(subject, "latent", Size(2, 10)) == 2 * (1.5 * own + own + 3 * 2 * 11 * 9)
    # ``small`` holds 64 numbers less and rebuilds keys of 3 heads x 64, in four copies.
    small = layer.model_copy(update={"form": "small"})
    own = 2 * 11 * 136
    subject = Subject("small", model, ModelSpec(family="llama", layers=(small,)))
    held = 1.5 * own + own + 3 * 2 * 11 * 9 + 4 * 2 * 11 * 192
    assert cache_estimate_bytes(subject, "latent", Size(2, 10)) == 2 * held


def test_the_report_and_the_tables_take_a_new_form(audit_folder: Path, decoupled: forms.Form, tmp_path: Path) -> None:
    from rich.console import Console

    audit = Audit.open(audit_folder)
    plan = headcount.plan(audit, cache=0.5, form="decoupled")
    view = plan_view("third", plan.record, rotary=True)
    assert (view.form, view.key_side, view.cache_ratio) == ("decoupled", "keys", 0.5)
    page = write_report(tmp_path / "report.html", from_run(audit, {"third": plan}))
    assert "decoupled, greedy" in page.read_text(encoding="utf-8")
    printed = io.StringIO()
    Console(file=printed, width=200).print(*plan_tables(plan))
    assert "decoupled, greedy ranks" in printed.getvalue() and "50% of the cache" in printed.getvalue()


def test_the_command_line_takes_a_new_form(
    audit_folder: Path, decoupled: forms.Form, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", audit_folder, "--form", "decoupled", "--out", tmp_path / "plan", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["form"] == "decoupled" and said["cache_ratio"] == 0.5
    assert sum(layer["k_rank"] + layer["v_rank"] for layer in said["layers"]) == 96 - 48
    assert Plan.open(tmp_path / "plan").spec.cache_numbers_per_token == 96
    assert run("plan", audit_folder, "--form", "tiny", "--out", tmp_path / "other") == 2
    assert "unknown form 'tiny'; use fast, small or decoupled" in capsys.readouterr().err


def test_help_and_completion_offer_a_new_form() -> None:
    """They are made when commands are imported, so this runs in a process that registers the form before."""
    script = """
        from headcount.core import forms

        class Third(forms.Fast):
            name, summary = "third", "for this test"

        forms.FORMS["third"] = Third()
        import inspect, typing
        from headcount.cli.model import Form, plan
        from headcount.cli.results import demo

        for command in (plan, demo):
            hint = typing.get_type_hints(command, include_extras=True)["form"]
            assert hint == Form and inspect.signature(command).parameters["form"].default == "fast"
        option = typing.get_args(Form)[1]
        print(option.autocompletion(""), option.help)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = "fast (keys never rebuilt), small (better, slower) or third (for this test)."
    assert done.stdout == f"['fast', 'small', 'third'] {said}\n"
