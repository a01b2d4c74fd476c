"""A run that is on when its page is loaded anew: what the browser's tab keeps of it, and what the next page goes on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest

from explorer.docs import CATALOGUE
from explorer.recorded import seeds
from explorer.records import InputError, Progress
from explorer.ui.again import gone_on, kept
from explorer.ui.page import Page
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.session import Shelf, seats
from explorer.ui.tab import Shell

SEEDS = list(seeds())
USUAL = ("bundled", None, "bundled", 16, 0, 16, 16)


class Gives:
    """Gives the seed of the asked method, or raises; notes what was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, []

    def run(self, model: str, method: str, params: dict, **options: object) -> Iterator:
        self.asked.append((model, method, params, options))
        yield Progress("load model", 0, 1, model)
        if self.error:
            raise self.error
        yield next(r for r in SEEDS if r.experiment.spec.method == method)


def opened(error: Exception | None = None) -> Page:
    catalogue = json.loads(CATALOGUE.read_text())["methods"]
    page = Page(Shell(Gives(error), Shelf(SEEDS), catalogue, ["demo"]))
    page.asked = lambda values: (values[0], values[1], {"bits": 3, "group_size": 64}, dict(zip(RUN_OPTIONS, values[2:], strict=True)))
    return page


def pressed(page: Page, model: str = "demo", options: tuple = USUAL) -> Iterator[list]:
    keys = [key for _, key in seats(SEEDS[:1])]
    return kept(page, page.run)(keys, None, "compare", model, "gptq", *options)


def reloaded(page: Page, link: str, how: str = "reload") -> list[list]:
    return list(kept(page, partial(gone_on, page))(f"{how} {link}", [], None, "compare"))


def test_a_page_keeps_what_is_asked_for_until_it_is_there() -> None:
    first, *_, last = pressed(opened())
    [link] = json.loads(first[-1])
    assert "method=gptq" in link and "bits=3" in link and "model=demo" in link
    assert "done" in last[0] and last[-1] == ""


def test_nothing_is_kept_of_a_run_that_failed_or_was_closed() -> None:
    assert [*pressed(opened(InputError("No.")))][-1][-1] == ""
    page = opened()
    cancelled = pressed(page)
    assert next(cancelled)[-1]
    cancelled.close()
    assert not page.runs.links()


def test_two_runs_are_kept_in_their_order() -> None:
    page = opened()
    first, second = pressed(page), pressed(page, model="org/other")
    next(first)
    assert ["demo" in link for link in json.loads(next(second)[-1])] == [True, False]
    assert "demo" not in str([*first][-1][-1]) and [*second][-1][-1] == ""


def test_a_page_that_was_loaded_anew_goes_on_with_the_same_run() -> None:
    page, options = opened(), ("bundled", "a secret", "bundled", 16, 7, 8, 16)
    [link] = json.loads(next(pressed(page, "org/model", options))[-1])
    assert "secret" not in link
    page = opened()
    steps = reloaded(page, link)
    model, method, params, given = page.shell.runner.asked[-1]
    assert (model, method) == ("org/model", "gptq") and params.items() >= {"bits": 3, "group_size": 64}.items()
    assert (given["seed"], given["kv_bits"], given["text"]) == (7, 8, None)
    assert "it goes on from what is stored" in steps[0][0] and [update.get("value") for update in steps[0][3:5]] == ["org/model", "gptq"]
    assert ", going on after a reload: " in steps[1][0] and "It went on after a reload" in steps[-1][0] and steps[-1][-1] == ""
    after = reloaded(opened(), link, "restart")
    assert "The server was restarted while a run was on" in after[0][0] and after[0][4].get("value") == "gptq"
    other = reloaded(opened(), link, "navigate")
    assert all("value" not in update for update in other[0][3:-1]), "a page that was opened by another link shows what that asks for"
    assert "done" in other[-1][0]


@pytest.mark.parametrize("link", ["model=demo&method=gptq&evaluation=pasted", "model=demo&method=no", "", "\ud800"])
def test_a_text_of_the_visitors_own_is_asked_for_again(link: str) -> None:
    page = opened()
    [[line, *rest]] = reloaded(page, link)
    assert "Press Run" in line or "paste it again and press Run" in line
    assert not page.shell.runner.asked and rest[-1] == "" and all("value" not in update for update in rest[:-1])
