"""A sweep whose page is loaded anew: what the browser's tab keeps of it, and what the next page goes on with."""

from __future__ import annotations

import json

import pytest

from explorer.docs import CATALOGUE
from explorer.recorded import seeds
from explorer.records import Answer, Progress
from explorer.ui.session import Shelf
from explorer.ui.tab import Shell
from explorer.ui.tabs.tradeoffs.handlers import Points, TabState
from explorer.ui.tabs.tradeoffs.resumed import came, gone_on, noted, of

SEEDS = list(seeds())
OFFERED = ["rtn", "hqq"], [2, 3, 4], [64]
OPTIONS = ("bundled", "a secret", "bundled", 16, 7, 8, 16)


class Sweeps:
    """Gives the first seeds, then the answer, as the task "sweep" does."""

    def __init__(self) -> None:
        self.asked: list[dict] = []

    def do(self, task: str, arguments: dict):
        self.asked.append(arguments)
        for at, report in enumerate(SEEDS[:2]):
            yield Progress("sweep", at, 3, report.name)
            yield report
        yield Answer(task, {"done": 2, "failed": {}})


@pytest.fixture
def points() -> Points:
    return Points(Shell(Sweeps(), Shelf(SEEDS), json.loads(CATALOGUE.read_text())["methods"], ["demo"]))


def marks(updates: list[list]) -> list[str]:
    return [update[7] for update in updates if isinstance(update[7], str)]


def pressed(points: Points, options: tuple = OPTIONS) -> list[list]:
    start = TabState().after(points.shell.shelf.first()).text()
    return list(noted(points)("demo", ["rtn"], [4, 8], [64], start, "bits", "kld_mean", *options))


def reloaded(points: Points, told: str) -> list[list]:
    return list(gone_on(points, (["rtn", "hqq"], [2, 3, 4, 8], [64]))(told, TabState().text(), "bits", "kld_mean"))


def test_a_page_keeps_how_far_a_sweep_came(points: Points) -> None:
    told = marks(pressed(points))
    assert [json.loads(mark)["done"] for mark in told] == [0, 1, 2], "once at the start and with each configuration"
    assert "secret" not in "".join(told) and json.loads(told[-1])["options"]["kv_bits"] == 8
    line = came(points, told[1], "demo", ["rtn"], [8, 4], [64])
    assert "1 of 3 configurations of demo are measured" in line and "goes on with the rest" in line
    other = came(points, told[1], "demo", ["hqq"], [8, 4], [64])
    assert "measured" not in other and "3 configurations" not in came(points, "", "demo", ["rtn"], [4], [64])


def test_a_page_that_was_loaded_anew_goes_on_with_the_same_sweep(points: Points) -> None:
    mark = marks(pressed(points))[1]
    first, *rest = reloaded(points, f"reload {mark}")
    asked = points.shell.runner.asked[-1]
    assert (asked["model"], asked["methods"], asked["bits"], asked["groups"]) == ("demo", ["rtn"], [4, 8], [64]) and asked["options"]["seed"] == 7
    assert [update["value"] for update in first[8:]] == [["rtn"], [4, 8], [64]] and "1 of 3" in first[0]
    assert "going on after a reload: sweep" in rest[0][0] and "done" in rest[-1][0] and json.loads(marks(rest)[-1])["done"] == 2
    assert "going on after a restart of the server" in reloaded(points, f"restart {mark}")[1][0]


def test_what_was_cancelled_or_of_a_text_of_ones_own_is_told_only(points: Points) -> None:
    mark = marks(pressed(points))[1]
    asked = len(points.shell.runner.asked)
    own = marks(pressed(points, ("pasted", *OPTIONS[1:])))[1]
    for told in (f"stopped {mark}", f"reload {own}"):
        [[line, *_]] = reloaded(points, told)
        assert "1 of 3 configurations of demo are measured and stored" in line
    assert len(points.shell.runner.asked) == asked + 1


@pytest.mark.parametrize("text", ["", "reload", "reload {}", "reload []", 'reload {"model": 1, "methods": 2, "bits": 3, "groups": 4, "options": 5, "done": 6}'])
def test_nonsense_starts_nothing(points: Points, text: str) -> None:
    assert not reloaded(points, text) and not points.shell.runner.asked


def test_choices_that_are_not_offered_are_left_out() -> None:
    told = {"model": "demo", "methods": ["rtn", "<b>"], "bits": [4, "4", [1]], "groups": [64], "options": {"seed": 1, "x": 2}, "done": "many"}
    found = of(json.dumps(told), *OFFERED)
    assert (found["methods"], found["bits"], found["done"]) == (["rtn"], [4], 0) and "x" not in found["options"]
    assert of(json.dumps(told | {"bits": [7]}), *OFFERED) == {}
