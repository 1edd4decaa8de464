"""Plans of new models: budgets met exactly as promised, evidence that shapes them, one line for what cannot be."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.core.errors import HeadcountError
from headcount.core.spec import LayerSpec, ModelSpec
from headcount.core.store import write_json
from headcount.probes.saturation.record import ContextRecord, HeadCurve, LayerCurves, SaturationRecord
from headcount.shapes.decoder import build_decoder
from headcount.shapes.evidence import from_audit, from_saturation, resample
from headcount.shapes.planned import RECORD, ScratchPlan, plan_scratch, summary_json
from headcount.shapes.rules import SCHEMES, spread
from headcount.trimming.audit.schema import AuditRecord, LayerRecord, SideRecord

ISSUE = {"layers": 8, "hidden": 256, "params": 6e6, "context": 512}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("budgets", [{}, {"cache_bytes": 6000}, {"flops": 5e6}], ids=["params", "cache", "flops"])
def test_budgets_are_met_and_counts_are_the_modules(scheme: str, budgets: dict[str, float]) -> None:
    record = plan_scratch(**ISSUE, **budgets, scheme=scheme).record  # type: ignore[arg-type]
    model = build_decoder(record.model)
    assert sum(p.numel() for p in model.parameters()) == record.params
    assert 0.97 * 6e6 <= record.params <= 6e6
    assert len(record.model.layers) == 8 and all(layer.reason for layer in record.model.layers)
    if "cache_bytes" in budgets:
        # The smallest step is a pair of dimensions or a head; uniform's is a pair in all layers and both sides, which
        # is 512 bytes, and 1,024 with twice the heads.
        assert 6000 - (1024 if scheme == "uniform-heads" else 600) < record.cache_bytes_per_token <= 6000
    if "flops" in budgets:
        assert 0.9 * 5e6 <= record.attention_flops_per_token <= 5e6


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 9),
    heads=st.integers(1, 8),
    head_dim=st.sampled_from([8, 16, 32]),
    scheme=st.sampled_from(SCHEMES),
    extra=st.floats(1.0, 40.0),
    cache=st.one_of(st.none(), st.integers(1, 40)),
)
def test_any_budget_is_met_or_refused(
    layers: int, heads: int, head_dim: int, scheme: str, extra: float, cache: int | None
) -> None:
    """What a refusal names as the smallest is accepted, and one less is refused."""
    hidden = heads * head_dim
    fixed = {"layers": layers, "hidden": hidden, "context": 64, "vocab": 64, "scheme": scheme, "head_dim": head_dim}
    budget = int(extra * layers * hidden * hidden)
    options = {"params": budget} | ({"cache_bytes": cache * 64} if cache else {})
    try:
        record = plan_scratch(**fixed, **options).record  # type: ignore[arg-type]
    except HeadcountError as error:
        assert "the smallest budget is" in str(error) or "ask for --params" in str(error)
        return
    assert 0.97 * budget <= record.params <= budget == record.budget_params
    assert cache is None or record.cache_bytes_per_token <= cache * 64


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["params", "cache_bytes", "flops"])
def test_the_smallest_budget_is_named_and_works(scheme: str, name: str) -> None:
    fixed = {"layers": 4, "hidden": 64, "context": 32, "vocab": 128, "scheme": scheme}
    with pytest.raises(HeadcountError, match="the smallest budget is") as caught:
        plan_scratch(**fixed, **{name: 3})  # type: ignore[arg-type]
    smallest = int(str(caught.value).rsplit(" ", 1)[1].replace(",", ""))
    plan_scratch(**fixed, **{name: smallest})  # type: ignore[arg-type]
    with pytest.raises(HeadcountError, match="the smallest budget is"):
        plan_scratch(**fixed, **{name: smallest - 1})  # type: ignore[arg-type]


def test_uniform_is_uniform_and_llamas_own_shape() -> None:
    layers = plan_scratch(**ISSUE, scheme="uniform").record.model.layers  # type: ignore[arg-type]
    assert len({layer.model_dump_json() for layer in layers}) == 1
    assert (layers[0].n_heads, layers[0].n_kv_heads, layers[0].qk_dim, layers[0].v_dim) == (8, 4, 32, 32)


def test_openelm_scales_heads_and_mlps_linearly() -> None:
    """arXiv 2404.14619, section 2.1: heads alpha from 0.5 to 1, MLP beta from 0.5 to 4, here scaled to the budget."""
    layers = plan_scratch(**ISSUE, scheme="openelm", multiples=(1,)).record.model.layers  # type: ignore[arg-type]
    assert [layers[0].n_heads, layers[-1].n_heads] == [4, 8]
    heads = [layer.n_heads for layer in layers]
    assert heads == sorted(heads) and {layer.qk_dim for layer in layers} == {layer.v_dim for layer in layers} == {32}
    widths = [layer.intermediate_size for layer in layers]
    assert widths[-1] / widths[0] == pytest.approx(8, rel=0.02)
    steps = [after - before for before, after in itertools.pairwise(widths)]
    assert max(steps) - min(steps) <= 1
    assert spread([0.5, 0.5, 3.0]) == [1, 1, 3] and sum(spread([1.3, 1.3, 1.4])) == 4


def test_the_rules_are_what_they_say() -> None:
    made = {scheme: plan_scratch(**ISSUE, scheme=scheme).record.model.layers for scheme in SCHEMES}  # type: ignore[arg-type]
    narrow = made["planned"]
    assert [layer.qk_dim for layer in narrow] == sorted((layer.qk_dim for layer in narrow), reverse=True)
    assert (narrow[0].qk_dim, narrow[-1].qk_dim) == (32, 16) and {layer.v_dim for layer in narrow} == {32}
    heads = made["planned-heads"]
    assert [layer.n_heads for layer in heads] == [16] * 3 + [8] * 5
    assert {layer.n_heads * layer.qk_dim for layer in heads} == {256}
    assert {(layer.n_heads, layer.n_kv_heads, layer.qk_dim, layer.v_dim) for layer in made["uniform-heads"]} == {
        (16, 8, 16, 16)
    }
    both = made["planned-both"]
    assert [layer.n_heads for layer in both] == [layer.n_heads for layer in heads]
    wide = [layer.n_heads * layer.qk_dim for layer in both]
    assert wide == sorted(wide, reverse=True) and (both[0].qk_dim, both[-1].qk_dim) == (16, 16)


def test_equal_cache_and_equal_parameters_can_be_had_together() -> None:
    uniform = plan_scratch(**ISSUE, scheme="uniform").record  # type: ignore[arg-type]
    for scheme in SCHEMES:
        cache = uniform.cache_bytes_per_token
        own = plan_scratch(**ISSUE, scheme=scheme, cache_bytes=cache, multiples=(1,)).record  # type: ignore[arg-type]
        assert 0.99 * cache <= own.cache_bytes_per_token <= cache and 0.997 * 6e6 <= own.params <= 6e6


# -- evidence ---------------------------------------------------------------------------------------------

SPEC = ModelSpec(family="llama", layers=(LayerSpec(hidden=32, n_heads=4, n_kv_heads=2, qk_dim=8, v_dim=8),) * 4)


def saturation_record(ranks: list[int]) -> SaturationRecord:
    def context(length: int, own: list[int]) -> ContextRecord:
        heads = [[HeadCurve(errors=[0.0] * 9, ranks=[8, rank, 1], logit_range=1.0)] * 4 for rank in own]
        return ContextRecord(
            context=length, fitted_windows=1, measured_windows=1, queries=1, losses=[], boundary=None,
            layers=[LayerCurves(layer=i, heads=own) for i, own in enumerate(heads)],
        )  # fmt: skip

    return SaturationRecord(
        model="m", fingerprint="f", spec=SPEC, seed=0, tokens=1, matmul_dtype="float32", kinds=[],
        tolerances=[0.01, 0.05, 0.1], contexts=[context(64, ranks), context(32, [8] * 4)], claims=[],
    )  # fmt: skip


def audit_record(keys: list[int], values: list[int]) -> AuditRecord:
    """A layer's sides have this many directions of energy 1, and the rest of none."""

    def side(count: int) -> SideRecord:
        return SideRecord(joint=[1.0] * count + [0.0] * (16 - count), per_head=[])

    layers = [
        LayerRecord(layer=i, heads=[], sides={"keys": side(k), "values": side(v)})
        for i, (k, v) in enumerate(zip(keys, values, strict=True))
    ]
    return AuditRecord(
        model="m", fingerprint="f", spec=SPEC, metric="fisher", seed=0, context=8, tokens=8, texts=[], layers=layers
    )


