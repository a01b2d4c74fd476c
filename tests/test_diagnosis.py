"""Broken models in interviewer mode: the page never holds what was planted, a diagnosis is graded once, and the transcript names its runs."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Iterator

import pytest

from explorer.bugs import BUGS
from explorer.faults import FAULTS
from explorer.learn.case import SETUPS, control, diagnosed, draw
from explorer.learn.interview import BROKEN, markdown
from explorer.learn.runs import recorded, recorded_answers
from explorer.methods import build
from explorer.records import Answer, Progress, Report, key_of, plain, report_from
from explorer.ui.kept import TICKETS, Kept, Sealed
from explorer.ui.session import Shelf
from explorer.ui.tab import Shell
from explorer.ui.tabs.trainer import interviewer
from explorer.ui.tabs.trainer.diagnosis import EVIDENCE

HEALTHY, SICK = (report_from(recorded_answers()[name].data["report"]) for name in ("lab_healthy", "lab_zero"))


def planted(setup: int, bug: str) -> Report:
    """A report as the failure task gives it: the numbers of the recorded pair under a setup's spec."""
    own = SETUPS[setup]
    spec = dataclasses.replace(SICK.experiment.spec, method=own.method, params=(*sorted(own.params.items()), *((("planted", bug),) if bug else ())))
    source = SICK if bug else HEALTHY
    label = own.title + (", with a bug" if bug else "")
    return dataclasses.replace(source, experiment=dataclasses.replace(source.experiment, spec=spec), provenance=source.provenance | {"label": label})


class Lab:
    """A runner that gives planted reports at once, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict] = []

    def do(self, task: str, arguments: dict) -> Iterator:
        self.asked.append(arguments)
        setup = next(i for i, s in enumerate(SETUPS) if (s.method, s.params) == (arguments["method"], arguments["params"]))
        if len(self.asked) <= 2:
            yield Progress("quality", 1, 2)
        yield Answer(task, {"report": plain(planted(setup, arguments["fault"])), "fault": arguments["fault"]}, {})


@pytest.fixture
def shell() -> Shell:
    return Shell(Lab(), Shelf([recorded()["none"]]), [], ["demo"])


@pytest.mark.parametrize("setup", SETUPS, ids=lambda s: s.title)
def test_every_bug_can_happen_in_every_setup(setup: object) -> None:
    method = build(setup.method, setup.params)
    assert not [name for name, fault in FAULTS.items() if fault.refuses(method)], "a case would fail when it is drawn"


def test_draws_reach_every_bug_and_setup() -> None:
    cases = [draw(random.Random(seed)) for seed in range(300)]
    assert {case["bug"] for case in cases} == set(BUGS) and {case["setup"] for case in cases} == set(range(len(SETUPS)))


def test_the_page_never_holds_what_was_planted(shell: Shell) -> None:
    mode, tickets = interviewer.Interviewer(shell), set()
    for _ in range(12):
        shell.runner.asked.clear()
        events = list(mode.diagnosis.draw("layers.2.mlp.down_proj"))
        bug = shell.runner.asked[-1]["fault"]
        assert all(len(event) == EVIDENCE for event in events) and bug in BUGS
        sent = " ".join(str(getattr(value, "value", value)) for event in events for value in event)
        ticket = events[-1][1]
        assert re.fullmatch("[0-9a-f]{32}", ticket) and "planted" not in sent and key_of(planted(0, bug).experiment) not in sent
        assert BUGS[bug].title.lower() not in sent.lower() and BUGS[bug].seen not in sent and BUGS[bug].settle not in sent
        tickets.add(ticket)
    assert len(tickets) == 12


def test_a_diagnosis_is_graded_once_with_its_control(shell: Shell) -> None:
    mode = interviewer.Interviewer(shell)
    ticket = shell.sealed.put({"setup": 0, "bug": "zero"})
    key = shell.shelf.add(planted(0, ""))
    given = ("All layers move by a step.", 90, [key])
    assert "Choose a diagnosis" in mode.record([], BROKEN, *given, ticket, "zero", None)[-1]
    notes, listed, page, line = mode.record([], BROKEN, *given, ticket, "zero", "zero")
    found = notes[0]["diagnosis"]
    assert found["score"] == 1 and found["brier"] == pytest.approx(0.01) and "is the control" in line and listed["visible"]
    text = markdown(notes)
    assert f"broken run `{found['run']}`" in text and f"run `{key}`" in text and BUGS["zero"].title in text and "Mean Brier score" in page
    assert interviewer.checked(json.loads(json.dumps(notes))) == notes
    assert "on record already" in mode.record(notes, BROKEN, *given, ticket, "zero", "zero")[-1]
    assert "Draw a broken model first" in mode.record(notes, BROKEN, *given, "0" * 32, "zero", "zero")[-1]
    for spoilt in ({"planted": "nothing"}, {"said": "x"}, {"score": None}, {"run": 3}):
        assert interviewer.checked([notes[0] | {"diagnosis": found | spoilt}]) == []
    assert interviewer.checked([{k: v for k, v in notes[0].items() if k != "diagnosis"}]) == []


def test_shares_of_the_score() -> None:
    case, sick, healthy = {"setup": 0, "bug": "zero"}, planted(0, "zero"), planted(0, "")
    wrong = diagnosed(case, "stale", "nibbles", 0.9, sick, [])
    assert wrong["score"] == 0 and wrong["brier"] == pytest.approx(0.81) and "No control" in wrong["said"][-1]
    assert diagnosed(case, "zero", "stale", 0.5, sick, [planted(2, "")])["shares"] == {"diagnosis": 1, "step": 0, "evidence": 0.5}
    assert control(sick, [recorded()["none"], planted(2, ""), healthy]) is healthy and control(sick, [planted(0, "stale")]) is None
    cached = dataclasses.replace(healthy, experiment=dataclasses.replace(healthy.experiment, spec=dataclasses.replace(healthy.experiment.spec, kv_bits=4)))
    assert control(sick, [cached]) is None, "another cache is another configuration"


def test_next_steps_do_not_name_the_bug_and_all_differ() -> None:
    assert len({bug.settle for bug in BUGS.values()}) == len(BUGS)
    assert not [bug.name for bug in BUGS.values() if bug.title.lower() in bug.settle.lower()]


def test_sealed_forgets_the_oldest() -> None:
    sealed = Sealed()
    tickets = [sealed.put({"n": i}) for i in range(TICKETS + 1)]
    assert sealed.open(tickets[0]) == {} and sealed.open(tickets[-1]) == {"n": TICKETS}
    sealed.open(tickets[-1])["n"] = 0
    assert sealed.open(tickets[-1]) == {"n": TICKETS} and sealed.open(None) == sealed.open([]) == {}
    sealed.mark(tickets[-1], {"answered": True})
    sealed.mark(tickets[0], {"answered": True})
    assert sealed.open(tickets[-1]) == {"n": TICKETS, "answered": True} and sealed.open(tickets[0]) == {}


def test_equal_data_have_one_key_and_equal_secrets_two_tickets() -> None:
    kept, sealed = Kept(2), Sealed()
    first, second = kept.put({"n": 1}), kept.put({"n": 2})
    assert kept.put({"n": 1}) == first and kept.get(None) is kept.get([]) is None
    third = kept.put({"n": 3})
    assert (kept.get(first), kept.get(second), kept.get(third)) == ({"n": 1}, None, {"n": 3}), "the least recently used goes"
    one, other = sealed.put({"bug": "zero"}), sealed.put({"bug": "zero"})
    assert one != other and len(one) == len(other) == 32
