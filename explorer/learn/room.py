"""Class votes: rooms that live in memory and forget. A vote belongs to a random ticket of a browser, so it can be changed and counts once; it says which
question it answers, and counts only while that question is open.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from explorer.records import InputError

OWN, LENGTH, WORDS = "own", 300, 80  # the story of a teacher's own questions; characters of such a question, and of a choice
ROOMS, VOTES, HOURS, RATE = 200, 1000, 3.0, 30  # rooms kept, votes a room, life of a room, changes of one ticket a minute
LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ"
TICKET = re.compile(r"[0-9a-f]{16,64}")


class Asked(NamedTuple):
    """What a class is asked: a step of a story, what can be chosen, and whether the answer is out, which ends the voting. number: counts the
    questions of a room. text: of a question that the teacher wrote, whose story is OWN.
    """

    story: str
    step: int
    choices: tuple[str, ...]
    number: int = 0
    revealed: bool = False
    text: str = ""


@dataclass
class Room:
    """One class: what is asked now, and the votes on it by ticket."""

    code: str
    key: str
    born: float
    asked: Asked
    votes: dict[str, int] = field(default_factory=dict)
    changes: dict[str, list[float]] = field(default_factory=dict)


class Rooms:
    """All rooms of one server. Safe to call from several threads; the oldest room goes when there are too many."""

    def __init__(self, clock: type[time] | None = None) -> None:
        self._lock, self._rooms, self._now = threading.Lock(), OrderedDict[str, Room](), (clock or time).monotonic

    def open(self, story: str, step: int, choices: tuple[str, ...]) -> tuple[str, str]:
        """(code for the class, key for the teacher) of a new room."""
        with self._lock:
            self._forget()
            code = next(c for c in iter(lambda: "".join(secrets.choice(LETTERS) for _ in range(5)), None) if c not in self._rooms)
            self._rooms[code] = Room(code, secrets.token_hex(16), self._now(), Asked(story, step, choices))
            while len(self._rooms) > ROOMS:
                self._rooms.popitem(last=False)
            return code, self._rooms[code].key

    def ask(self, code: str, key: str, story: str, step: int, choices: tuple[str, ...]) -> None:
        """The next question: only with the teacher's key. Votes on the last one are forgotten."""
        with self._lock:
            room = self._own(code, key)
            if room.asked[:2] != (story, step):
                room.asked, room.votes = Asked(story, step, choices, room.asked.number + 1), {}

    def pose(self, code: str, key: str, text: str, choices: tuple[str, ...]) -> None:
        """The same with a question that the teacher wrote. Raises InputError with a sentence for one that cannot be voted on."""
        if not 0 < len(text) <= LENGTH:
            raise InputError(f"Write a question of at most {LENGTH} characters.")
        if not 2 <= len(choices) <= 4 or len(set(choices)) < len(choices) or any(len(choice) > WORDS for choice in choices):
            raise InputError(f"Give 2 to 4 different choices, one a line, of at most {WORDS} characters.")
        with self._lock:
            room = self._own(code, key)
            number = room.asked.number + 1
            room.asked, room.votes = Asked(OWN, number, choices, number, text=text), {}

    def reveal(self, code: str, key: str, story: str, step: int) -> None:
        """Ends the voting on a step: only with the teacher's key. Nothing when the room asks something else by now."""
        with self._lock:
            room = self._own(code, key)
            if room.asked[:2] == (story, step):
                room.asked = room.asked._replace(revealed=True)

    def vote(self, code: str, ticket: str, story: str, step: int, choice: int) -> str:
        """Counts a vote on a step, or changes it. Raises InputError with a sentence, also when the class is at another step or knows the answer."""
        if not (isinstance(ticket, str) and TICKET.fullmatch(ticket)):
            raise InputError("This vote carries no valid ticket; reload the page.")
        with self._lock:
            room = self._room(code)
            if room.asked[:2] != (story, step):
                raise InputError("The class has moved on; here is the next question.")
            if room.asked.revealed:
                raise InputError("The answer is out; votes on this question are closed.")
            if not 0 <= choice < len(room.asked.choices):
                raise InputError("That is not one of the choices.")
            now = self._now()
            recent = [t for t in room.changes.get(ticket, []) if now - t < 60]
            if len(recent) >= RATE:
                raise InputError("Too many votes from this browser; wait a minute.")
            if ticket not in room.changes and len(room.changes) >= VOTES:
                raise InputError("This room is full.")
            room.changes[ticket] = [*recent, now]
            room.votes[ticket] = choice
            return room.asked.choices[choice]

    def question(self, code: str) -> Asked:
        """What a room asks now."""
        with self._lock:
            return self._room(code).asked

    def tally(self, code: str) -> tuple[Asked, list[int]]:
        """(what is asked, votes for each choice)."""
        with self._lock:
            room = self._room(code)
            return room.asked, [sum(choice == i for choice in room.votes.values()) for i in range(len(room.asked.choices))]

    def _own(self, code: str, key: str) -> Room:
        """The room, for whoever holds its key."""
        room = self._room(code)
        if not (isinstance(key, str) and secrets.compare_digest(room.key.encode(), key.encode())):
            raise InputError("Only whoever opened this room can change its question.")
        return room

    def _room(self, code: str) -> Room:
        self._forget()
        room = self._rooms.get(str(code).strip().upper()[:8])
        if room is None:
            raise InputError("There is no room with this code now; ask for the code on the screen.")
        return room

    def _forget(self) -> None:
        for code in [c for c, room in self._rooms.items() if self._now() - room.born > HOURS * 3600]:
            del self._rooms[code]
