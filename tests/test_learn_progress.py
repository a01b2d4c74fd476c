"""Progress, sets, the daily challenge, interviews and class rooms: pure functions and a lock, no browser."""

from __future__ import annotations

import dataclasses
import datetime
import json
import threading
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext

from explorer.learn import interview, progress
from explorer.learn.bank import areas, questions
from explorer.learn.pose import pose
from explorer.learn.room import HERE, LULL, OF_ADDRESS, POLLS, RATE, ROOMS, TICKETS, VOTES, Asked, Rooms
from explorer.learn.runs import recorded
from explorer.records import InputError, key_of
from explorer.ui import visitor
from tests.learn_data import practised

BANK = questions()


def test_rating_follows_answers_and_stays_bounded() -> None:
    good, bad = practised(40, 1.0), practised(40, 0.0)
    assert good["rating"] > progress.START + 150 > progress.START - 150 > bad["rating"]
    assert progress.expected(1200, 1200) == 0.5 and progress.expected(1600, 1200) == pytest.approx(10 / 11)
    lucky = progress.answered(progress.fresh(), next(q for q in BANK.values() if q.level == "senior"), 1.0, 0.5, 1)
    easy = progress.answered(progress.fresh(), next(q for q in BANK.values() if q.level == "junior"), 1.0, 0.5, 1)
    assert lucky["rating"] > easy["rating"], "a hard question right moves more than an easy one"


def test_sets_follow_the_rating() -> None:
    def level(state: progress.State) -> float:
        names = [name for seed in "abcdef" for name in progress.next_set(state, BANK, 100, seed)]
        return sum(progress.DIFFICULTY[BANK[name].level] for name in names) / len(names)

    strong, weak = progress.fresh() | {"rating": 1500.0}, progress.fresh() | {"rating": 900.0}
    assert level(strong) > level(progress.fresh()) > level(weak)
    chosen = progress.next_set(progress.fresh(), BANK, 100, "x")
    assert len(set(chosen)) == 5 and len({BANK[name].area for name in chosen}) >= 4 and chosen == progress.next_set(progress.fresh(), BANK, 100, "x")
    only = progress.next_set(progress.fresh(), BANK, 100, "x", ["05_gptq"])
    assert {BANK[name].area for name in only} == {"05_gptq"}


def test_missed_questions_come_back_and_known_ones_wait() -> None:
    first, second = list(BANK.values())[:2]
    state = progress.answered(progress.answered(progress.fresh(), first, 0.0, 0.9, 100), second, 1.0, 0.9, 100)
    assert progress.due(state, 100) == [] and progress.due(state, 101) == [first.id]
    assert first.id in progress.next_set(state, BANK, 101, "x")
    for day in (102, 106, 114):
        state = progress.answered(state, second, 1.0, 0.9, day)
    assert state["boxes"][second.id] == [4, 130]
    assert progress.answered(state, second, 0.0, 0.9, 131)["boxes"][second.id] == [1, 132]


def test_daily_is_the_same_for_all_and_changes() -> None:
    day = datetime.date(2026, 11, 24)
    assert progress.daily(BANK, day) == progress.daily(dict(reversed(BANK.items())), day) != progress.daily(BANK, day + datetime.timedelta(1))
    for offset in range(60):
        chosen = [BANK[name] for name in progress.daily(BANK, day + datetime.timedelta(offset))]
        assert [q.level for q in chosen] == ["junior", "junior", "mid", "mid", "senior"] and len({q.area for q in chosen}) == 5
        assert not [q.id for q in chosen if pose(q, "x").graded_by or q.runs_model], "the daily challenge is the same on every device, and waits for no run"


@pytest.mark.parametrize(
    "bad",
    [None, [], "x", {"version": 2}, {"version": 1}, progress.fresh() | {"rating": float("nan")}, progress.fresh() | {"log": [1]},
     progress.fresh() | {"boxes": {"a": "b"}}, progress.fresh() | {"concepts": {"a": "b"}}, progress.fresh() | {"log": [{}] * 5000}],
)  # fmt: skip
def test_a_broken_state_starts_afresh(bad: object) -> None:
    assert progress.checked(bad) == progress.fresh()


def test_a_good_state_survives_json_and_stays_small() -> None:
    state = practised(151)
    again = json.loads(json.dumps(state))
    assert progress.checked(again) == again and len(json.dumps(state)) < 45_000
    rows = progress.sheet(state, areas())
    assert len(rows) == len(areas()) and rows[0]["score"] == 1 and rows[0]["brier"] == pytest.approx(0.09)


