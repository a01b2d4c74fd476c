"""The handlers of interviewer mode: what is attached as evidence, whether it bears on the card, and a transcript that nothing enters twice."""

from __future__ import annotations

import dataclasses
import json
from urllib.parse import unquote

import pytest

from explorer.learn.evidence import BEARS, bears
from explorer.learn.interview import BROKEN, cards
from explorer.learn.runs import recorded
from explorer.records import key_of, significant
from explorer.ui.session import Shelf
from explorer.ui.tab import Shell
from explorer.ui.tabs.planner.handlers import first
from explorer.ui.tabs.trainer import interviewer
from tests.learn_data import CATALOGUE, NONSENSE, PANEL


@pytest.fixture
def mode() -> interviewer.Interviewer:
    return interviewer.Interviewer(Shell(None, Shelf([recorded()["none"]]), CATALOGUE, ["demo"], panel=PANEL))


def test_interviews_take_the_runs_on_the_page_as_evidence(mode: interviewer.Interviewer) -> None:
    keys = [mode.shell.shelf.add(recorded()[name]) for name in ("gptq4", "rtn4")]
    assert "Write an answer first." in mode.record([], "four-bits", " ", 70, keys)[-1]
    notes, listed, page, said = mode.record([], "four-bits", "<b>GPTQ</b>", 70, [recorded()["none"].key, *keys])
    experiments = [key_of(recorded()[name].experiment) for name in ("gptq4", "rtn4")]
    assert [run["run"] for run in notes[0]["evidence"]] == experiments and "<b>GPTQ" not in page
    assert listed["visible"] and "On record with 2 runs as evidence." in said
    ticked, _ = mode.tick(notes, [0, 2, 99])
    assert ticked[0]["met"] == [0, 2] and interviewer.checked(json.loads(json.dumps(ticked))) == ticked
    for junk in NONSENSE:
        assert interviewer.checked(junk) == [] and mode.tick(junk, junk) and mode.show(junk) == "" and mode.choose(str(junk))
    assert all(interviewer.shown_card(name) for name in cards())


def test_evidence_says_its_interval_and_where_it_comes_from(mode: interviewer.Interviewer) -> None:
    report = recorded()["rtn4"]
    notes, _, page, _ = mode.record([], "four-bits", "RTN", 70, [mode.shell.shelf.add(report)])
    kl, more = (report.find(name) for name in ("kld_mean", "perplexity_delta"))
    for said in (f"KL {kl.value:.4f} nats ({significant(kl.low)} to {significant(kl.high)})", f"perplexity {more.value:+.2f}% ({more.low:+.2f} to ",
                 f"over {len(report.value('kld_windows'))} windows, recorded {report.provenance['date']}", cards()["four-bits"].ask[:40]):  # fmt: skip
        assert said in unquote(page)
    for ends in (5, "ab", [1], [1, "x"], {"a": 1}):
        assert " nats, over" in mode.show([notes[0] | {"evidence": [notes[0]["evidence"][0] | {"kld_interval": ends}]}])
    bare = {name: notes[0]["evidence"][0][name] for name in ("run", "name", "model", "device")}
    assert "RTN 4-bit" in mode.show([notes[0] | {"evidence": [bare]}]), "of a page that an older server made"


def test_an_answer_is_on_record_once(mode: interviewer.Interviewer) -> None:
    keys = [mode.shell.shelf.add(recorded()[name]) for name in ("gptq4", "rtn4")]
    notes = mode.record([], "four-bits", "GPTQ", 70, keys[:1])[0]
    notes = mode.tick(notes, [1])[0]
    again, listed, _, said = mode.record(notes, "four-bits", "GPTQ", 70, keys[:1])
    assert again == notes and "on record already" in said and listed["value"] == [1]
    more = mode.record(notes, "four-bits", "GPTQ", 70, keys)[0]
    assert len(more) == 1 and len(more[0]["evidence"]) == 2 and more[0]["met"] == [1], "with more evidence it takes the place of the last one"
    assert len(mode.record(more, "four-bits", "AWQ", 70, keys)[0]) == 2


def test_the_planner_s_answer_is_evidence(mode: interviewer.Interviewer) -> None:
    key = mode.shell.shelf.add(recorded()["rtn4"])
    assert "without evidence" in mode.record([], "seventy", "Four bits.", 60, [])[-1]
    assert "nothing attached bears on this card" in mode.record([], "seventy", "Four bits.", 60, [key])[-1]
    notes, _, page, said = mode.record([], "seventy", "Four bits.", 60, [key], "", None, None, True, *first())
    assert "with 1 run and the Planner" in said and "70.554 billion parameters" in notes[0]["planned"] and notes[0]["planned"].split(".")[0] in page
    assert interviewer.checked(json.loads(json.dumps(notes))) == notes and interviewer.checked([notes[0] | {"planned": 7}]) == []
    small = first()._replace(model="demo")
    assert "nothing attached bears" in mode.record([], "seventy", "Four bits.", 60, [], "", None, None, True, *small)[-1], "a plan of another model"
    unpriced = first()._replace(device="no such card")
    assert "Choose an accelerator" in mode.record([], "seventy", "Four bits.", 60, [], "", None, None, True, *unpriced)[-1]


BEARING = {
    "one-percent": (["rtn8"], ["rtn4", "smooth50"]), "four-bits": (["rtn4", "gptq4"], ["rtn4", "rtn8"]), "two-bits": (["qat2"], ["rtn3"]),
    "slow": (["rtn4"], []), "exclaim": (["rtn4"], []), "calibrate": (["gptq3_asym", "gptq3_sums"], ["gptq3_asym", "awq3"]),
    "w8a8": (["rtn4", "w8a8_token"], ["rtn4", "rtn8"]), "shrink-cache": (["kv8", "kv4"], ["kv8", "rtn4"]),
}  # fmt: skip


def test_every_card_knows_what_bears_on_it() -> None:
    assert set(BEARS) == set(cards()) - {BROKEN} == {*BEARING, "seventy"}
    for card, (enough, short) in BEARING.items():
        assert bears(card, [recorded()[name] for name in enough]) and not bears(card, [recorded()[name] for name in short]), card
    other = dataclasses.replace(recorded()["rtn4"].experiment, calibration=recorded()["gptq3_sums"].experiment.calibration)
    unread = [recorded()["rtn4"], dataclasses.replace(recorded()["rtn4"], experiment=other)]
    assert unread[0].experiment != other and not bears("calibrate", unread), "a text that no method read"
