"""The handlers of Learn, Trainer and Class as plain functions: every step and question can be shown and answered, whatever a browser sends."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from html import escape
from types import SimpleNamespace

import gradio as gr
import pytest

import app
from explorer.learn.bank import Question, questions
from explorer.learn.interview import cards
from explorer.learn.pose import amount, pose
from explorer.learn.runs import named_runs, named_tasks, recorded, recorded_answers
from explorer.learn.stories import judge, stories
from explorer.records import InputError, Progress, key_of
from explorer.ui import classroom, interviewer, learn, trainer
from explorer.ui.page import OPTIONS
from explorer.ui.session import Shelf
from explorer.ui.tab import Shell

CATALOGUE = json.loads((app.ASSETS / "methods.json").read_text())["methods"]
STEPS = [(story.name, at) for story in stories().values() for at in range(len(story.steps))]
NONSENSE = (None, "x", -1, 99, float("nan"), [], {}, [1, "2"], {"a": 1}, True)


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
    width = 2 + len(OPTIONS) + sum(len(m["fields"]) for m in CATALOGUE)
    return Shell(Recorded(), Shelf([recorded()["none"]]), CATALOGUE, ["demo"], controls=[object()] * width)


@pytest.mark.parametrize(("story", "at"), STEPS)
def test_every_step_is_revealed_measured_and_compared(shell: Shell, story: str, at: int) -> None:
    walk, step = learn.Walk(shell), stories()[story].steps[at]
    assert step.title in walk.show(story, at, {})[2].replace("&#x27;", "'")
    plot, _, conclusion, done, *_ = walk.reveal(story, at, 0 if step.predict.options else None, step.predict.low, learn.place_of(story, at), {})
    assert "Keep in mind" in conclusion and done == {story: [at]} and (plot.visible or not (step.figure or step.chart))
    events = list(walk.measure(story, at, 0, step.predict.low, ""))
    assert "measured here" in events[-1][-1].value and ("fresh" in events[-1][2]) == bool(step.runs)
    assert len(walk.compare(story, at, [])) == 3 + len(shell.controls) and walk.show(story, at, {})[-2].visible == bool(step.runs)


def test_a_step_asks_for_a_prediction_and_says_why_it_failed(shell: Shell) -> None:
    walk = learn.Walk(shell)
    assert "Choose a prediction" in walk.reveal("basics", 0, None, 0, "", {})[-1].value
    shell.runner.error = InputError("The text is too short.")
    assert "too short" in list(walk.measure("gptq", 0, None, 50, ""))[-1][-1].value
    names = list(stories())
    assert walk.turn(names[0], 4, {}, 1)[0].value == names[1] and walk.turn(names[0], 0, {}, -1)[0].value == names[-1]
    for junk in NONSENSE:
        assert learn.place(junk, junk)[1] in (0, 1) and isinstance(learn.checked(junk), dict)
        assert walk.show(junk, junk, junk)[2]


@pytest.mark.parametrize("question", list(questions().values()), ids=lambda q: q.id)
def test_every_question_is_asked_and_graded(shell: Shell, question: Question) -> None:
    coach = trainer.Trainer(shell)
    state = set_of(question.id)
    shown = coach.show(state)
    assert len(shown) == 7 + trainer.FIELDS + 5 + 1
    posed = pose(question, "7")
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
    assert any("quantize" in event[4] and event[-1]["visible"] for event in events[:-1]), "progress streams, and nobody has to wait"
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


def test_interviews_take_the_runs_on_the_page_as_evidence(shell: Shell) -> None:
    mode = interviewer.Interviewer(shell)
    key = shell.shelf.add(recorded()["gptq4"])
    assert "Write an answer first." in mode.record([], "four-bits", " ", 70, [key])[-1]
    notes, listed, page, _ = mode.record([], "four-bits", "<b>GPTQ</b>", 70, [recorded()["none"].key, key])
    assert (
        len(notes[0]["evidence"]) == 1
        and notes[0]["evidence"][0]["run"] == key_of(recorded()["gptq4"].experiment)
        and "<b>GPTQ" not in page
        and listed["visible"]
    )
    ticked, _ = mode.tick(notes, [0, 2, 99])
    assert ticked[0]["met"] == [0, 2] and interviewer.checked(json.loads(json.dumps(ticked))) == ticked
    for junk in NONSENSE:
        assert interviewer.checked(junk) == [] and mode.tick(junk, junk) and mode.show(junk) == "" and mode.turn(str(junk))
    assert all(interviewer.shown_card(name) for name in cards())


@pytest.mark.parametrize(("story", "at"), STEPS)
def test_a_class_can_vote_on_every_step(story: str, at: int) -> None:
    step = stories()[story].steps[at]
    names = classroom.choices(step.predict)
    assert 2 <= len(set(names)) == len(names) <= 6 and 0 <= classroom.right_choice(step) < len(names)
    assert "The answer:</b> ✓" in classroom.answer(classroom.first_asked(story, at)[0])
    votes, plot, conclusion = classroom.Classroom().reveal({}, story, at)
    assert votes.count("class='right'") == 1 and (plot.visible or not (step.figure or step.chart)) and "Keep in mind" in conclusion


def test_a_room_from_opening_to_the_next_question() -> None:
    room = classroom.Classroom()
    mine, invitation, *_ = room.open("http://lab.example:7860/", "gptq", 1)
    assert "<svg" in invitation and f"room={mine['code']}" in invitation
    assert "<svg" not in room.open("javascript:alert(1)", "gptq", 1)[1]
    asked, choice, _, seen, timer = room.join(mine["code"].lower())
    assert "Worse weights" in asked and len(choice.choices) == 3 and timer.active and room.follow(seen) == [gr.skip()] * 5
    votes = [value for _, value in choice.choices]
    assert "done" in room.voted(seen, "a" * 32, votes[1])[2] and "error" in room.voted(seen, "nobody", votes[1])[2]
    assert ">1</td>" in room.watch(mine) and room.resume("http://lab.example/", mine)[1].active and not room.resume("", {"code": "ZZZZZ"})[1].active
    assert "Worse weights" in room.resume("http://lab.example/", mine)[4], "a reloaded page shows what the class is asked"
    assert "0 votes" in (turned := room.turn(mine, "gptq", 1, 1))[3] and "error" in room.turn({"code": mine["code"], "key": "guess"}, "gptq", 1, 0)[3]
    late = room.voted(seen, "a" * 32, votes[1])
    assert "moved on" in late[2] and late[0] == turned[2] and "0 votes" in room.watch(mine), "a tap on an old question is no vote on the new one"


def test_joining_without_a_code_is_told_how() -> None:
    room = classroom.Classroom()
    assert all("five letters" in room.enter(empty)[2] and "error" in room.enter(empty)[2] for empty in ("", "  ", None)) and room.join("")[2] == ""
    assert "no room with this code" in room.enter("ZZZZZ")[2] and "Worse weights" in room.enter(room.open("", "gptq", 1)[0]["code"])[0]


def test_a_reveal_reaches_the_students_and_closes_the_votes() -> None:
    room = classroom.Classroom()
    mine = room.open("", "gptq", 1)[0]
    _, choice, _, seen, _ = room.join(mine["code"])
    vote = choice.choices[1][1]
    room.voted(seen, "a" * 32, vote)
    assert "class='right'" not in room.watch(mine)
    told = room.reveal(mine, "gptq", 1)
    assert ">1</td>" in told[0] and room.watch(mine) == told[0], "a tick after it marks the right bar too"
    assert "class='right'" in room.turn(mine, "gptq", 1, 0)[3], "and so does the step that is open"
    asked, closed, line, now, _ = room.follow(seen)
    assert asked == gr.skip() and closed.interactive is False and "The answer:" in line and "✓" in line and room.follow(now) == [gr.skip()] * 5
    late = room.voted(seen, "b" * 32, vote)
    assert "closed" in late[2] and "The answer:" in late[2] and "1 vote<" in room.watch(mine)
    assert "The answer:" in room.join(mine["code"])[2], "whoever comes late reads it as well"


def test_a_teacher_s_own_question_is_voted_on_and_has_no_right_choice() -> None:
    room = classroom.Classroom()
    assert "Open a room first" in room.pose({}, "Which?", "a\nb")[-1]
    mine = room.open("", "gptq", 1)[0]
    wrong = (("", "a\nb"), ("x" * 301, "a\nb"), ("Q", "a"), ("Q", "a\na"), ("Q", "a\nb\nc\nd\ne"), ("Q", "a\n" + "b" * 81), (None, None))
    assert all("error" in room.pose(mine, *bad)[-1] for bad in wrong) and "error" in room.pose(mine | {"key": "guess"}, "Q", "a\nb")[-1]
    assert "Worse weights" in room.join(mine["code"])[0], "what was refused leaves the question as it was"
    *screen, line = room.pose(mine, "Which <b>?", " a \n\n<i>b")
    assert "Which &lt;b&gt;?" in screen[2] and "0 votes" in screen[3] and "&lt;i&gt;b" in screen[3] and "done" in line
    asked, choice, _, seen, _ = room.join(mine["code"])
    assert "Which &lt;b&gt;?" in asked and [name for name, _ in choice.choices] == ["a", "<i>b"]
    assert "Voted: <i>b" in room.vote(mine["code"], "a" * 32, choice.choices[1][1]) and "&lt;i&gt;b" in room.voted(seen, "a" * 32, choice.choices[1][1])[2]
    votes, plot, said = room.reveal(mine, "gptq", 1)
    assert "1 vote<" in votes and "class='right'" not in votes and not plot.visible and "The votes are in" in said
    assert "The votes are in" in room.follow(seen)[2] and "closed" in room.voted(seen, "b" * 32, choice.choices[0][1])[2]
    assert "A question of your teacher" in room.resume("", mine)[4] and "Worse weights" in room.turn(mine, "gptq", 1)[2] and "0 votes" in room.watch(mine)


def test_nonsense_is_no_vote() -> None:
    room = classroom.Classroom()
    mine = room.open("", "gptq", 1)[0]
    for junk in NONSENSE:
        assert (
            room.turn(junk, junk, junk)
            and room.reveal(junk, junk, junk)
            and "error" in room.pose(mine, junk, junk)[-1]
            and room.pose(junk, junk, junk)
            and room.join(junk)
            and "error" in room.voted(mine["code"], "a" * 32, junk)[2]
            and room.voted(junk, junk, junk)
            and room.follow(junk)
        )
    assert SimpleNamespace(**mine).key not in str(room.join(mine["code"]))


def test_compare_says_what_came_and_what_left_and_a_step_without_runs_leaves_the_page(shell: Shell) -> None:
    walk, page = learn.Walk(shell), [shell.shelf.add(recorded()[name]) for name in ("none", "rtn8", "rtn4")]
    _, compared, said, *controls = walk.compare("basics", 0, page)
    assert "runs nothing" in said and all("value" not in part for part in (compared, *controls))
    _, compared, said, *_ = walk.compare("gptq", 0, page)
    assert "RTN 3-bit g64 asymmetric, GPTQ 3-bit g64 asymmetric." in said and "RTN 8-bit per-channel, RTN 4-bit g64 left the page; Reset" in said
    assert all(r.provenance["recorded"] for r in shell.shelf.pick(compared.value))
    assert compared.value == [page[0], recorded()["rtn3_asym"].key, recorded()["gptq3_asym"].key]
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
    assert "You made no prediction" in list(walk.measure("gptq", 0, None, right, ""))[-1][2]


def test_a_conclusion_says_which_configuration_its_numbers_are_of(shell: Shell) -> None:
    walk = learn.Walk(shell)
    assert "GPTQ 3-bit g64 asymmetric; RTN 4-bit g64 asymmetric" in walk.reveal("gptq", 2, 0, 0, "", {})[2]
    assert "1 window, 4 windows, 16 windows, 64 windows: GPTQ 3-bit g64 asymmetric." in learn.provenance(stories()["calibration"].steps[0], recorded(), {})
    assert "<b>The answer:</b>" in classroom.Classroom().reveal({}, "gptq", 0)[2], "a class is not told that it made no prediction"


def test_what_one_ticked_oneself_is_not_called_measured(shell: Shell) -> None:
    explain = next(q for q in questions().values() if q.kind == "explain")
    ended = trainer.finished(trainer.checked({"set": set_of(explain.id)["set"] | {"scores": [0.2], "at": 1}}))
    assert "<td>20% by you</td>" in ended
    assert "See it: the Failure lab tab" in trainer.see("tab:failures")


def test_one_is_not_a_plural() -> None:
    assert [amount(n, 0, unit) for n, unit in ((1, "layers"), (2, "layers"), (1, "tokens/s"), (1, ""))] == ["1 layer", "2 layers", "1 tokens/s", "1"]