def test_honest_doubt_costs_less_than_false_certainty() -> None:
    from explorer.learn.answers import brier

    assert brier(0.5, 0) < brier(0.95, 0) and brier(0.95, 1) < brier(0.5, 1)


def test_transcript_names_runs_and_quotes_answers() -> None:
    card = next(iter(interview.cards().values()))
    report = recorded()["rtn4"]
    found = interview.entry(card, "Fits.\n# not a heading", 0.8, [0, 99], [report])
    text = interview.markdown([found])
    assert key_of(report.experiment) in text and "\n> # not a heading" in text and "- [x]" in text and json.loads(json.dumps(found)) == found
    assert found["met"] == [0] and all(len(c.points) >= 5 and c.ask and c.evidence for c in interview.cards().values()) and len(interview.cards()) >= 8


class Clock:
    """A clock that the test turns."""

    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


@pytest.fixture
def rooms() -> Rooms:
    Clock.now = 0.0
    return Rooms(Clock)


def ticket(i: int) -> str:
    return f"{i:016x}"


def test_thirty_browsers_vote_at_once_and_count_once(rooms: Rooms) -> None:
    code, _ = rooms.open("gptq", 0, ("a", "b", "c"))

    def vote(i: int) -> None:
        for choice in (0, i % 3):
            rooms.vote(code.lower(), ticket(i), "gptq", 0, choice)

    threads = [threading.Thread(target=vote, args=(i,)) for i in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rooms.tally(code) == (Asked("gptq", 0, ("a", "b", "c")), [10, 10, 10], 0)


def test_votes_are_checked_and_limited(rooms: Rooms) -> None:
    code, key = rooms.open("gptq", 0, ("a", "b"))
    for bad in ((code, "x", "gptq", 0, 0), (code, None, "gptq", 0, 0), (code, ticket(1), "gptq", 0, 2), (code, ticket(1), "gptq", 0, -1),
                ("ZZZZZ", ticket(1), "gptq", 0, 0)):  # fmt: skip
        with pytest.raises(InputError):
            rooms.vote(*bad)
    assert rooms.tally(code)[1] == [0, 0]
    for _ in range(RATE):
        rooms.vote(code, ticket(1), "gptq", 0, 0)
    with pytest.raises(InputError, match="wait a minute"):
        rooms.vote(code, ticket(1), "gptq", 0, 1)
    Clock.now += 61
    rooms.vote(code, ticket(1), "gptq", 0, 1)
    for i in range(2, VOTES + 1):
        rooms.vote(code, ticket(i), "gptq", 0, 0)
    with pytest.raises(InputError, match="full"):
        rooms.vote(code, ticket(VOTES + 1), "gptq", 0, 0)
    with pytest.raises(InputError, match="Only whoever opened"):
        rooms.ask(code, "wrong", "gptq", 1, ("x",))
    rooms.ask(code, key, "gptq", 1, ("x", "y"))
    assert rooms.question(code) == Asked("gptq", 1, ("x", "y"), 1) and rooms.tally(code)[1] == [0, 0]


def test_rooms_in_which_no_phone_is_go_first(rooms: Rooms) -> None:
    in_use, unused = [rooms.open("gptq", 0, ("a", "b"))[0] for _ in range(2)]
    Clock.now += LULL
    rooms.look(in_use, phone="phone")
    for _ in range(ROOMS):
        last, _ = rooms.open("gptq", 0, ("a", "b"))
    assert rooms.question(in_use) and rooms.question(last)
    with pytest.raises(InputError, match="they make way"):
        rooms.question(unused)


def test_an_address_takes_neither_all_rooms_nor_all_votes(rooms: Rooms) -> None:
    """And a class that shares its address with whoever tries goes on."""
    theirs, _ = rooms.open("gptq", 0, ("a", "b"), "10.0.0.1")
    for _ in range(ROOMS):
        rooms.open("gptq", 0, ("a", "b"), "10.0.0.2")
    assert rooms.question(theirs)
    for i in range(OF_ADDRESS):
        rooms.vote(rooms.open("gptq", 0, ("a", "b"), "10.0.0.2")[0], ticket(i), "gptq", 0, 0)
    with pytest.raises(InputError, match="from your address"):
        rooms.open("gptq", 0, ("a", "b"), "10.0.0.2")
    Clock.now += LULL + 1
    rooms.open("gptq", 0, ("a", "b"), "10.0.0.2")
    for i in range(TICKETS):
        rooms.vote(theirs, ticket(i), "gptq", 0, 1, "10.0.0.2")
    with pytest.raises(InputError, match="of your address have voted"):
        rooms.vote(theirs, ticket(TICKETS), "gptq", 0, 1, "10.0.0.2")
    rooms.vote(theirs, ticket(0), "gptq", 0, 0, "10.0.0.2")
    for i in range(100):
        rooms.vote(theirs, ticket(VOTES + i), "gptq", 0, 0, "10.0.0.1")
    assert rooms.tally(theirs)[1] == [101, TICKETS - 1]


def test_a_vote_counts_only_on_the_question_that_is_open(rooms: Rooms) -> None:
    code, key = rooms.open("gptq", 0, ("a", "b"))
    rooms.vote(code, ticket(1), "gptq", 0, 1)
    rooms.reveal(code, key, "gptq", 3)  # a step that the class has left
    assert not rooms.question(code).revealed
    with pytest.raises(InputError, match="Only whoever opened"):
        rooms.reveal(code, "wrong", "gptq", 0)
    rooms.reveal(code, key, "gptq", 0)
    for choice in (0, 1):
        with pytest.raises(InputError, match="votes on this question are closed"):
            rooms.vote(code, ticket(choice), "gptq", 0, choice)
    assert rooms.tally(code)[1] == [0, 1]
    rooms.ask(code, key, "gptq", 0, ("a", "b"))
    assert rooms.question(code).revealed, "asking what is asked opens nothing again"
    rooms.ask(code, key, "gptq", 1, ("a", "b"))
    for story, step in (("gptq", 0), ("awq", 1)):
        with pytest.raises(InputError, match="moved on"):
            rooms.vote(code, ticket(1), story, step, 1)
    assert rooms.tally(code)[1] == [0, 0] and not rooms.question(code).revealed


def test_going_back_finds_a_question_as_it_was_left_until_it_is_asked_again(rooms: Rooms) -> None:
    code, key = rooms.open("gptq", 0, ("a", "b"))
    rooms.vote(code, ticket(1), "gptq", 0, 1)
    rooms.reveal(code, key, "gptq", 0)
    rooms.ask(code, key, "gptq", 1, ("x", "y"))
    rooms.vote(code, ticket(1), "gptq", 1, 0)
    rooms.ask(code, key, "gptq", 0, ("a", "b"))
    assert rooms.look(code, ticket(1)) == (Asked("gptq", 0, ("a", "b"), 0, True), 1) and rooms.tally(code)[1] == [0, 1]
    rooms.ask(code, key, "gptq", 1, ("x", "y"))
    assert rooms.tally(code)[:2] == (Asked("gptq", 1, ("x", "y"), 1), [1, 0])
    with pytest.raises(InputError, match="Only whoever opened"):
        rooms.again(code, "wrong")
    rooms.again(code, key)
    assert rooms.look(code, ticket(1)) == (Asked("gptq", 1, ("x", "y"), 2), None) and rooms.tally(code)[1] == [0, 0]
    for step in range(2, 2 * POLLS):
        rooms.ask(code, key, "gptq", step, ("x", "y"))
    assert len(rooms._rooms[code].polls) == POLLS


def test_phones_are_counted_while_they_look(rooms: Rooms) -> None:
    code, _ = rooms.open("gptq", 0, ("a", "b"))
    for phone in ("one", "two", "one", ""):
        rooms.look(code, None, phone)
    assert rooms.tally(code)[2] == 2
    Clock.now += HERE - 1
    rooms.look(code, None, "one")
    Clock.now += 2
    assert rooms.tally(code)[2] == 1


def test_rooms_end(rooms: Rooms) -> None:
    code, _ = rooms.open("gptq", 0, ("a", "b"))
    Clock.now += 4 * 3600
    with pytest.raises(InputError, match="This room has ended"):
        rooms.tally(code)
    with pytest.raises(InputError, match="no room"):
        rooms.look(code)


def test_nothing_in_a_room_names_a_person(rooms: Rooms) -> None:
    code, _ = rooms.open("gptq", 0, ("a", "b"))
    rooms.vote(code, ticket(7), "gptq", 0, 1)
    room = rooms._rooms[code]
    assert {f.name for f in dataclasses.fields(room)} == {"code", "key", "born", "open", "polls", "changes", "phones", "count", "address", "used", "voters"}


def test_an_address_is_told_apart_and_not_named() -> None:
    def seen(host: str) -> str:
        before = LocalContext.request.set(SimpleNamespace(client=SimpleNamespace(host=host)))
        try:
            return visitor.address()
        finally:
            LocalContext.request.reset(before)

    assert visitor.address() == seen("") == "" and "10.0" not in seen("10.0.0.1") and seen("10.0.0.1") == seen("10.0.0.1") != seen("10.0.0.2")
    assert seen("2001:db8:0:1::1") == seen("2001:db8:0:1:ffff::2") != seen("2001:db8:0:2::1") and seen("testclient")
