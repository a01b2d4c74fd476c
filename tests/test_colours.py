"""A configuration keeps its colour, dash, marker and pattern while it is on the page, in every figure and in the table, and in a link to it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from explorer.docs import CATALOGUE
from explorer.figures import COLOURS, figures
from explorer.link import parse, query
from explorer.recorded import ladder, seeds
from explorer.records import Measurement, QuantSpec, Report
from explorer.table import comparison
from explorer.ui.page import Page
from explorer.ui.session import Shelf, seats, specs_by_place
from explorer.ui.share import file_of
from explorer.ui.tab import Shell
from explorer.ui.written import samples, texts
from explorer.verdict import guard

METHODS = json.loads(CATALOGUE.read_text())["methods"]
SEEDS = [dataclasses.replace(r, measurements=(*r.measurements, Measurement("training_loss", [2.0, 1.0]))) for r in seeds()]
LAYER = "layers.3.mlp.down_proj"
OFF = 2  # the place whose configuration is taken off


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(SEEDS)


def left(shelf: Shelf, *off: int) -> list[Report]:
    """A new page from which the configurations at these places were taken off."""
    return shelf.pick([key for place, (_, key) in enumerate(seats(shelf.first())) if place not in off])


def looks(drawn: dict[str, Any]) -> dict[tuple[str, str], tuple]:
    """How each trace of a figure looks, by its name and kind."""
    parts = [(part, name) for part in ("line", "marker") for name in ("color", "symbol", "dash", "pattern")]
    return {(t.get("name", ""), t["type"] + t.get("mode", "")): tuple(str(t.get(part, {}).get(name)) for part, name in parts) for t in drawn["data"]}


def swatches(html: str) -> dict[str, str]:
    """The colour of each name in a table or a row of cards."""
    return {name.strip(): place for place, name in re.findall(r"swatch (s\d)'></span>([^<]+)", html)}


@pytest.mark.parametrize("figure", figures().values(), ids=lambda f: f.name)
def test_those_that_stay_keep_their_looks_in_every_figure(shelf: Shelf, figure) -> None:
    before, after = (looks(figure.draw(reports, LAYER)) for reports in (shelf.first(), left(shelf, OFF)))
    assert after and all(before[name] == look for name, look in after.items())
    assert after == looks(figure.draw(shelf.pick(key for _, key in seats(left(shelf, OFF))), LAYER)), "as the page says its places again"


def test_those_that_stay_keep_their_swatches(shelf: Shelf) -> None:
    every, few = shelf.first(), left(shelf, OFF)
    for shown in (comparison, guard, samples):
        before, after = swatches(shown(every)), swatches(shown(few))
        assert len(before) == len(after) + 1 and after.items() <= before.items()
    one = {"ids": [], "repetition": 0.0, "cycle": 0, "diverged": None}
    written = texts({"runs": [one | {"label": r.name} for r in few], "done": False}, [0, *(int(key[-1]) for _, key in seats(few)[1:])])
    assert swatches(written) == swatches(comparison(few))


def test_a_new_configuration_takes_the_first_free_place(shelf: Shelf) -> None:
    new = next(r for r in ladder() if r.experiment.spec.get("bits") == 6)
    page, gone = shelf.arrange(left(shelf, 1, 3), new)
    assert not gone and [key[-1] for _, key in seats(page)] == ["0", "1", "2", "4"] and page[1].name == new.name
    [dot] = [t for t in figures()["quality"].draw(page, "")["data"] if t["name"] == SEEDS[4].name]
    assert dot["marker"]["color"] == COLOURS[4] and "place" not in SEEDS[4].provenance, "the report itself is everybody's"
    full, _ = shelf.arrange(shelf.arrange(page, SEEDS[1])[0], SEEDS[3])
    assert [key[-1] for _, key in seats(full)] == ["0", "1", "2", "3", "4"], "one for each"


def test_what_was_drawn_of_a_page_is_shared(shelf: Shelf) -> None:
    """The tabs tell reports apart by identity."""
    assert [*map(id, left(shelf, OFF))] == [*map(id, left(shelf, OFF))]
    assert [*map(id, shelf.first())] == [*map(id, left(shelf))]


def test_a_link_gives_the_same_colours_again(shelf: Shelf) -> None:
    specs = specs_by_place(left(shelf, 1, 3, 4))
    made = query("", "", "demo", QuantSpec("rtn"), {}, specs, METHODS)
    assert made.count("with=") == 2, "nothing stands for free places after the last"
    found = parse(parse_qsl(made, keep_blank_values=True), METHODS, [])
    assert found.compared == (None, SEEDS[2].experiment.spec) and not found.wrong


def test_a_place_that_a_page_makes_up_is_none(shelf: Shelf) -> None:
    [one] = shelf.pick([f"{SEEDS[1].key}.99"])
    assert one is SEEDS[1] and shelf.pick([f"{SEEDS[1].key}.x", f"{SEEDS[2].key}.-1"]) == SEEDS[1:3]
    page = shelf.pick([f"{r.key}.3" for r in SEEDS])
    assert [key[-1] for _, key in seats(page)] == ["0", "1", "2", "3", "4"]


def test_files_hold_no_place_but_the_report_its_colours(shelf: Shelf) -> None:
    page, keys, made = Page(Shell(None, shelf, METHODS, ["demo"])), [key for _, key in seats(left(shelf, OFF))], {}
    for kind in ("json", "html"):
        files = file_of(page, kind, keys, LAYER)
        made[kind] = Path(next(files)).read_text()
    assert '"place"' not in made["json"] and swatches(made["html"]) == swatches(comparison(left(shelf, OFF)))