def test_saturation_shapes_keys_by_the_longest_context_and_leaves_values() -> None:
    found = from_saturation(saturation_record([8, 6, 4, 1]), 4)
    assert found.keys == (1.0, 0.75, 0.5, 0.25) and found.values == (1.0,) * 4
    assert "75% of the head dimension at 5% and 64 tokens" in found.said[1]
    assert from_saturation(saturation_record([0, 0, 0, 0]), 2).keys == (1.0, 1.0)


def test_an_audit_shapes_both_sides_by_the_split_of_half_its_cache() -> None:
    """64 of 128 numbers go where there is energy: 12 + 12 + 8 + 4 to keys, the other 28 to values."""
    found = from_audit(audit_record([12, 12, 8, 4], [4, 8, 8, 8]), 4)
    assert found.keys == (1.0, 1.0, pytest.approx(8 / 12), pytest.approx(4 / 12))
    assert found.values == (0.5, 1.0, 1.0, 1.0)


def test_depths_are_matched_by_their_parts() -> None:
    assert resample([1.0, 2.0], 4) == [1.0, 1.0, 2.0, 2.0]
    assert resample([3.0, 1.0, 2.0], 1) == [2.0]
    assert resample([0.0, 1.0, 2.0], 2) == pytest.approx([1 / 3, 5 / 3])


