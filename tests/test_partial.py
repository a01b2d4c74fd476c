"""A run that goes on shows what it has measured: partial reports grow, nothing takes one for whole, and what was measured stays when it ends early."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from explorer.answers import answers
from explorer.detectors import sentence, verdicts
from explorer.experiment import LocalRunner, metric_key
from explorer.export import as_csv, as_json
from explorer.findings import UNSURE, level
from explorer.loader import Loader
from explorer.metrics import metrics
from explorer.recorded import seeds
from explorer.records import Answer, Event, InputError, Measurement, Partial, Progress, QuantSpec, Report
from explorer.report_page import as_html
from explorer.store import Store
from explorer.table import comparison
from explorer.ui import going
from explorer.ui.pace import Pace
from explorer.ui.page import Page
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.session import Shelf, keys_of, seats
from explorer.ui.status import Clock
from explorer.ui.tab import Shell, View
from explorer.ui.tabs.tradeoffs.handlers import TabState
from explorer.ui.tabs.trainer import attachable
from explorer.ui.tabs.trainer.interviewer import Interviewer
from explorer.verdict import judged
from tests.serving import untimed
from tests.test_worker import Service

CPU = torch.device("cpu")
FEW = {"tokens": 1024, "length": 256}
OPTIONS = ("bundled", "", "bundled", 16, 0, 16, 16)
GIVEN = {"evaluation": "bundled", "calibration": "bundled", "sequences": 16, "seed": 0}
SEEDS = list(seeds())
TAB = "first"  # the tab that is open in these tests


def here(report: Report, bits: int = 3) -> Report:
    """A seed as if it was another configuration that was measured here."""
    spec = QuantSpec.of("rtn", **(dict(report.experiment.spec.params) | {"bits": bits}))
    experiment = dataclasses.replace(report.experiment, spec=spec)
    return Report(experiment, report.measurements, report.provenance | {"recorded": False, "label": f"RTN {bits}-bit g64"})


WHOLE = here(SEEDS[2])
LATER = untimed(WHOLE)
EARLY = dataclasses.replace(
    LATER,
    measurements=tuple(m for m in LATER.measurements if not m.layer and m.metric != "sample_text"),
    provenance=LATER.provenance | {"missing": ["integrity", "layers", "sample", "speed"]},
)


def test_what_a_run_has_grows_until_it_is_whole(store: Store, tiny_folder: Path) -> None:
    """Size and quality come first and speed last; nothing of what is not whole is stored, and a run that was broken off begins with what it had."""
    runner, asked = LocalRunner(store, Loader(CPU)), (str(tiny_folder), "rtn", {"bits": 4, "granularity": "channel"})
    events = list(runner.run(*asked, **FEW))
    parts, last = [e.report for e in events if isinstance(e, Partial)], events[-1]
    assert 2 <= len(parts) <= 4 and not last.missing and last.key not in keys_of(parts) and "missing" not in last.provenance
    assert {"size", "quality"}.isdisjoint(parts[0].missing) and parts[0].missing[-1] == "speed" and parts[-1].missing == ("speed",)
    assert parts[0].value("kld_mean") is not None and parts[0].value("bits_per_weight") > 4 and parts[0].value("decode_tokens_per_second") is None
    for fewer, more in zip(parts, [*parts[1:], last], strict=True):
        assert all(m in more.measurements for m in fewer.measurements)
        assert len(fewer.measurements) < len(more.measurements) and set(more.missing) < set(fewer.missing)
    assert not parts[0].provenance["from_store"] and set(parts[0].provenance["measured_now"]) == set(metrics()) - set(parts[0].missing)

    cut = runner.run(str(tiny_folder), "rtn", {"bits": 5, "granularity": "channel"}, **FEW)
    part = next(e.report for e in cut if isinstance(e, Partial))
    cut.close()
    kept = {name for name, metric in metrics().items() if store.get(metric_key(part.experiment, metric, CPU))}
    assert kept == set(metrics()) - set(part.missing)
    again = list(runner.run(str(tiny_folder), "rtn", {"bits": 5, "granularity": "channel"}, **FEW))
    first = next(e for e in again if isinstance(e, Partial))
    assert again.index(first) < next(i for i, e in enumerate(again) if isinstance(e, Measurement)) and first.report.measurements == part.measurements
    assert set(again[-1].provenance["measured_now"]) == set(part.missing)
    assert not any(isinstance(e, Partial) for e in runner.run(*asked, **FEW)), "what is stored is whole at once"


def test_a_sweep_gives_whole_reports_alone(store: Store, tiny_folder: Path) -> None:
    asked = {"model": str(tiny_folder), "methods": ["nf4"], "bits": [4], "groups": [32], "options": FEW}
    events = list(LocalRunner(store, Loader(CPU)).do("sweep", asked))
    assert any(isinstance(e, Report) for e in events) and not any(isinstance(e, Partial) for e in events)


class Growing:
    """Gives the baseline, then a configuration in two parts, each followed by a line of progress; `error` comes in the place of the whole."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def run(self, model: str, method: str, params: dict, **options: object) -> Iterator[Event]:
        yield Progress("load model", 0, 1, model)
        if method == "none":
            base = Report(SEEDS[0].experiment, SEEDS[0].measurements, SEEDS[0].provenance | {"recorded": False})
            yield Partial(untimed(base))
            yield Progress("speed", 0, 6)
            yield base
            return
        yield Partial(EARLY)
        yield Progress("layers", 0, 6)
        yield Partial(LATER)
        yield Progress("training", 0, 6)
        if self.error:
            raise self.error
        yield WHOLE


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    """A page whose one tab shows (name, numbers of the whole model, what is missing, whether that was stopped) of what is compared."""
    monkeypatch.setattr(going, "REDRAWN", 0.0)
    shell = Shell(Growing(), Shelf(SEEDS), [], ["demo"])

    def render(reports: list[Report], layer: str) -> list:
        return [[(r.name, len(r.measurements), r.missing, r.stopped) for r in reports]]

    shell.views |= {TAB: View([object()], render), "other": View([object()], render)}
    made = Page(shell)
    made.asked = lambda values: ("demo", "rtn", {"bits": 3}, dict(zip(RUN_OPTIONS, OPTIONS, strict=True)))
    return made


