"""The view model holds what the records say, and tells kinds of text and models apart."""

from __future__ import annotations

import dataclasses
import math

import pytest
from report_cases import MADE, TEXTS, tiny_run

from headcount.core.errors import HeadcountError
from headcount.report.collect import evaluation_view, from_records, from_run, made_by
from headcount.report.page.headline import main_model, tiles


def test_the_view_holds_the_records_numbers() -> None:
    run, view = tiny_run(), tiny_run().view()
    record = run.audit.record
    assert (view.audit.model, view.audit.tokens, view.audit.metric) == ("tiny", 6 * 24, "fisher")
    for own, layer, spec in zip(view.audit.layers, record.layers, record.spec.layers, strict=True):
        assert (own.k_width, own.v_width) == (spec.k_width, spec.v_width) == (32, 32)
        assert {side: list(energies) for side, energies in own.spectra.items()} == {
            side: found.joint for side, found in layer.sides.items()
        }
        assert [dataclasses.asdict(head) for head in own.heads] == [head.model_dump() for head in layer.heads]
    assert [plan.name for plan in view.plans] == ["half", "three quarters"]
    assert [plan.key_side for plan in view.plans] == ["rotated_keys", "keys"]  # what fast and small project
    for own_plan, plan in zip(view.plans, run.plans.values(), strict=True):
        assert own_plan.ranks == tuple((layer.k_rank, layer.v_rank) for layer in plan.record.layers)
        assert own_plan.predicted_loss_increase == plan.record.predicted_loss_increase
        assert own_plan.repaired is True


def test_ratios_are_those_of_the_evaluated_perplexities() -> None:
    run, view = tiny_run(), tiny_run().view()
    assert view.evaluation is not None
    dense, half, _ = run.evaluation.record.models
    model = view.evaluation.models[1]
    assert view.evaluation.ratios(model, "calibrated") == {
        "prose": half.text("prose").perplexity / dense.text("prose").perplexity
    }
    assert set(view.evaluation.ratios(model, "unseen")) == {"licences"}
    assert set(view.evaluation.ratios(model, "other")) == {"mail"}
    assert view.evaluation.cache_ratio(model) == half.cache_bytes_per_token / dense.cache_bytes_per_token == 0.5
    measured = {measure.label: measure.values for measure in view.evaluation.measures}
    assert measured["KL divergence of next-token distributions"][1] == pytest.approx(
        sum(half.text(kind).kl for kind in TEXTS) / 3, rel=1e-12
    )
    assert measured["Cache, read off the live cache"] == (768.0, 384.0, 576.0)
    assert measured["Attention parameters"][1] == run.plans["half"].spec.attention_params


def test_speeds_are_medians_of_the_timed_rounds() -> None:
    run, view = tiny_run(), tiny_run().view()
    assert view.evaluation is not None and run.evaluation.timing is not None
    ways = {way.way: way for way in run.evaluation.timing.models[0].ways}
    half = run.evaluation.timing.models[1].ways[0]

    def rate(seconds: list[float]) -> float:
        return 1 / sorted(seconds)[len(seconds) // 2]  # a batch of one; rounds are odd

    measured = {measure.label: measure.values for measure in view.evaluation.measures}
    assert measured["Decoding"][:2] == (rate(ways["stock"].decode_seconds), rate(half.decode_seconds))
    assert measured["Decoding, dense models on our path too"][:2] == (
        rate(ways["own"].decode_seconds),
        rate(half.decode_seconds),
    )
    speedup = view.evaluation.speedup(view.evaluation.models[1])
    assert speedup == rate(half.decode_seconds) / rate(ways["stock"].decode_seconds)


def test_without_timing_there_is_no_speed() -> None:
    view = evaluation_view(tiny_run().evaluation.record)
    assert view.speedup(view.models[1]) is None
    assert {measure.group for measure in view.measures} == {"Perplexity", "Against tiny", "Cache, parameters, memory"}


@pytest.mark.parametrize(
    ("peaks_mib", "compared"), [((400, 200, 300), True), ((0, 1, 2), False), ((400, 200, 3), False)]
)
def test_memory_is_compared_only_where_it_is_more_than_noise(peaks_mib: tuple[int, ...], compared: bool) -> None:
    found = tiny_run().evaluation
    assert found.timing is not None
    models = [
        model.model_copy(update={"peak_memory_bytes": peak * 2**20})
        for model, peak in zip(found.timing.models, peaks_mib, strict=True)
    ]
    view = evaluation_view(found.record, found.timing.model_copy(update={"models": models}))
    (memory,) = [measure for measure in view.measures if measure.label.startswith("Peak memory")]
    assert memory.values == tuple(peak * 2**20 for peak in peaks_mib)
    assert memory.compared is compared


def test_kinds_are_grouped_by_what_statistics_really_came_from() -> None:
    """The evaluation only knows the default kinds; the audit knows what it was made on."""
    record = tiny_run().evaluation.record
    found = evaluation_view(record, calibrated_on={"mail"})
    assert {kind.name: kind.group for kind in found.kinds} == {
        "prose": "unseen",
        "licences": "unseen",
        "mail": "calibrated",
    }


def test_the_headline_is_about_the_first_plans_model() -> None:
    run = tiny_run()
    only = from_run(run.audit, {"three quarters": run.plans["three quarters"]}, run.evaluation, made=MADE)
    model = main_model(only)
    assert model is not None and model.name == "three quarters"
    shown = {tile.label: tile for tile in tiles(only)}
    assert shown["Cache per token"].number.endswith("0.75")
    assert only.evaluation is not None
    ratio = only.evaluation.ratios(model, "calibrated")["prose"]
    assert shown["Perplexity, calibrated text"].number.endswith(f"{ratio:.2f}")
    assert f"{math.log(ratio):.3g}"[:5].strip("-") in shown["Perplexity, calibrated text"].detail


def test_plans_stand_in_the_order_of_the_evaluation() -> None:
    run = tiny_run()
    turned = from_run(run.audit, dict(reversed(run.plans.items())), run.evaluation)
    assert [plan.name for plan in turned.plans] == ["half", "three quarters"]


def test_a_plan_of_another_model_is_refused() -> None:
    run = tiny_run()
    other = run.plans["half"].record.model_copy(update={"fingerprint": "0" * 16})
    with pytest.raises(HeadcountError, match="the plan of half was made for another model than the audit's, tiny"):
        from_records(run.audit.record, {"half": other})


def test_equal_names_are_told_apart_and_paths_are_cut() -> None:
    record = tiny_run().evaluation.record
    names = ["/home/somebody/models/dense", "/home/somebody/half", "/data/half"]
    moved = record.model_copy(
        update={"models": [m.model_copy(update={"name": n}) for m, n in zip(record.models, names, strict=True)]}
    )
    assert [model.name for model in evaluation_view(moved).models] == ["dense", "half", "half (2)"]


def test_commands_carry_no_path_of_the_machine_and_versions_are_named() -> None:
    made = made_by(
        [["headcount", "evaluate", "/srv/m/half", "--text", "mail=/home/x/mail.txt", "--out=/tmp/a b"]],
        seed=3,
        threads=2,
    )
    assert made.commands == ("headcount evaluate half --text mail=mail.txt '--out=a b'",)
    assert {"python", "headcount", "torch", "transformers", "plotly"} <= set(made.versions)
    assert (made.seed, made.threads) == (3, 2)
