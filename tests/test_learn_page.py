"""The handlers of Learn and Trainer as plain functions: every step and question can be shown and answered, whatever a browser sends."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from html import escape, unescape
from urllib.parse import parse_qsl

import pytest

from explorer import link
from explorer.learn import progress
from explorer.learn.bank import Question, areas, questions
from explorer.learn.pose import amount, pose
from explorer.learn.runs import named_runs, named_tasks, recorded, recorded_answers
from explorer.learn.stories import conclude, judge, stories
from explorer.records import InputError, Progress, Report, key_of
from explorer.ui.session import Shelf, seats
from explorer.ui.share import wrong_step
from explorer.ui.tab import Shell
from explorer.ui.tabs.learn import handlers as learn
from explorer.ui.tabs.learn.closing import last_run
from explorer.ui.tabs.learn.revisited import reloaded, step_of
from explorer.ui.tabs.trainer import handlers as trainer
from explorer.ui.tabs.trainer.results import today
from tests.learn_data import CATALOGUE, NONSENSE, PANEL, STEPS


class Recorded:
    """A runner that gives what was recorded, or raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def run(self, model: str, method: str, params: dict, **options: object) -> Iterator:
        yield Progress("quantize", 1, 2, "layer")
        if self.error:
            raise self.error
        found = [n for n, a in named_runs().items() if a.method == method and params.items() >= a.params.items() and a.arguments()[1] == options]
        name = max(found, key=lambda n: len(named_runs()[n].params))
        yield dataclasses.replace(recorded()[name], provenance={**recorded()[name].provenance, "recorded": False, "device": "fresh"})

    def do(self, task: str, arguments: dict) -> Iterator:
        yield Progress("work", 1, 2)
        yield recorded_answers()[next(n for n, asked in named_tasks().items() if asked == (task, arguments))]


@pytest.fixture
def shell() -> Shell:
    return Shell(Recorded(), Shelf([recorded()["none"]]), CATALOGUE, ["demo"], panel=PANEL)


@pytest.mark.parametrize(("story", "at"), STEPS)
def test_every_step_is_revealed_measured_and_compared(shell: Shell, story: str, at: int) -> None:
    walk, step = learn.Walk(shell), stories()[story].steps[at]
    assert step.title in walk.show(story, at, {})[2].replace("&#x27;", "'")
    plot, _, conclusion, done, *_ = walk.reveal(story, at, 0 if step.predict.options else None, step.predict.low, learn.place_of(story, at), {})
    assert "Keep in mind" in conclusion and done == {story: [at]} and (plot.visible or not (step.figure or step.chart))
    events = list(walk.measure(story, at, 0, step.predict.low, ""))
    assert (
        "measured here" in events[-1][0].value
        and ("fresh" in events[-1][3]) == bool(step.runs)
        and events[-1][4] == ({story: [at]} if step.predict.options else {})
    )
    assert len(walk.compare(story, at, [])) == 3 + len(shell.controls) and walk.show(story, at, {})[-2].visible == bool(step.runs)


def test_a_step_is_revealed_without_a_prediction_and_says_why_it_failed(shell: Shell) -> None:
    walk = learn.Walk(shell)
    _, _, conclusion, done, _, right, seen = walk.reveal("basics", 0, None, 0, "", {})
    assert "You made no prediction.</b> The answer:" in conclusion and done == right == {} and seen == {"basics": [0]}
    shell.runner.error = InputError("The text is too short.")
    assert "too short" in list(walk.measure("gptq", 0, None, 50, ""))[-1][0].value
    names = list(stories())
    assert walk.turn(names[0], 5, {}, by=1)[0].value == names[1] and walk.turn(names[0], 0, {}, by=-1)[0].value == names[-1]
    for junk in NONSENSE:
        assert learn.place(junk, junk)[1] in (0, 1) and isinstance(learn.checked(junk), dict)
        assert walk.show(junk, junk, junk)[2]