def test_a_folder_of_evidence_narrows_where_it_is_small(tmp_path: Path) -> None:
    write_json(tmp_path / "s" / "saturation.json", saturation_record([8, 8, 4, 2]))
    record = plan_scratch(layers=4, hidden=128, context=64, params=1e6, vocab=256, audit=tmp_path / "s").record
    assert [layer.qk_dim for layer in record.model.layers] == [32, 32, 16, 8]
    assert all(layer.reason.startswith("audit: saturation rank") for layer in record.model.layers)
    write_json(tmp_path / "a" / "audit.json", audit_record([12, 12, 8, 4], [4, 8, 8, 8]))
    record = plan_scratch(layers=4, hidden=128, context=64, params=1e6, vocab=256, audit=tmp_path / "a").record
    assert [(layer.qk_dim, layer.v_dim) for layer in record.model.layers] == [(32, 16), (32, 32), (22, 32), (10, 32)]
    with pytest.raises(HeadcountError, match="uniform takes no audit"):
        plan_scratch(layers=4, hidden=128, context=64, params=1e6, scheme="uniform", audit=tmp_path / "a")


# -- files and mistakes -----------------------------------------------------------------------------------


def test_plans_are_written_read_and_checked(tmp_path: Path) -> None:
    made = plan_scratch(layers=4, hidden=64, context=32, params=3e5, vocab=128, out=tmp_path / "p")
    assert ScratchPlan.open(tmp_path / "p").record == made.record
    assert {"layers", "params", "rules", "folder"} <= summary_json(made).keys()
    file = tmp_path / "p" / RECORD
    content = json.loads(file.read_text())
    for change, message in (
        ({"params": content["params"] + 1}, "parameters, its layers have"),
        ({"scheme": 3}, "not valid: scheme"),
        ({"model": content["model"] | {"layers": []}}, "not valid: model.layers"),
        ({"model": content["model"] | {"layers": [content["model"]["layers"][0] | {"n_kv_heads": 3}]}}, "no multiple"),
    ):
        file.write_text(json.dumps(content | change))
        with pytest.raises(HeadcountError, match=message):
            ScratchPlan.open(tmp_path / "p")
    with pytest.raises(HeadcountError, match="holds no plan of a new model"):
        ScratchPlan.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "--layers 0 is not possible"),
        ({"hidden": -8}, "--hidden -8"),
        ({"hidden": 250}, "--hidden 250 is no multiple of a head dimension .*use --hidden 248"),
        ({"hidden": 100, "head_dim": 32}, "no multiple of --head-dim 32"),
        ({"head_dim": 5}, "use an even number"),
        ({"group": 3}, "8 heads do not divide into groups of 3"),
        ({"context": 0}, "--context 0"),
        ({"vocab": 1}, "--vocab 1"),
        ({"params": float("nan")}, "--params nan"),
        ({"params": -1.0}, "--params -1"),
        ({"params": None}, "there is no budget"),
        ({"scheme": "elm"}, "no scheme 'elm'"),
        ({"cache_dtype": "int8"}, "unknown dtype"),
        ({"audit": "nowhere"}, "nowhere holds no finished audit"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(HeadcountError, match=message):
        plan_scratch(**ISSUE | change)  # type: ignore[arg-type]
