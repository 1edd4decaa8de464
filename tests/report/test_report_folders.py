"""A report out of run folders: plans find their models, what is ambiguous or no run is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import tiny_model, tiny_tokens
from report_cases import TEXTS, tiny_measured

import headcount
from headcount.core.errors import HeadcountError
from headcount.core.store import open_run_folder, write_json
from headcount.probes.saturation.record import Saturation
from headcount.probes.selection.run import Selection
from headcount.report.folders import from_folders
from headcount.report.page.document import write_report


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audits by two metrics, plans with equal ranks from both, and an evaluation of a model of each."""
    place = tmp_path_factory.mktemp("runs")
    model = tiny_model("llama")
    trimmed = []
    for metric in ("fisher", "whitened"):
        audit = headcount.audit(
            model, {"prose": tiny_tokens()}, metric=metric, matmul_dtype="model", name="tiny", out=place / f"a-{metric}"
        )
        plan = headcount.plan(audit, cache=0.5, allocator="uniform", out=place / f"p-{metric}")
        repair = metric == "fisher"
        made = headcount.trim(model, plan, matmul_dtype="model", repair_output=repair)
        trimmed.append((f"by {metric}", made, None))
    models = [("tiny", model, None), *trimmed]
    headcount.evaluate(models, texts=TEXTS, decode=None, sample_prompt=None, out=place / "e")
    return place


def test_plans_of_equal_ranks_find_the_models_that_they_made(runs: Path) -> None:
    view = from_folders([runs / "p-whitened", runs / "e", runs / "p-fisher", runs / "a-fisher"])
    assert [(plan.name, plan.metric, plan.repaired) for plan in view.plans] == [
        ("by fisher", "fisher", True),
        ("by whitened", "whitened", False),
    ]
    assert view.audit.metric == "fisher"
    assert view.evaluation and len(view.evaluation.models) == 3


def test_plans_that_ask_for_the_same_find_their_models_by_digest(runs: Path, tmp_path: Path) -> None:
    model = tiny_model("llama")
    audit = headcount.Audit.open(runs / "a-fisher")
    plans = {cache: headcount.plan(audit, cache=cache, out=tmp_path / f"p-{cache}") for cache in (0.501, 0.5)}
    assert plans[0.5].spec == plans[0.501].spec
    models = [("tiny", model, None)] + [
        (f"made by {cache}", headcount.trim(model, plans[cache], matmul_dtype="model"), None) for cache in (0.501, 0.5)
    ]
    found = headcount.evaluate(models, texts=TEXTS, decode=None, sample_prompt=None, out=tmp_path / "e")
    digests = [own.origin.plan for own in found.record.models if own.origin]
    assert digests == [plans[0.501].record.digest, plans[0.5].record.digest]
    # In this order, ranks, allocator and metric alone would give the first plan to the other one's model.
    view = from_folders([runs / "a-fisher", tmp_path / "p-0.5", tmp_path / "p-0.501", tmp_path / "e"])
    assert [plan.name for plan in view.plans] == ["made by 0.501", "made by 0.5"]
    only = from_folders([runs / "a-fisher", tmp_path / "p-0.5", tmp_path / "e"])
    assert [plan.name for plan in only.plans] == ["made by 0.5"]
    # Evaluations of models made before plans had digests still open, and are matched as before.
    path = tmp_path / "e" / "evaluation.json"
    record = json.loads(path.read_text())
    for own in record["models"][1:]:
        del own["origin"]["plan"]
    path.write_text(json.dumps(record))
    only = from_folders([runs / "a-fisher", tmp_path / "p-0.5", tmp_path / "e"])
    assert [plan.name for plan in only.plans] == ["made by 0.501"]


def test_kinds_are_grouped_by_what_the_models_saw(runs: Path) -> None:
    view = from_folders([runs / "a-fisher", runs / "e"])
    assert view.evaluation
    assert {kind.name: kind.group for kind in view.evaluation.kinds} == {
        "prose": "calibrated",
        "licences": "unseen",
        "mail": "other",
    }