@pytest.mark.parametrize("name", list(stories()))
def test_a_walkthrough_ends_with_its_predictions_and_conclusions(shell: Shell, name: str) -> None:
    walk, story = learn.Walk(shell), stories()[name]
    card = walk.turn(name, len(story.steps) - 1, {name: [0, 1]}, {name: [1]}, by=1)
    first, others = (escape(text) for text in (conclude(story.steps[0], recorded(), recorded_answers()).text, story.steps[2].title))
    open_steps = f"{len(story.steps) - 2} step{'s' * (len(story.steps) > 3)} not predicted."
    assert f"1 of 2 predictions right; {open_steps}" in card[2] and first in card[2] and others in card[2]
    assert "step=3'>Predict it" in card[2] and "What to try next" in card[2]
    assert not any(part["visible"] for part in card[3:5]) and not any(button.visible for button in card[9:12])
    assert "You predicted nothing here." in walk.turn(name, len(story.steps) - 1, {}, by=1)[2]
    run = last_run(story)
    if run is not None:
        query = unescape(re.search(r"Go on in <a href='\?([^']+)'", card[2])[1])
        found = link.parse(parse_qsl(query), CATALOGUE, [story.see])
        assert f"with {escape(run.name)} in the controls" in card[2] and found.method == run.experiment.spec.method and not found.wrong
        assert found.params.items() <= dict(run.experiment.spec.params).items()
    assert walk.turn(name, len(story.steps), {}, by=-1)[1].value == len(story.steps) - 1


def test_a_reload_shows_what_was_revealed_of_the_step_that_the_address_names(shell: Shell) -> None:
    walk, number = learn.Walk(shell), next(i for i, step in enumerate(stories()["gptq"].steps) if not step.predict.options)
    kept = json.dumps(["gptq", number, None, 7.5, f"gptq:{number}"])
    page, plain = reloaded(walk, kept, f"gptq:{number + 1}", {}), reloaded(walk, kept, f"gptq:{number + 2}", {})
    assert page[7] == walk.reveal("gptq", number, None, 7.5, f"gptq:{number}", {})[2] and page[4]["value"] == 7.5 and page[-1] == f"gptq:{number}"
    assert not plain[7] and not plain[-1], "another step keeps its answer to itself"
    for junk in ("", "{", "5", "[]", json.dumps(["gptq", 5, 0, 0, ""]), json.dumps([1, 2, 3])):
        assert not reloaded(walk, junk, "gptq:6", {})[7] and "the end" in reloaded(walk, junk, "gptq:6", {})[2], "the closing card has a link, too"
    assert step_of("gptq:x") == ("gptq", 0) and wrong_step({"story": "gptq", "step": "6"}) == [] and wrong_step({"story": "gptq", "step": "7"})


def test_only_a_first_prediction_counts_as_right(shell: Shell) -> None:
    walk, step = learn.Walk(shell), stories()["basics"].steps[0]
    good = next(i for i in range(4) if judge(step, i, recorded(), recorded_answers())[0] == 1)
    *_, done, _, right, seen = walk.reveal("basics", 0, good, 0, "", {}, {})
    assert done == right == {"basics": [0]} and seen == {}
    *_, done, _, right, _ = walk.reveal("basics", 0, (good + 1) % 4, 0, "", {}, {})
    assert right == {} and walk.reveal("basics", 0, good, 0, "", done, right)[-2:] == [{}, {}]


