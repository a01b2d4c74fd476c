"""What a run says of itself and of what it does to the page: its steps, the time left, what left; and which numbers a recording lacks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import pytest

from explorer.export import HELD, USUAL, catalogue, command_of, commands
from explorer.figures import figures
from explorer.gaps import absent
from explorer.recorded import seeds, survey
from explorer.records import Partial, Progress
from explorer.table import comparison
from explorer.ui.cancel import Cancel
from explorer.ui.page import Page
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.session import Shelf, arrange, keys_of
from explorer.ui.status import Clock
from explorer.ui.tab import Shell
from explorer.ui.tabs.speed import recorded, swept
from explorer.ui.tabs.tradeoffs.handlers import Points

SEED = list(seeds())
OPTION_VALUES = ("bundled", "", "bundled", 16, 0, 16, 16)
OPEN = "first"  # the tab that is open in these tests


class Slowly:
    """Runs RTN with 3 bits in groups of 32, with a part of it before its end."""

    def run(self, model: str, method: str, params: dict, **options: object) -> Iterator:
        yield from slowly(model, method)


@pytest.fixture
def page() -> Page:
    page = Page(Shell(Slowly(), Shelf(SEED), catalogue(), ["demo"]))
    page.asked = lambda values: ("demo", "rtn", {"bits": 3, "group_size": 32}, dict(zip(RUN_OPTIONS, OPTION_VALUES, strict=True)))
    return page


def test_a_run_says_which_configuration_left_while_it_runs_and_at_its_end(page: Page) -> None:
    told = [output[0] for output in page.run(keys_of(SEED), None, OPEN, "demo", "rtn", *OPTION_VALUES)]
    gone = f"{SEED[1].name} left the page: four stand beside the baseline"
    assert "2 of 2: RTN 3-bit g32: " in told[-2] and "once on this machine; then RTN 3-bit g32: " in told[0]
    assert gone in told[-1] and gone in told[-2]


def slowly(model: str, method: str) -> Iterator:
    """A run of a configuration that is not on the page, with a part of it before its end."""
    report = next(r for r in SEED if r.experiment.spec.method == method)
    if method != "none":
        spec = dataclasses.replace(report.experiment.spec, params=(("bits", 3), ("group_size", 32)))
        report = dataclasses.replace(report, experiment=dataclasses.replace(report.experiment, spec=spec))
    report = dataclasses.replace(report, provenance=report.provenance | {"recorded": False})
    yield Partial(dataclasses.replace(report, provenance=report.provenance | {"missing": ("speed",)}))
    for stage in ("quality", "integrity", "speed"):
        yield Progress(stage, 0, 1, model)
    yield report


def test_a_recorded_example_leaves_before_what_was_measured() -> None:
    own = [dataclasses.replace(r, provenance=r.provenance | {"recorded": False}) for r in SEED]
    shown, new = [SEED[0], own[1], SEED[2], own[3], own[4]], dataclasses.replace(SEED[1].experiment.spec, kv_bits=4)
    more, left = arrange(shown, dataclasses.replace(own[1], experiment=dataclasses.replace(own[1].experiment, spec=new)))
    assert left.startswith(f"{SEED[2].name} left the page: four stand") and SEED[2] not in more and len(more) == 5


def test_work_that_stalls_says_nothing_of_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("explorer.ui.status.time.monotonic", lambda: now[0])
    clock, left = Clock(), {}
    for done, second in ((0, 0), (1, 4), (2, 8), (2, 9), (2, 11), (2, 30), (3, 31)):
        now[0] = 100.0 + second
        line = clock.line(Progress("speed", done, 5, "round"))
        left[second] = int(found[1]) if (found := re.search(r"about (\d+) s left", line)) else None
    assert left == {0: None, 4: 16, 8: 12, 9: 11, 11: 9, 30: None, 31: 21}, "it never climbs while nothing is done"


def test_the_panels_cancel_stops_a_tabs_run_as_well(page: Page) -> None:
    panel, lab, asked = Cancel("Cancelled"), Cancel("Lab cancelled"), ([], None, OPEN, "demo", "rtn", *OPTION_VALUES)
    assert "Nothing is running" in panel.press_all([lab])[0]
    events = lab.heard(page.run)(*asked)
    next(events)
    assert panel.press_all([lab]) == ["Lab cancelled", "Lab cancelled"] and next(events)[0] == "Lab cancelled" and next(events, None) is None


def test_what_the_recorded_sweep_used_is_selected() -> None:
    assert swept(recorded()["batch"]) == 32 and swept(None) == 8


def test_what_a_recording_lacks_is_named_under_each_figure_and_on_its_badge() -> None:
    thin = next(r for r in survey().values() if r.name == "RTN 3-bit g64")
    for name, words in (("memory", "memory by part not recorded"), ("speed", "single tokens not recorded"), ("weights", "its weights not recorded")):
        told = absent([*SEED, thin], figures()[name].needs)
        assert told == f"RTN 3-bit g64: {words}."
    for figure in figures().values():
        assert not absent(SEED, figure.needs), "these have all that their kind has"
    table = comparison([*SEED, thin])
    assert table.count("recorded in part; Run measures the rest") == 2 and "recorded in part, " in table, "in the head of both tables"
    assert "Run measures the rest" not in comparison([*SEED, thin], live=False) and "in part" not in comparison(SEED)


def test_commands_say_once_what_files_hold_and_what_the_defaults_are() -> None:
    told = commands(SEED, live=True)
    assert told.count(HELD) == 1 and told.count(USUAL) == 1 and HELD not in commands(SEED[:1]) and USUAL not in commands(SEED)
    [plain] = [r for r in SEED if command_of(r) == "python -m explorer run"]
    assert "all defaults: RTN, {bits} bits, groups of {group_size}".format(**dict(plain.experiment.spec.params)) == USUAL
    assert f"<pre tabindex='0'>{command_of(plain)}</pre>" in told, "what is copied is the command alone"


def test_a_sweeps_estimate_says_for_which_machine(page: Page) -> None:
    assert re.search(r"about \d+ s on a quiet machine like the recorded one [(]estimated[)]", Points(page.shell).count("demo", ["rtn"], [3, 4], [64]))