def run(page: Page, keys: list[str] | None = None) -> Iterator[list]:
    return page.run(keys_of(SEEDS[:1]) if keys is None else keys, None, TAB, *[None] * len(page.shell.controls))


def drawings(steps: list[list], at: int = 3) -> list[list]:
    """What the tab at this output was drawn with, once a drawing."""
    return [step[at] for step in steps if isinstance(step[at], list)]


def test_the_page_fills_while_a_run_goes_on(page: Page) -> None:
    steps = list(run(page))
    shown = drawings(steps)
    assert [part[-1][2] for part in shown] == [EARLY.missing, ("speed",), ()] and not any(row[3] for part in shown for row in part)
    assert [row[0] for row in shown[0]] == ["16-bit baseline", "RTN 3-bit g64"] and shown[0][0][2] == (), "a whole baseline stays until the new one is whole"
    assert shown[0][-1][1] < shown[1][-1][1] < shown[2][-1][1]
    assert steps[-1][1].value == [key for _, key in seats([page.shell.shelf.pick(steps[-1][1].value)[0], WHOLE])]
    again = drawings(list(run(page, steps[-1][1].value)))
    assert [part[-1][2] for part in again] == [()], "what is whole on the page gives way to nothing that is not"


def test_no_two_drawings_within_a_second(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(going, "REDRAWN", 60.0)
    assert [part[-1][2] for part in drawings(list(run(page)))] == [EARLY.missing, ()]


def test_the_tab_that_is_open_now_is_drawn(page: Page) -> None:
    events = run(page)
    for _ in range(2):
        next(events)
    page.opened("other", keys_of(SEEDS[:1]), None)
    rest = list(events)
    assert not drawings(rest) and drawings(rest, 4)[-1][-1][2] == ()


@pytest.mark.parametrize("error", [InputError("The worker process died during this run."), RuntimeError("odd")])
def test_what_was_measured_stays_after_a_failure(page: Page, error: Exception) -> None:
    page.shell.runner.error = error
    last = list(run(page))[-1]
    assert "error" in last[0] and last[3][-1] == ("RTN 3-bit g64", len(LATER.measurements), ("speed",), True)
    page.shell.runner.error = None
    assert [part[-1][2:] for part in drawings(list(run(page, last[1].value)))] == [(EARLY.missing, False), (("speed",), False), ((), False)]


def test_a_run_that_waited_for_one_that_failed_shows_it_as_stopped(page: Page) -> None:
    first = run(page)
    part = next(step for step in first if isinstance(step[3], list))
    page.asked = lambda values: ("demo", "none", {}, dict(zip(RUN_OPTIONS, OPTIONS, strict=True)))
    later = run(page, part[1].value)
    assert "waits for your run before it" in next(later)[0]
    page.shell.runner.error = InputError("odd")
    list(first)
    assert drawings(list(later))[-1][-1] == ("RTN 3-bit g64", len(EARLY.measurements), EARLY.missing, True)


def test_what_was_measured_stays_after_cancel(page: Page) -> None:
    events = run(page)
    step = next(step for step in events if isinstance(step[3], list))
    keys = step[1].value
    assert page.opened(TAB, keys, None)[1][-1][3] is False, "while it goes on, a tab that is opened says so"
    events.close()
    assert page.cancelled(keys, None, TAB)[-2][-1] == ("RTN 3-bit g64", len(EARLY.measurements), EARLY.missing, True)
    assert page.opened(TAB, keys, None)[1][-1][3], "whatever line was still on its way"
    assert all("value" not in part for part in page.cancelled(keys_of(SEEDS), None, TAB)), "a page of whole reports stays as it is"


@pytest.mark.parametrize("closed_first", [True, False])
def test_cancel_between_two_drawings_keeps_all_that_was_measured(page: Page, monkeypatch: pytest.MonkeyPatch, closed_first: bool) -> None:
    """A second passes from a drawing to the next; gradio closes the run before the button is heard, or after."""
    monkeypatch.setattr(going, "REDRAWN", 60.0)
    events, keys = run(page, []), list[str]()
    for _ in range(5):
        step = next(events)
        keys = step[1].value if isinstance(step[3], list) else keys
    assert "training" in step[0] and [r.name for r in page.shell.shelf.pick(keys)] == ["16-bit baseline"], "the page shows a part of the baseline"
    if closed_first:
        events.close()
    after = page.cancelled(keys, None, TAB)
    events.close()
    assert after[-2] == [("16-bit baseline", len(SEEDS[0].measurements), (), False), ("RTN 3-bit g64", len(LATER.measurements), ("speed",), True)]
    assert all("value" not in part for part in page.cancelled(keys_of(SEEDS), None, TAB)), "told once: a later page is not changed by it"


def test_cancel_draws_what_became_whole_since_the_last_drawing(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(going, "REDRAWN", 60.0)
    events = run(page, [])
    steps = [next(events) for _ in range(3)]
    keys = next(step[1].value for step in steps if isinstance(step[3], list))
    events.close()
    assert "load model" in steps[-1][0] and page.cancelled(keys, None, TAB)[-2] == [("16-bit baseline", len(SEEDS[0].measurements), (), False)]


def test_nobody_finds_a_part_on_the_shelf() -> None:
    shelf = Shelf([])
    base = untimed(here(SEEDS[0]))
    base = dataclasses.replace(base, experiment=dataclasses.replace(base.experiment, spec=QuantSpec("none")))
    for report in (base, LATER, *shelf.stopped([LATER])):
        shelf.add(report)
        assert shelf.pick([report.key]) == [report]
    assert shelf.find("demo", WHOLE.experiment.spec, GIVEN) is None and shelf.with_baseline([WHOLE]) == [WHOLE]
    shelf.add(WHOLE)
    assert len({LATER.key, *keys_of(shelf.stopped([LATER])), WHOLE.key}) == 3 and shelf.find("demo", WHOLE.experiment.spec, GIVEN) is not None
    assert shelf.stopped([LATER])[0] is shelf.stopped([LATER])[0] and shelf.stopped([WHOLE]) == [WHOLE]
    assert not TabState().after([LATER]).keys and TabState().after([WHOLE]).keys and not attachable([LATER]).choices


def test_a_part_is_no_evidence() -> None:
    shelf = Shelf([])
    mode = Interviewer(Shell(None, shelf, [], ["demo"]))
    told = [mode.record([], "slow", "Because.", 50, [shelf.add(report)])[-1] for report in (here(SEEDS[2]), LATER)]
    assert told[0] != told[1]


def test_a_part_says_what_it_lacks_and_never_that_all_is_well() -> None:
    [stopped] = Shelf([]).stopped([LATER])
    for report, words in ((EARLY, "being measured"), (LATER, "being measured"), (stopped, "not measured")):
        table, found = comparison([SEEDS[0], report], judged([SEEDS[0], report])), verdicts(report, SEEDS[0])
        assert f"<td class='empty'>{words}" in table and "no failure found" not in table and "partly checked" in table
        assert level(found) == UNSURE and "Not all was looked at" in sentence(found) and "older than" not in sentence(found)
        told = answers(report, SEEDS[0])
        assert "faster" not in told[0].text and "slower" not in told[0].text and any(words in fact for fact in told[0].facts) and words in told[0].text
        assert "speed" in as_csv([report]) and "incomplete" in as_csv([report]) and json.loads(as_json([report]))[0]["provenance"]["missing"]
        assert "incomplete" in as_html([SEEDS[0], report], "", table, "")
    assert "no failure found" in comparison([SEEDS[0], WHOLE], judged([SEEDS[0], WHOLE])) and "incomplete" not in as_csv([WHOLE])
    assert "stopped: speed not measured" in comparison([SEEDS[0], stopped])


def test_what_is_left_is_told_by_the_last_such_run_from_where_it_was_seen() -> None:
    pace, now = Pace(), time.monotonic()
    pace.note("rtn", {"load model": now - 9, "measurement 1 of 2, perplexity": now - 8, "measurement 2 of 2, speed": now - 5})
    pace.note("joined", {"measurement 2 of 2, speed": now - 1})
    assert {stage: round(left) for stage, left in pace.of("rtn").items()} == {"measurement 1 of 2, perplexity": 8, "measurement 2 of 2, speed": 5}
    assert not pace.of("joined") and not pace.of("gptq")
    clock = Clock()
    clock.follow(pace.of("rtn"))
    assert "about 5 s left, by the last such run" in clock.line(Progress("measurement 2 of 2, speed", 0, 6))
    assert "left" not in clock.line(Progress("measurement 1 of 1, speed", 0, 6)), "another run than the last"
    clock.follow({})
    assert "left" not in clock.line(Progress("measurement 2 of 2, speed", 0, 6))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "log")
    yield made
    made.runner.close()


def test_who_joins_a_run_gets_what_it_has_so_far_at_once(service: Service) -> None:
    """The last part alone, before anything else; who was there from the start gets each."""
    first = service.runner.run("demo", "parts", {})
    parts = (event.report for event in first if isinstance(event, Partial))
    next(parts)
    known = next(parts)
    second = list(service.runner.run("demo", "parts", {}))
    assert [e.report for e in second if isinstance(e, Partial)] == [known] == [second[0].report] and isinstance(second[-1], Answer)
    assert not list(parts) and sum(what == "start" for _, what, *_ in service.notes()) == 1


def test_a_run_that_dies_was_told_what_it_had(service: Service) -> None:
    got = list[Event]()
    with pytest.raises(InputError, match="process died"):
        got.extend(service.runner.run("demo", "parts", {"died": True, "seconds": 0.1}))
    assert sum(isinstance(event, Partial) for event in got) == 2