def test_the_closing_card_says_which_steps_were_revealed_without_a_prediction(shell: Shell) -> None:
    walk, step = learn.Walk(shell), stories()["basics"].steps[0]
    good = next(i for i in range(4) if judge(step, i, recorded(), recorded_answers())[0] == 1)
    for revealed in (walk.reveal("basics", 0, None, 0, "", {}), list(walk.measure("basics", 0, None, 0, ""))[-1]):
        *_, done, _, right, seen = revealed
        card = walk.turn("basics", len(stories()["basics"].steps) - 1, done, right, seen, by=1)[2]
        assert "You predicted nothing here; 1 step revealed without a prediction; " in card and "step=1'" not in card and "step=2'>Predict it" in card
        assert f"<i>Revealed without a prediction.</i> {escape(conclude(step, recorded(), recorded_answers()).text)}" in card
    *_, done, picker, right, seen = walk.reveal("basics", 0, good, 0, "", done, right, seen)  # whoever has seen the answer predicts no more
    card = walk.turn("basics", len(stories()["basics"].steps) - 1, done, right, seen, by=1)[2]
    assert right == {} and "You predicted nothing here; 1 step revealed" in card and "1/" in next(label for label, value in picker.choices if value == "basics")


def test_who_grades_himself_states_no_confidence(shell: Shell) -> None:
    """His score would pass for a confidence that is always right."""
    coach, question = trainer.Trainer(shell), next(q for q in questions().values() if q.kind == "explain")
    given = (None, None, None, [0], 90, False)
    state = list(coach.answer(set_of(question.id), *given))[-1][0]
    state = list(coach.answer(state, *given))[-1][0]
    [row] = [row for row in progress.sheet(state["progress"], areas()) if row["area"] == question.area]
    assert row["answers"] == 1 and 0 < row["score"] < 1 and row["brier"] is None and progress.checked(json.loads(json.dumps(state["progress"])))["answers"] == 1


@pytest.mark.parametrize("question", list(questions().values()), ids=lambda q: q.id)
def test_every_question_is_asked_and_graded(shell: Shell, question: Question) -> None:
    coach = trainer.Trainer(shell)
    state = set_of(question.id)
    shown = coach.show(state)
    posed = pose(question, "7")
    assert len(shown) == 7 + trainer.FIELDS + 6 + 1 and shown[0].count("<li>") == (len(question.runs) if question.kind == "order" else 0)
    order = sorted(range(len(posed.shown())), key=lambda i: recorded()[posed.shown()[i]].value(question.metric)) if question.kind == "order" else []
    right = next(
        (i for i, text in enumerate(posed.shown()) if question.options and any(o.right and o.text.format(**posed.values) == text for o in question.options)), 0
    )
    number = trainer.grade(posed, 0, recorded()).right.split()[0].strip("$").replace(",", "") if question.kind == "numeric" else "0"
    fields = [question.example.get(name, values[0]) for name, values in question.fields.items()]
    given = (right, float(number), order, list(range(len(question.checklist))), 80, False, *fields)
    final = list(coach.answer(state, *given))[-1]
    if question.kind == "explain":
        assert "A model answer" in final[4]
        final = list(coach.answer(final[0], *given))[-1]
    assert final[0]["set"]["scores"][0] >= 0.9, final[4]
    assert final[0]["progress"]["answers"] == 1 and "feedback good" in final[4]
    ended = coach.following(final[0])
    assert "of 1" in ended[1] and escape(posed.ask) in ended[1]


def test_a_skipped_question_counts_for_nothing_and_comes_back(shell: Shell) -> None:
    coach = trainer.Trainer(shell)
    state = coach.start({}, [], "daily")[0]
    first = state["set"]["ids"][0]
    state, heading, *_ = coach.skip(state)
    assert "2 of 5" in heading and state["progress"]["answers"] == 0 and state["progress"]["log"] == [] and trainer.checked(state) == state
    assert progress.due(state["progress"], today()) == [] and progress.due(state["progress"], today() + 1) == [first]
    for _ in range(4):
        state, heading, *_ = coach.skip(state)
    assert "0.0 of 5, 5 skipped" in heading and heading.count("<td>skipped</td>") == 5
    assert coach.skip(state)[0] == state and all(coach.skip(junk) for junk in NONSENSE), "after the last one there is nothing to skip"


