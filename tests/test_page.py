"""The page's handlers as plain generators over a fake runner: what streams, what stays on an error, what a new page holds."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pytest

import app
from explorer.figures import figures
from explorer.recorded import SEEDS, seeds
from explorer.records import InputError, Measurement, Progress, Report, report_from
from explorer.ui.cancel import Cancel
from explorer.ui.frame import in_rows
from explorer.ui.page import Page
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.session import Shelf, keys_of, seats
from explorer.ui.tab import Shell, View, tabs
from explorer.ui.tabs import failures
from explorer.ui.tabs.text import whose_texts

SEED = [report_from(data) for data in json.loads(SEEDS.read_text())]
OPTION_VALUES = ("bundled", "", "bundled", 16, 0, 16, 16)
OPEN = "first"  # the tab that is open in these tests


class FakeRunner:
    """Gives the seed of the asked method, or raises. Notes what was asked and whether it was closed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked, self.closed = error, [], 0

    def run(self, model: str, method: str, params: dict, **options: object) -> Iterator:
        self.asked.append(method)
        try:
            yield Progress("load model", 0, 1, model)
            yield Progress("perplexity", 1, 4, "window 1")
            if self.error and method != "none":
                raise self.error
            report = next(r for r in SEED if r.experiment.spec.method == method)
            yield dataclasses.replace(report, provenance={**report.provenance, "device": "fresh"})
        finally:
            self.closed += 1


@pytest.fixture
def page() -> Page:
    """Two tabs: the open one shows names, the layer and its own input; the other must not be drawn."""
    shell = Shell(FakeRunner(), Shelf(SEED), [], ["demo"])
    shell.views[OPEN] = View([object(), object()], lambda reports, layer, own: [[r.name for r in reports], (layer, own)], [object()])
    shell.views["second"] = View([object()], lambda reports, layer: pytest.fail("a tab that is not open was drawn"))
    return Page(shell)


def seated(reports: list[Report]) -> list[str]:
    """The keys of a page of these reports, with their places."""
    return [key for _, key in seats(reports)]


def ran(page: Page, method: str, keys: list[str]) -> list[list]:
    return list(page.run(keys, None, OPEN, "demo", method, *OPTION_VALUES, "own"))


def test_run_streams_and_measures_the_baseline_first(page: Page) -> None:
    outputs = ran(page, "gptq", keys_of(SEED[:2]))
    assert page.shell.runner.asked == ["none", "gptq"] and page.shell.runner.closed == 2
    assert all(len(output) == 6 for output in outputs)
    assert "1 of 2: the 16-bit baseline, once on this machine; then gptq: load model" in outputs[0][0]
    assert any("2 of 2: gptq: " in output[0] for output in outputs[1:]) and "done" in outputs[-1][0] and "GPTQ 4-bit g64" in outputs[-1][0]
    assert outputs[-1][1].value == seated([SEED[0], SEED[1], next(r for r in SEED if r.experiment.spec.method == "gptq")])
    assert page.shell.shelf.pick(outputs[-1][1].value)[0].provenance["device"] == "fresh", "the baseline on the page is of this device"


@pytest.mark.parametrize("error", [InputError("The text is too short."), RuntimeError("<b>out of memory</b>"), KeyError("odd")])
def test_failure_is_a_sentence_and_the_page_stays(page: Page, error: Exception) -> None:
    page.shell.runner.error = error
    last = ran(page, "rtn", keys_of(SEED))[-1]
    assert "error" in last[0] and ("too short" in last[0] or "What was measured before is kept" in last[0]) and "<b>" not in last[0]
    assert all(part["__type__"] == "update" and "value" not in part for part in last[1:])


def test_a_second_run_of_a_session_waits_for_its_line_and_keeps_what_the_first_found(page: Page) -> None:
    first, second = (page.run(keys_of(SEED[:1]), None, OPEN, "demo", method, *OPTION_VALUES, "own") for method in ("gptq", "rtn"))
    assert "load model" in next(first)[0]
    assert "waits for your run before it" in next(second)[0]
    assert "done" in list(first)[-1][0]
    told = list(second)
    assert all("rtn: " in line[0] or "done" in line[0] for line in told)
    assert [r.experiment.spec.method for r in page.shell.shelf.pick(told[-1][1].value)] == ["none", "gptq", "rtn"]
    assert not page.runs._going, "nobody runs any more"


def test_cancelling_closes_the_run(page: Page) -> None:
    events = page.run([], None, OPEN, "demo", "rtn", *OPTION_VALUES, "own")
    next(events)
    events.close()
    assert page.shell.runner.closed == 1


