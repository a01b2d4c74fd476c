"""The shelf is shared by all visitors: what one of them opens or measures changes no other page, and pages say what left them and what is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext

from explorer import rights
from explorer.learn.runs import recorded
from explorer.link import Wanted
from explorer.recorded import seeds, survey
from explorer.records import BUSY, InputError, Measurement, ModelRef, Progress, Report, disturbed
from explorer.table import comparison
from explorer.ui import share
from explorer.ui.page import Page
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.session import Shelf, keys_of, seats
from explorer.ui.tab import Shell, View
from explorer.ui.tabs.tradeoffs.handlers import Points, TabState
from explorer.ui.visitor import owner

OPTIONS = ("bundled", "", "bundled", 16, 0, 16, 16)
GIVEN = {"evaluation": "bundled", "calibration": "bundled", "sequences": 16, "seed": 0}
SEEDS = list(seeds())
NAMES = "first"  # the tab that is open in these tests


def measured(report: Report, device: str = "here", stored: bool = False) -> Report:
    """The same experiment, measured on this machine."""
    return dataclasses.replace(report, provenance=report.provenance | {"recorded": False, "from_store": stored, "device": device, "date": "today"})


class Here:
    """Measures every seed and point of the survey anew, with one line of progress where `told`."""

    def __init__(self, told: bool = True) -> None:
        self.told = told

    def run(self, model: str, method: str, params: dict, **options: object) -> Iterator:
        if self.told:
            yield Progress("load model", 0, 1, model)
        known = [*SEEDS, *survey().values()]
        yield measured(next(r for r in known if r.experiment.spec.method == method and dict(r.experiment.spec.params).items() >= params.items()))


def opened(runner: Here) -> Page:
    """A page whose one tab shows (name, whether it was recorded) of what is compared."""
    shell = Shell(runner, Shelf(SEEDS), [], ["demo"])
    shell.views[NAMES] = View([object()], lambda reports, layer: [[(r.name, bool(r.provenance.get("recorded"))) for r in reports]])
    return Page(shell)


@pytest.fixture
def page() -> Page:
    return opened(Here())


def test_a_thin_recording_takes_no_place_of_a_full_one() -> None:
    shelf, thin, wide = Shelf(SEEDS), recorded()["rtn4"], SEEDS[2]
    assert thin.experiment == wide.experiment and len(thin.measurements) < len(wide.measurements)
    assert shelf.pick([shelf.add(thin)]) == [wide]
    shelf = Shelf([])
    for report in (thin, wide, thin):
        shelf.add(report)
    assert shelf.pick([thin.key])[0] is wide


def test_what_one_visitor_opens_changes_no_new_page(page: Page) -> None:
    points, shelf = Points(page.shell), page.shell.shelf
    for seed in SEEDS:
        points.opened(seed.key, "", keys_of(SEEDS))
        points.compared(seed.key, "", keys_of(SEEDS), None)
    assert all(shown is seed for shown, seed in zip(shelf.pick(keys_of(shelf.first())), SEEDS, strict=True))


def run(page: Page, method: str, keys: list[str], **params: object) -> list[list]:
    page.asked = lambda values: ("demo", method, params, dict(zip(RUN_OPTIONS, OPTIONS, strict=True)))
    return list(page.run(keys, None, NAMES, *[None] * len(page.shell.controls)))


def test_what_one_visitor_measures_is_on_his_page_alone(page: Page) -> None:
    shelf, params = page.shell.shelf, dict(SEEDS[2].experiment.spec.params)
    own = run(page, "rtn", keys_of(SEEDS), **params)[-1][1].value
    assert [r.provenance["device"] == "here" for r in shelf.pick(own)] == [True, False, True, False, False], "the baseline and what was run"
    assert shelf.pick(keys_of(shelf.first())) == SEEDS, "a new page still shows what its line says: recorded results"
    assert shelf.with_baseline(SEEDS[2:3])[0] is SEEDS[0] and shelf.with_baseline(shelf.pick(own[1:]))[0].provenance["device"] == "here"
    assert page.reset(None, NAMES)[-1] == [(r.name, True) for r in SEEDS]
    assert page.shell.views[NAMES].drawn(shelf.pick(own), "")[0][2] == ("RTN 4-bit g64", False), "and his page stays as it was"


def test_a_link_shows_a_seed_or_says_that_somebody_measured_it_before() -> None:
    shelf, other = Shelf(SEEDS), next(r for r in survey().values() if r.name == "HQQ 4-bit g64")
    for report in (SEEDS[2], other):
        shelf.add(measured(report))
    assert shelf.find("demo", SEEDS[2].experiment.spec, GIVEN) is SEEDS[2]
    found = shelf.find("demo", other.experiment.spec, GIVEN)
    assert "stored, measured today" in comparison([found]) and "measured now" not in comparison([found])


def test_a_recording_is_shown_while_it_is_measured_here(page: Page) -> None:
    point = next(r for r in survey().values() if r.name == "RTN 3-bit g64")
    steps = run(page, "rtn", keys_of(SEEDS[:1]), **dict(point.experiment.spec.params))
    assert "busy" in steps[0][0] and steps[0][-1] == [("16-bit baseline", True), (point.name, True)]
    assert "done" in steps[-1][0] and steps[-1][-1] == [("16-bit baseline", False), (point.name, False)]
    again = run(page, "rtn", steps[-1][1].value, **dict(point.experiment.spec.params))
    assert "value" not in again[0][1] and again[-1][-1] == steps[-1][-1], "what was measured here is not replaced by a recording"
    assert len(run(opened(Here(told=False)), "rtn", keys_of(SEEDS[:1]), **dict(point.experiment.spec.params))) == 1, "a stored answer needs none"


def test_ones_own_point_stands_for_the_recorded_one(page: Page) -> None:
    point = next(r for r in survey().values() if r.name == "RTN 3-bit g64")
    own = page.shell.shelf.add(measured(point))
    held = TabState().after([SEEDS[0], *page.shell.shelf.pick([own])])
    shown = [r for r in Points(page.shell).reports(held.text()) if r.experiment == point.experiment]
    assert held.keys == (own,) and [r.key for r in shown] == [own]


def test_all_that_is_compared_can_be_taken_off_at_once(page: Page) -> None:
    line, compared, *_, shown = page.cleared("1", None, NAMES)
    assert "baseline stays" in line and "Reset brings" in line and compared.value == [key for _, key in seats(SEEDS[:1])]
    assert shown == [("16-bit baseline", True)]
    assert all("value" not in part for part in page.cleared("", None, NAMES)), "nothing was taken off"
    line, compared, *_ = page.choose(keys_of(SEEDS[1:]), None, NAMES)
    assert "baseline stays" in line and compared.value == [key for _, key in seats(SEEDS)]
    assert "Off the page." in (told := page.choose(keys_of(SEEDS[:3]), None, NAMES)[0]) and "baseline" not in told


def test_a_busy_machine_is_told_by_its_measurement() -> None:
    assert disturbed([Measurement("decode_waited", BUSY + 1)]) and not disturbed([Measurement("decode_waited", BUSY), Measurement("size", 99.0)])


@contextmanager
def logged_in(token: str, over: bool = False) -> Iterator[None]:
    """Requests inside come with this token of the hub, "" for none; over: the login is."""
    told = {"oauth_info": {"access_token": token, "expires_at": 0 if over else 1e12}} if token else {}
    before = LocalContext.request.set(SimpleNamespace(session_hash="", request=SimpleNamespace(scope={"session": told})))
    try:
        yield
    finally:
        LocalContext.request.reset(before)


def of_model(report: Report, name: str, revision: str = "c0ffee") -> Report:
    return measured(dataclasses.replace(report, experiment=dataclasses.replace(report.experiment, model=ModelRef(name, revision))))


class Stored:
    """Finds reports in the store, for the login that may see them alone; counts how often it was asked."""

    def __init__(self, reports: list[Report], token: str = "") -> None:
        self.reports, self.owner, self.asked = reports, rights.owner(token), 0

    def run(self, model: str, method: str, params: dict, **options: object) -> Iterator:
        self.asked += 1
        if owner() != self.owner:
            raise InputError(f"The hub knows no public model {model!r}, or it is private.")
        yield next(r for r in self.reports if r.experiment.spec.method == method and dict(r.experiment.spec.params) == params)


@pytest.mark.parametrize("name", ["org/model", "/models/mine"])
def test_a_link_shows_what_a_models_name_means_now(page: Page, name: str) -> None:
    """Its commit has moved, or its folder was written to, since somebody measured it. The address bar still names what the page shows."""
    old, new = ([of_model(report, name, revision) for report in SEEDS[:2]] for revision in ("old", "new"))
    keys = [page.shell.shelf.add(report) for report in old]
    page.shell.runner = Stored(new)
    wanted = Wanted(model=name, compared=(new[1].experiment.spec,))
    drawn = list(share._compared(page, wanted, []))[-1][1]
    assert [r.experiment.model.revision for r in page.shell.shelf.pick(drawn[0].value)] == ["new", "new"]
    assert page.shell.shelf.pick(keys) == old and page.shell.shelf.known(name, wanted.compared[0], GIVEN)


def test_a_link_of_the_bundled_model_asks_nobody(page: Page) -> None:
    page.shell.runner = Stored([])
    other = next(r for r in survey().values() if r.name == "HQQ 4-bit g64")
    page.shell.shelf.add(measured(other))
    assert len(list(share._compared(page, Wanted(compared=(SEEDS[1].experiment.spec, other.experiment.spec)), []))) == 1 and not page.shell.runner.asked


def test_what_was_measured_with_a_login_is_shown_to_that_login_alone(page: Page) -> None:
    """By keys, which whoever knows a gated model's commit can work out, by a link, as a baseline and as a file."""
    shelf, private = page.shell.shelf, [of_model(r, "ada/private") for r in SEEDS[:2]]
    page.shell.runner = Stored(private, "hf_ada")
    wanted = Wanted(model="ada/private", compared=(private[1].experiment.spec,))
    with logged_in("hf_ada", over=True):  # it ended while the run was on
        keys = [shelf.add(report) for report in private]
    with logged_in("hf_ada"):
        assert shelf.pick(keys) == private and shelf.with_baseline(private[1:]) == private
        assert "Opened from a link" in list(share._compared(page, wanted, []))[-1][0]
    for token in ("hf_bob", ""):
        with logged_in(token):
            assert shelf.pick(keys) == [] and shelf.with_baseline(private[1:]) == private[1:]
            assert shelf.known("ada/private", private[1].experiment.spec, GIVEN) is None
            assert [updates for _, updates in share._compared(page, wanted, [])] == [None]
            files = share.file_of(page, "csv", keys, "")
            assert "private" not in Path(next(files)).read_text()
            assert [shelf.add(report) for report in private] == keys and shelf.pick(keys) == private, "once the hub has let this one in, too"


def test_what_needs_no_login_is_shared_by_all() -> None:
    shelf, point = Shelf(SEEDS), next(r for r in survey().values() if r.name == "HQQ 4-bit g64")
    with logged_in("hf_ada"):
        keys = [shelf.add(report) for report in (measured(point), of_model(point, "arch:qwen2.5-0.5b"))]
    with logged_in(""):
        keys.append(shelf.add(of_model(point, "bob/public")))
    with logged_in("hf_bob"):
        assert len(shelf.pick(keys)) == 3 and shelf.find("demo", point.experiment.spec, GIVEN) and shelf.known("bob/public", point.experiment.spec, GIVEN)
