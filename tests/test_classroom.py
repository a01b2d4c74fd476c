"""The handlers of Class as plain functions: a room from opening to its last question, whatever a browser sends."""

from __future__ import annotations

from html import escape
from types import SimpleNamespace

import gradio as gr
import pytest

from explorer.learn.stories import stories
from explorer.ui.tabs.classroom import handlers as classroom
from explorer.ui.tabs.classroom import stage
from tests.learn_data import NONSENSE, STEPS


@pytest.mark.parametrize(("story", "at"), STEPS)
def test_a_class_can_vote_on_every_step(story: str, at: int) -> None:
    step = stories()[story].steps[at]
    names = stage.choices(step.predict)
    assert 2 <= len(set(names)) == len(names) <= 6 and 0 <= stage.right_choice(step) < len(names)
    assert "The answer:</b> ✓" in stage.answer(stage.first_asked(story, at)[0])
    votes, plot, conclusion = classroom.Classroom().reveal({}, story, at)
    assert votes.count("class='right'") == 1 and (plot.visible or not (step.figure or step.chart)) and "Keep in mind" in conclusion
    assert "<b>The answer:</b>" in conclusion, "a class is not told that it made no prediction"


def test_a_room_from_opening_to_the_next_question() -> None:
    room = classroom.Classroom()
    mine, invitation, *_ = room.open("http://lab.example:7860/", "gptq", 1)
    assert "<svg" in invitation and f"room={mine['code']}" in invitation
    assert "<svg" not in room.open("javascript:alert(1)", "gptq", 1)[1]
    asked, choice, _, seen, timer = room.join(mine["code"].lower())
    assert "Worse weights" in asked and len(choice.choices) == 3 and timer.active and room.follow(seen) == [gr.skip()] * 5
    votes = [value for _, value in choice.choices]
    assert "done" in room.voted(seen, "a" * 32, votes[1])[2] and "error" in room.voted(seen, "nobody", votes[1])[2]
    assert "1 vote<" in room.watch(mine) and room.resume("http://lab.example/", mine)[1].active and not room.resume("", {})[1].active
    gone = room.resume("", {"code": "ZZZZZ", "key": ""})
    assert "This room has ended" in gone[0] and not gone[1].active and gone[-1].open, "after a restart of the server a teacher is told"
    assert "Worse weights" in room.resume("http://lab.example/", mine)[4], "a reloaded page shows what the class is asked"
    assert "0 votes" in (turned := room.turn(mine, "gptq", 1, 1))[3] and "error" in room.turn({"code": mine["code"], "key": "guess"}, "gptq", 1, 0)[3]
    late = room.voted(seen, "a" * 32, votes[1])
    assert "moved on" in late[2] and late[0] == turned[2] and "0 votes" in room.watch(mine), "a tap on an old question is no vote on the new one"


def test_a_teacher_is_told_why_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    room = classroom.Classroom()
    monkeypatch.setattr(classroom, "address", lambda: "here")
    monkeypatch.setattr("explorer.learn.room.OF_ADDRESS", 1)
    mine = room.open("", "gptq", 1)[0]
    room.vote(mine["code"], "a" * 32, "gptq:1:0")
    kept, line, *rest = room.open("", "gptq", 1)
    assert "1 rooms with phones in them from your address" in line and [kept, *rest] == [gr.skip()] * 8


def test_joining_without_a_code_is_told_how() -> None:
    room = classroom.Classroom()
    assert all("five letters" in room.enter(empty)[2] and "error" in room.enter(empty)[2] for empty in ("", "  ", None)) and room.join("")[2] == ""
    assert "no room with this code" in room.enter("ZZZZZ")[2] and "Worse weights" in room.enter(room.open("", "gptq", 1)[0]["code"])[0]


def test_a_teacher_whose_room_has_ended_is_told_to_open_another() -> None:
    room, ended = classroom.Classroom(), {"code": "ABCDE", "key": "0" * 32}
    for said in (room.watch(ended), room.turn(ended, "gptq", 0, 1)[3], room.again(ended, "gptq", 0)[3], room.pose(ended, "Why?", "a\nb")[-1]):
        assert "This room has ended" in said and "Open a room" in said and "ask for the code" not in said


def test_a_reveal_reaches_the_students_and_closes_the_votes() -> None:
    room = classroom.Classroom()
    mine = room.open("", "gptq", 1)[0]
    _, choice, _, seen, _ = room.join(mine["code"])
    vote = choice.choices[1][1]
    room.voted(seen, "a" * 32, vote)
    assert "1 vote<" in (open_one := room.watch(mine)) and "<td>" not in open_one and escape(choice.choices[1][0]) in open_one, "bars would sway the next vote"
    told = room.reveal(mine, "gptq", 1)
    assert ">1</td>" in told[0] and room.watch(mine) == told[0], "a tick after it marks the right bar too"
    assert "class='right'" in room.turn(mine, "gptq", 1, 0)[3], "and so does the step that is open"
    asked, closed, line, now, _ = room.follow(seen, "a" * 32)
    assert asked == gr.skip() and closed.interactive is False and room.follow(now) == [gr.skip()] * 5
    right = stage.right_choice(stories()["gptq"].steps[1]) == 1
    assert f"You chose {escape(choice.choices[1][0])}: {'right' if right else 'not right'}." in line and "The answer:</b> ✓" in line
    assert "You chose" not in room.follow(seen)[2], "whoever did not vote is told the answer alone"
    assert told[0] in line and told[0] in room.join(mine["code"])[2], "a phone sees how the class voted"
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