def test_a_cancelled_run_says_so_last_and_a_later_one_goes_on(page: Page) -> None:
    stop, asked = Cancel("Cancelled"), ([], None, OPEN, "demo", "rtn", *OPTION_VALUES, "own")
    events = stop.heard(page.run)(*asked)
    first = next(events)
    assert "load model" in first[0]
    assert stop.press() == "Cancelled"
    assert next(events) == ["Cancelled", *first[1:]] and next(events, None) is None and page.shell.runner.closed == 1
    assert "done" in list(stop.heard(page.run)(*asked))[-1][0]


def test_cancel_says_when_nothing_is_running(page: Page) -> None:
    stop, asked = Cancel("Cancelled"), ([], None, OPEN, "demo", "rtn", *OPTION_VALUES, "own")
    assert "Nothing is running" in stop.press()
    list(stop.heard(page.run)(*asked))
    assert "Nothing is running" in stop.press()
    events = stop.heard(page.run)(*asked)
    next(events)
    events.close()  # as gradio does, often before it calls the button's own function
    assert stop.press() == "Cancelled"


def test_every_cancel_button_has_the_last_word() -> None:
    """No tab wires one by hand: its work could still write over what it said."""
    wired = [path.name for path in (app.ASSETS.parent / "explorer" / "ui").rglob("*.py") if "cancels=" in path.read_text()]
    assert wired == ["cancel.py"]


def test_taking_off_keeps_the_baseline(page: Page) -> None:
    keys = seated(SEED)
    assert page.choose(keys[2:4], None, OPEN, "own")[1].value == [keys[0], *keys[2:4]]
    assert page.choose([], None, OPEN, "own")[1].value == keys[:1]
    assert page.reset(None, OPEN, "own")[1].value == keys


def test_results_of_another_model_than_the_chosen_one_say_so(page: Page) -> None:
    keys = keys_of(SEED[:2])
    told = page.whose("arch:qwen2.5-0.5b", keys)
    assert told.visible and "These are results of demo; Run measures arch:qwen2.5-0.5b." in told.value
    assert not any(page.whose(name, keys).visible for name in ("demo", " demo ", "demo@main", "", None)) and not page.whose("other", []).visible


def test_the_line_above_the_texts_follows_what_is_shown() -> None:
    assert whose_texts(seeds()).startswith("Recorded texts")
    here = [dataclasses.replace(r, provenance=r.provenance | {"recorded": False}) for r in SEED[:2]]
    assert whose_texts(here).startswith("Texts of the runs")
    bare = [dataclasses.replace(r, measurements=tuple(m for m in r.measurements if m.metric != "sample_text")) for r in here]
    assert whose_texts(bare).startswith("These runs came without a text") and whose_texts([]) == whose_texts(bare)


def test_a_refused_bug_leaves_nothing_of_the_one_before(page: Page) -> None:
    def refuses(task: str, arguments: dict) -> Iterator:
        yield Progress("load model", 0, 1)
        raise InputError("Wrong calibration text cannot happen to RTN 4-bit g64.")

    page.shell.runner.do = refuses
    for outputs in (list(failures.planted(page.shell, keys_of(SEED)[2], "calibration", ""))[-1], list(failures.planted(page.shell, "", "zero", ""))[-1]):
        line, guess, shown, below, *_, state = outputs
        assert len(outputs) == failures.RESULTS and "error" in line and shown == failures.catalogue() and state == ""
        assert not guess.visible and not below.visible


def test_only_the_open_tab_is_drawn(page: Page) -> None:
    layer, keys = "layers.2.mlp.up_proj", keys_of(SEED[:2])
    _, names, shown, other = page.picked(f"{layer} 1", keys, OPEN, "own")
    assert names == [r.name for r in SEED[:2]] and shown == (layer, "own") and "value" not in other
    assert page.opened(OPEN, keys, layer, "own") == [OPEN, names, shown]
    assert page.choose(keys, "none such", OPEN, "own")[2].value == page.choose(keys, None, OPEN, "own")[2].value


def test_every_figure_has_one_place() -> None:
    rows = list(in_rows(list(figures().values())))
    assert [figure for row in rows for figure in row] == list(figures().values())
    assert all(len(row) == 1 for row in rows if row[0].wide) and all(len(row) <= 2 for row in rows)
    assert {figure.tab for figure in figures().values()} <= {tab.name for tab in tabs()}


