"""One registry for everything that is asked for by name: order, duplicates, and the messages of five rooms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headcount import bounds, constructions, tasks
from headcount.core.errors import HeadcountError
from headcount.core.names import Registry
from headcount.lab import models
from headcount.lab.figures import registry as figures


def test_entries_keep_their_order_and_iterate() -> None:
    registry: Registry[int] = Registry("number", [("two", 2), ("one", 1)])
    assert registry.register("three", 3) == 3
    assert registry.names() == ("two", "one", "three")
    assert list(registry) == [2, 1, 3] and len(registry) == 3
    assert "one" in registry and "four" not in registry and 1 not in registry
    assert registry.get("one") == 1


def test_a_name_is_registered_once() -> None:
    registry = Registry("number", [("one", 1)])
    with pytest.raises(ValueError, match="the number 'one' is registered twice"):
        registry.register("one", 2)
    with pytest.raises(ValueError, match="'one' is registered twice"):
        Registry("number", [("one", 1), ("one", 1)])
    assert registry.get("one") == 1


def test_an_unknown_name_lists_all_when_none_is_close() -> None:
    registry = Registry("number", [("one", 1), ("two", 2)])
    with pytest.raises(HeadcountError) as refused:
        registry.get("eleven-million")
    assert (refused.value.message, refused.value.fix) == (
        "there is no number 'eleven-million'",
        "choose one of one, two",
    )


@pytest.mark.parametrize(
    ("get", "wrong", "message"),
    [
        (tasks.get, "match33", "there is no task 'match33'; did you mean match3?"),
        (bounds.get, "qsa-bit", "there is no bound 'qsa-bit'; did you mean qsa-bits?"),
        (constructions.build, "matchs", "there is no construction 'matchs'; did you mean match-s?"),
        (models.config, "lstn", "there is no model 'lstn'; did you mean lstm?"),
        (figures.get, "qsa-widht", "there is no figure 'qsa-widht'; did you mean qsa-width?"),
        (tasks.get, "?", f"there is no task '?'; choose one of {', '.join(tasks.names())}"),
        (bounds.get, "?", f"there is no bound '?'; choose one of {', '.join(bounds.ids())}"),
        (constructions.build, "?", f"there is no construction '?'; choose one of {', '.join(constructions.names())}"),
        (models.config, "?", f"there is no model '?'; choose one of {', '.join(models.names())}"),
        (figures.get, "?", f"there is no figure '?'; choose one of {', '.join(figures.names())}"),
    ],
)
def test_messages_of_every_registry(get: Callable[[str], object], wrong: str, message: str) -> None:
    with pytest.raises(HeadcountError) as refused:
        get(wrong)
    assert str(refused.value) == message