def test_a_teacher_may_say_which_choice_is_right() -> None:
    room = classroom.Classroom()
    mine = room.open("", "gptq", 1)[0]
    assert "no choice 3" in room.pose(mine, "Which?", "a\nb", 3)[-1]
    for junk in (None, 0, -1, "x", True, 1.5, []):
        assert "done" in room.pose(mine, "Which?", "a\nb", junk)[-1] and "class='right'" not in room.reveal(mine, "gptq", 1)[0]
    assert "A question of your teacher" in room.pose(mine, "Which?", "<i>a\nb", 1)[2]
    _, choice, _, seen, _ = room.join(mine["code"])
    assert "Voted" in room.voted(seen, "a" * 32, choice.choices[1][1])[2]
    votes, _, said = room.reveal(mine, "gptq", 1)
    assert "class='right'><th scope='row'>✓ &lt;i&gt;a" in votes and "The answer:</b> ✓ &lt;i&gt;a" in said and "No run answers" not in said
    assert "You chose b: not right" in room.follow(seen, "a" * 32)[2] and "The answer:</b> ✓ &lt;i&gt;a" in room.follow(seen, "a" * 32)[2]


def test_a_room_that_phones_cannot_reach_says_so() -> None:
    room = classroom.Classroom()
    for alone in ("http://127.0.0.1:7860/", "http://localhost/", "http://LOCALHOST:7860/", "http://[::1]:7860/", "http://0.0.0.0:7860/", "http://127.0.1.1"):
        mine, invitation, *_ = room.open(alone, "gptq", 1)
        assert "Phones cannot reach this address" in invitation and "GRADIO_SERVER_NAME=0.0.0.0" in invitation and mine["code"] in invitation
        assert "Phones cannot reach" in room.resume(alone, mine)[0]
    for open_one in ("http://lab.example:7860/", "https://localhost.example/", "http://192.168.1.27:7860/", "", "https://a.example/127.0.0.1/"):
        assert "Phones cannot reach" not in room.open(open_one, "gptq", 1)[1]


def test_back_finds_the_votes_the_answer_and_a_student_s_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    room = classroom.Classroom()
    monkeypatch.setattr(classroom, "session", lambda: "a phone")
    mine = room.open("", "gptq", 1)[0]
    _, choice, _, seen, _ = room.join(mine["code"])
    room.voted(seen, "a" * 32, choice.choices[1][1])
    assert "1 vote, 1 phone in the room" in room.watch(mine)
    reloaded = room.join(mine["code"], "", "a" * 32)
    assert f"Voted: {escape(choice.choices[1][0])}." in reloaded[2] and reloaded[1].value == choice.choices[1][1], "a reload keeps the line and the choice"
    assert not room.join(mine["code"], "", "b" * 32)[2], "and another phone has neither"
    told = room.reveal(mine, "gptq", 1)
    room.turn(mine, "gptq", 1, 1)
    later = room.follow(seen, "a" * 32)
    back = room.turn(mine, "gptq", 2, -1)
    assert back[3] == told[0] and "Keep in mind" in back[5]
    asked, again, line, _, _ = room.follow(later[3], "a" * 32)
    assert "Worse weights" in asked and again.value == choice.choices[1][1] and not again.interactive and "You chose" in line
    anew = room.again(mine, "gptq", 1)
    assert "0 votes" in anew[3] and not anew[5] and room.follow(seen, "a" * 32)[1].value is None
    assert "error" in room.again(mine | {"key": "guess"}, "gptq", 1)[3] and len(room.again({}, "gptq", 1)) == 6


def test_a_class_votes_on_a_question_of_the_trainer_s() -> None:
    room = classroom.Classroom()
    assert "Open a room first" in room.borrow({}, next(iter(classroom.borrowed())))[-1]
    mine = room.open("", "gptq", 1)[0]
    assert all("Choose a question" in room.borrow(mine, junk)[-1] for junk in (None, "x", "eval-paired"))
    for i, (name, question) in enumerate(classroom.borrowed().items()):
        ticket = f"{i:032x}"
        screen = room.borrow(mine, name)
        asked, choice, _, seen, _ = room.join(mine["code"])
        right = next(option for option in question.options if option.right)
        vote = next(value for text, value in choice.choices if text == right.text)
        assert escape(question.ask) in asked and asked == screen[2] and "The class is asked" in screen[-1] and "Voted" in room.voted(seen, ticket, vote)[2]
        votes, _, said = room.reveal(mine, "gptq", 1)
        assert f"class='right'><th scope='row'>✓ {escape(right.text)}" in votes and escape(right.why) in said and "Source:" in said
        assert ": right.</b>" in room.follow(seen, ticket)[2]
    assert "Worse weights" in room.turn(mine, "gptq", 1, -1)[2], "Back leads to the step before it"


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