def test_an_untouched_checklist_is_not_called_wrong(shell: Shell) -> None:
    coach, explain = trainer.Trainer(shell), next(q for q in questions().values() if q.kind == "explain")
    given = (None, None, [], [], 50, False)
    graded = list(coach.answer(list(coach.answer(set_of(explain.id), *given))[-1][0], *given))[-1]
    assert f"You ticked 0 of {len(explain.checklist)}." in graded[4] and "Wrong" not in graded[4]


def test_answers_that_are_none_are_asked_for_again(shell: Shell) -> None:
    coach = trainer.Trainer(shell)
    state = coach.start({}, [], "daily")[0]
    assert len(state["set"]["ids"]) == 5
    last = list(coach.answer(state, None, None, [], [], 50, False))[-1]
    assert "first" in last[4] and "progress" not in last[0]
    for junk in NONSENSE:
        assert (
            trainer.checked(junk)["set"] is None and coach.show(junk) and coach.following(junk) and list(coach.answer(junk, junk, junk, junk, junk, junk, junk))
        )
    broken = state | {"set": state["set"] | {"ids": ["nothing"]}}
    assert trainer.checked(broken)["set"] is None


def set_of(name: str) -> dict:
    """A set of one question that is open."""
    return {"progress": trainer.progress.fresh(), "set": {"ids": [name], "at": 0, "scores": [], "seed": "7", "title": "A set", "stage": "ask"}}


@pytest.mark.parametrize(("name", "number", "order"), [("eval-predict", 3.0, []), ("kv-order", None, [0, 1, 2])])
def test_an_answer_about_runs_is_graded_by_running_them(shell: Shell, name: str, number: float | None, order: list[int]) -> None:
    coach, given = trainer.Trainer(shell), (None, number, order, [], 50, False)
    events = list(coach.answer(set_of(name), *given))
    assert any("quantize" in event[4] and event[-2]["visible"] for event in events[:-1]), "progress streams, and nobody has to wait"
    live = events[-1]
    assert "Measured here now on fresh" in live[4] and "Measured here now" in coach.following(live[0])[1] and not live[-1]["visible"]
    runs = pose(questions()[name], "7").graded_by
    assert all(key_of(recorded()[run].experiment) in {key_of(r.experiment) for r in shell.shelf.pick([key_of(recorded()[run].experiment)])} for run in runs)
    skipped = coach.recorded(set_of(name), *given)
    assert "you did not wait" in skipped[4] and "Graded by runs recorded on" in skipped[4] and skipped[0]["set"]["scores"] == live[0]["set"]["scores"]
    for error, said in ((InputError("The queue is full; try again."), "The queue is full"), (RuntimeError("the worker died"), "the worker died")):
        shell.runner.error = error
        last = list(coach.answer(set_of(name), *given))[-1]
        assert said in last[4] and "Graded by runs recorded on" in last[4] and last[0]["progress"]["answers"] == 1
    assert coach.recorded(set_of("int-bit-db"), *given)[0] == coach.recorded(None, *given)[0], "only an open question about runs can be graded so"


def test_a_run_that_fails_grades_nothing(shell: Shell) -> None:
    coach = trainer.Trainer(shell)
    state = set_of("gran-run")
    shell.runner.error = RuntimeError("the worker died")
    last = list(coach.answer(state, None, None, [], [], 50, False, "rtn", 4, 64, True))[-1]
    assert "worker died" in last[4]


def test_explanations_can_wait(shell: Shell) -> None:
    coach = trainer.Trainer(shell)
    state = set_of("int-bit-db")
    last = list(coach.answer(state, 0, None, [], [], 50, True))[-1]
    assert "Noted" in last[4] and "Source" not in last[4] and "The step halves" in coach.following(last[0])[1]


def test_reports_of_the_shelf_are_kept_apart(shell: Shell) -> None:
    """Opening a step in Compare shows recorded reports, marked as such."""
    learn.Walk(shell).compare("gptq", 0, [])
    shown: list[Report] = shell.shelf.pick([recorded()[name].key for name in ("rtn3_asym", "gptq3_asym")])
    assert [r.provenance["recorded"] for r in shown] == [True, True]