def test_a_plan_brings_its_audit_and_stands_without_an_evaluation(runs: Path) -> None:
    view = from_folders([runs / "p-whitened"])
    assert view.audit.metric == "whitened" and [plan.name for plan in view.plans] == ["p-whitened"]
    assert view.evaluation is None


def lay(place: Path, name: str, run: Saturation | Selection, kind: str, **changed: object) -> Path:
    """A run folder as ``audit`` leaves it."""
    folder = open_run_folder(place / name, kind, {})
    write_json(folder / f"{kind}.json", run.record.model_copy(update=changed))
    return folder


def test_saturation_and_selection_beside_the_others_are_shown(runs: Path, tmp_path: Path) -> None:
    found, capacity = tiny_measured()
    kept = lay(tmp_path, "sat", found, "saturation")
    lay(tmp_path, "sel", capacity, "selection")
    lay(tmp_path, "sel-other", capacity, "selection", fingerprint="0" * 16)  # of another model
    open_run_folder(tmp_path / "sat-killed", "saturation", {})  # not finished
    view = from_folders([tmp_path, runs / "a-fisher"])
    assert view.saturation and view.selection
    assert (view.saturation.folder, view.selection.folder) == ("sat", "sel")
    # One that was named is the one that is shown; of several that were not, none is chosen silently.
    second = lay(tmp_path, "sat-2", found, "saturation", seed=7)
    with pytest.raises(HeadcountError, match=r"there are 2 saturation audits: .*sat, .*sat-2"):
        from_folders([tmp_path, runs / "a-fisher"])
    named = from_folders([tmp_path, runs / "a-fisher", second])
    assert named.saturation and named.saturation.seed == 7
    plain = from_folders([runs / "a-fisher", kept])
    assert plain.saturation and plain.selection is None


def test_named_runs_that_cannot_be_shown_are_refused(runs: Path, tmp_path: Path) -> None:
    found, capacity = tiny_measured()
    other = lay(tmp_path, "sel-other", capacity, "selection", fingerprint="0" * 16)
    with pytest.raises(HeadcountError, match="sel-other was measured on another model"):
        from_folders([runs / "a-fisher", other])
    killed = open_run_folder(tmp_path / "sat-killed", "saturation", {})
    with pytest.raises(HeadcountError, match="no finished saturation audit"):
        from_folders([runs / "a-fisher", killed])
    killed = open_run_folder(tmp_path / "sel-killed", "selection", {})
    with pytest.raises(HeadcountError, match="no finished selection audit"):
        from_folders([runs / "a-fisher", killed])
    with pytest.raises(HeadcountError, match="no audit"):
        from_folders([lay(tmp_path, "sat", found, "saturation")])


def test_what_cannot_be_reported_is_named(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadcountError, match=r"there are 2 audits: .*a-fisher, .*a-whitened"):
        from_folders([runs])
    with pytest.raises(HeadcountError, match="holds no run"):
        from_folders([tmp_path])
    with pytest.raises(HeadcountError, match="no audit"):
        from_folders([runs / "e"])
    with pytest.raises(HeadcountError, match="2 evaluations"):
        from_folders([runs / "e", runs / "e", runs / "a-fisher"])
    open_run_folder(tmp_path / "m", "trim", {})
    with pytest.raises(HeadcountError, match="made by 'trim'"):
        from_folders([tmp_path / "m"])


def test_only_our_own_page_is_replaced(runs: Path, tmp_path: Path) -> None:
    view = from_folders([runs / "p-fisher", runs / "e"])
    page = write_report(tmp_path / "report.html", view)
    before = page.read_bytes()
    assert write_report(page, view).read_bytes() == before
    foreign = tmp_path / "thesis.html"
    foreign.write_text("mine")
    with pytest.raises(HeadcountError, match="was not made by headcount"):
        write_report(foreign, view)
    assert foreign.read_text() == "mine"