def test_page_builds_without_warnings_and_a_remembered_signature_changes_no_session() -> None:
    """In a process of its own, because gradio leaves an event loop open."""
    code = (
        "import warnings; warnings.simplefilter('error', UserWarning)\n"
        "import app, json\n"
        "from explorer.recorded import seeds\n"
        "from gradio.state_holder import SessionState\n"
        "page = (None, list(seeds()), json.loads((app.ASSETS / 'methods.json').read_text())['methods'], ['demo'])\n"
        "blocks = app.build(*page)\n"
        "assert blocks.fns and all(len(handler.show_progress_on) == 1 for handler in blocks.fns.values()), 'each shown progress slows every event'\n"
        "before = SessionState(blocks).config_values\n"
        "import gradio.routes; gradio.routes.attach_oauth = lambda app: None  # its libraries are on a Space\n"
        "with_login = app.build(*page, True)\n"
        "assert not blocks.expects_oauth and with_login.expects_oauth and app.forms(with_login)\n"
        "app.remember_signatures(blocks)\n"
        "assert SessionState(blocks).config_values == before and before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=app.ASSETS.parent, timeout=120)


def test_lazy_runner_runs_and_says_why_it_cannot(tmp_path: Path) -> None:
    lazy = app.LazyRunner(tmp_path / "r.db")
    with pytest.raises(InputError, match="no method"):
        list(lazy.run("demo", "magic", {}))
    (tmp_path / "file").write_text("")
    broken = app.LazyRunner(tmp_path / "file" / "r.db")
    with pytest.raises(RuntimeError, match="could not start"):
        list(broken.run("demo", "rtn", {}))


def test_seeds_are_marked_as_recorded() -> None:
    found = list(seeds())
    assert found[0].experiment.spec.method == "none" and len(found) == 5 and all(r.provenance["recorded"] for r in found)


def test_every_row_of_the_comparison_is_defined_and_no_unit_is_left_open() -> None:
    from explorer.table import MORE, SECTIONS, comparison, further
    from explorer.verdict import judged

    rows = [row for group in (MORE, *SECTIONS.values(), further(SEED)) for row in group]
    shown = comparison(SEED, judged(SEED))
    assert "% or" not in shown and len(rows) > 30 and all(row.help and escape(row.help) in shown for row in rows)
    change = next(r for r in SEED if r.value("perplexity_delta") and r.value("perplexity_delta") < 100).value("perplexity_delta")
    assert f"<span>{change:+.2f}%</span>" in shown


def test_no_failure_does_not_read_as_good_quality() -> None:
    from explorer.verdict import judged

    base, *quantized = judged(SEED)
    assert base == "" and all("quality: " in words for words in quantized)
    two = next(words for words, report in zip(quantized, SEED[1:], strict=True) if report.experiment.spec.get("bits") == 2)
    four = next(words for words, report in zip(quantized, SEED[1:], strict=True) if report.name == "RTN 4-bit g64")
    assert "no failure found" in four and 4 < float(four.split("like RTN at ")[1].split(" bits")[0]) < 4.25 and "no failure found" not in two


def test_what_a_control_does_is_said_for_whoever_has_never_quantized() -> None:
    from explorer.docs import CATALOGUE
    from explorer.ui.controls import PLAIN, info_of

    methods = json.loads(CATALOGUE.read_text())["methods"]
    fields = {(method["name"], field["name"]): field for method in methods for field in method["fields"]}
    assert {key for key in PLAIN if isinstance(key, tuple)} <= fields.keys() and {key for key in PLAIN if isinstance(key, str)} <= {name for _, name in fields}
    assert not any("2^b" in (info_of(method, field) or "") for (method, _), field in fields.items())
    coming = {"name": "bits", "help": "A code of b bits names 2^b grid points, of which this method uses half."}
    assert info_of("coming", coming) == PLAIN["bits"], "a new method with bits needs no sentence of its own, whatever its help says"


def test_run_measures_disturbed_times_again(page: Page) -> None:
    def run(model: str, method: str, params: dict, **options: object) -> Iterator:
        asked.append((method, options.get("again", False)))
        report = next(r for r in SEED if r.experiment.spec.method == method)
        waited = Measurement("decode_waited", 60.0 if len(asked) < 3 else 1.0, "%")
        kept = tuple(m for m in report.measurements if m.metric != "decode_waited")
        yield dataclasses.replace(report, measurements=(*kept, waited), provenance=report.provenance | {"recorded": False})

    asked: list[tuple[str, bool]] = []
    page.shell.runner.run = run
    params = dict(next(r for r in SEED if r.experiment.spec.method == "gptq").experiment.spec.params)
    page.asked = lambda values: ("demo", "gptq", params, dict(zip(RUN_OPTIONS, OPTION_VALUES, strict=True)))
    busy = ran(page, "gptq", keys_of(SEED[:1]))[-1]
    assert "Run measures it again" in busy[0]
    calm = ran(page, "gptq", busy[1].value)[-1]
    assert "measures it again" not in calm[0]
    ran(page, "gptq", calm[1].value)
    assert asked == [("none", False), ("gptq", False), ("none", False), ("gptq", True), ("none", False), ("gptq", False)]