def test_compare_says_what_came_and_what_left_and_a_step_without_runs_leaves_the_page(shell: Shell) -> None:
    walk, page = learn.Walk(shell), [shell.shelf.add(recorded()[name]) for name in ("none", "rtn8", "rtn4")]
    _, compared, said, *controls = walk.compare("basics", 0, page)
    assert "runs nothing" in said and all("value" not in part for part in (compared, *controls))
    _, compared, said, *_ = walk.compare("gptq", 0, page)
    assert "RTN 3-bit g64 asymmetric, GPTQ 3-bit g64 asymmetric." in said and "RTN 8-bit per-channel, RTN 4-bit g64 left the page; Reset" in said
    assert all(r.provenance["recorded"] for r in shell.shelf.pick(compared.value))
    assert compared.value == [key for _, key in seats([recorded()[name] for name in ("none", "rtn3_asym", "gptq3_asym")])]
    assert "left the page" not in walk.compare("gptq", 0, compared.value)[2]


def test_a_number_that_was_not_set_is_no_prediction(shell: Shell) -> None:
    walk, step = learn.Walk(shell), stories()["gptq"].steps[0]
    right = float(judge(step, None, recorded(), recorded_answers())[1].split("%")[0])
    start = learn.widgets(step.predict)[1]["value"]
    for moved in ("", "gptq:1", None, "symmetric:0"):
        _, _, conclusion, done, *_ = walk.reveal("gptq", 0, None, start, moved, {})
        assert "You made no prediction.</b> The answer:" in conclusion and "Yours" not in conclusion and done == {}
    _, _, conclusion, done, *_ = walk.reveal("gptq", 0, None, 1.2 * right, "gptq:0", {})
    assert "Close.</b>" in conclusion and "% too large." in conclusion and done == {"gptq": [0]} and "distance" not in conclusion
    assert "Not so.</b>" in walk.reveal("gptq", 0, None, 1.7 * right, "gptq:0", {})[2] and walk.show("gptq", 0, {})[-1] == ""
    assert "You made no prediction" in list(walk.measure("gptq", 0, None, right, ""))[-1][3]


def test_a_conclusion_says_which_configuration_its_numbers_are_of(shell: Shell) -> None:
    walk = learn.Walk(shell)
    assert "GPTQ 3-bit g64 asymmetric; RTN 4-bit g64 asymmetric" in walk.reveal("gptq", 2, 0, 0, "", {})[2]
    assert "1 window, 4 windows, 16 windows, 64 windows: GPTQ 3-bit g64 asymmetric." in learn.provenance(stories()["calibration"].steps[0], recorded(), {})


def test_what_one_ticked_oneself_is_not_called_measured(shell: Shell) -> None:
    explain = next(q for q in questions().values() if q.kind == "explain")
    ended = trainer.finished(trainer.checked({"set": set_of(explain.id)["set"] | {"scores": [0.2], "at": 1}}))
    assert "<td>20% by you</td>" in ended
    assert "See it: the Failure lab tab" in trainer.see("tab:failures")


def test_one_is_not_a_plural() -> None:
    assert [amount(n, 0, unit) for n, unit in ((1, "layers"), (2, "layers"), (1, "tokens/s"), (1, ""))] == ["1 layer", "2 layers", "1 tokens/s", "1"]


def test_a_wrong_answer_says_which_is_whose(shell: Shell) -> None:
    posed = pose(questions()["eval-kl-limit"], "1")
    right, wrong = (next(i for i, at in enumerate(posed.order) if posed.question.options[at].right is found) for found in (True, False))
    said = unescape(trainer.feedback(posed, trainer.grade(posed, wrong, {}), wrong))
    assert f"<b>Wrong.</b> Yours: {posed.shown()[wrong]}. <b>The answer:</b> {posed.shown()[right]}" in said
    assert "Yours" not in trainer.feedback(posed, trainer.grade(posed, right, {}), right)
