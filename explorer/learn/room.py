"""Class votes: rooms that live in memory and forget. A vote belongs to a random ticket of a browser, so it can be changed and counts once; it says which
question it answers, and counts only while that question is open. A question that was asked keeps its votes and its answer until it is asked again.
"""

from __future__ import annotations

import math
import re
import secrets
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from explorer.records import InputError

OWN, LENGTH, WORDS = "own", 300, 80  # the story of a teacher's own questions; characters of such a question, and of a choice
ROOMS, VOTES, HOURS, RATE = 200, 1000, 3.0, 30  # rooms kept, votes a question, life of a room, changes of one ticket a minute
POLLS, HERE = 60, 15.0  # questions whose votes a room keeps; seconds since its last look in which a phone is in the room
NONE = "There is no room with this code now; ask for the code on the screen."
ENDED = f"This room has ended: rooms live {HOURS:g} hours, not beyond a restart; without phones they make way. Open a room to go on; it starts without votes."
OF_ADDRESS, TICKETS = 50, 300  # rooms that one address has opened, voters of a room from one address: a whole school may share it
LULL = 900.0  # seconds without a phone, after which a room may go for another
LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ"
TICKET = re.compile(r"[0-9a-f]{16,64}")


class Asked(NamedTuple):
    """What a class is asked: a step of a story, what can be chosen, and whether the answer is out, which ends the voting. number: counts the
    questions of a room. text: of a question that is no step, whose story is OWN; right, why: its right choice, if it has one, and what is said then. lent: it
    is of the trainer's bank, not the teacher's own.
    """

    story: str
    step: int
    choices: tuple[str, ...]
    number: int = 0
    revealed: bool = False
    text: str = ""
    right: int | None = None
    why: str = ""
    lent: bool = False


@dataclass
class Poll:
    """A question and the votes on it by ticket."""

    asked: Asked
    votes: dict[str, int] = field(default_factory=dict)


@dataclass
class Room:
    """One class: the questions it was asked by story and step, and which is open. changes, phones: times of a ticket's votes and of a page's last look.

    address: of whoever opened it. used: when a phone looked or voted last. voters: how many tickets came from each address.
    """

    code: str
    key: str
    born: float
    open: Poll
    polls: dict[tuple[str, int], Poll] = field(default_factory=dict)
    changes: dict[str, list[float]] = field(default_factory=dict)
    phones: dict[str, float] = field(default_factory=dict)
    count: int = 0
    address: str = ""
    used: float = -math.inf
    voters: Counter[str] = field(default_factory=Counter)

    def ask(self, asked: Asked) -> None:
        """Opens a question without votes; the oldest one goes when there are too many."""
        self.open = Poll(asked._replace(number=self.count))
        self.count += 1
        self.polls.pop(asked[:2], None)
        self.polls[asked[:2]] = self.open
        while len(self.polls) > POLLS:
            self.polls.pop(next(iter(self.polls)))


class Rooms:
    """All rooms of one server. Safe to call from several threads; where there are too many, the oldest goes in which no phone was lately. address:
    what tells the addresses of those who ask apart, without naming them; "" is nobody in particular and has no limit.
    """

    def __init__(self, clock: type[time] | None = None) -> None:
        self._lock, self._rooms, self._now = threading.Lock(), OrderedDict[str, Room](), (clock or time).monotonic

    def open(self, story: str, step: int, choices: tuple[str, ...], address: str = "") -> tuple[str, str]:
        """(code for the class, key for the teacher) of a new room. Raises InputError with a sentence where phones are in all the rooms there may be."""
        with self._lock:
            self._forget()
            self._make_way([room for room in self._rooms.values() if address and room.address == address], OF_ADDRESS, "from your address")
            self._make_way(list(self._rooms.values()), ROOMS, "on this server")
            code = next(c for c in iter(lambda: "".join(secrets.choice(LETTERS) for _ in range(5)), None) if c not in self._rooms)
            asked = Asked(story, step, choices)
            room = self._rooms[code] = Room(code, secrets.token_hex(16), self._now(), Poll(asked), address=address)
            room.ask(asked)
            return code, room.key

    def ask(self, code: str, key: str, story: str, step: int, choices: tuple[str, ...]) -> None:
        """Another question: only with the teacher's key. One that was asked before is as it was left."""
        with self._lock:
            room = self._own(code, key)
            if (story, step) in room.polls:
                room.open = room.polls[story, step]
            else:
                room.ask(Asked(story, step, choices))

    def again(self, code: str, key: str) -> None:
        """Asks the open question anew: its votes and its answer are forgotten."""
        with self._lock:
            room = self._own(code, key)
            room.ask(room.open.asked._replace(revealed=False))

    def pose(self, code: str, key: str, text: str, choices: tuple[str, ...], right: int | None = None, why: str = "", lent: bool = False) -> None:
        """The same with a question that is no step. right, why, lent: as in `Asked`. Raises InputError with a sentence for one of a teacher's that cannot be
        voted on.
        """
        if not lent and not 0 < len(text) <= LENGTH:
            raise InputError(f"Write a question of at most {LENGTH} characters.")
        if not lent and (not 2 <= len(choices) <= 4 or len(set(choices)) < len(choices) or any(len(choice) > WORDS for choice in choices)):
            raise InputError(f"Give 2 to 4 different choices, one a line, of at most {WORDS} characters.")
        if right is not None and not 0 <= right < len(choices):
            raise InputError(f"There is no choice {right + 1} that could be the right one.")
        with self._lock:
            room = self._own(code, key)
            room.ask(Asked(OWN, room.count, choices, text=text, right=right, why=why, lent=lent))

    def reveal(self, code: str, key: str, story: str, step: int) -> None:
        """Ends the voting on a step: only with the teacher's key. Nothing when the room asks something else by now."""
        with self._lock:
            open_one = self._own(code, key).open
            if open_one.asked[:2] == (story, step):
                open_one.asked = open_one.asked._replace(revealed=True)

    def vote(self, code: str, ticket: str, story: str, step: int, choice: int, address: str = "") -> str:
        """Counts a vote on a step, or changes it. Raises InputError with a sentence, also when the class is at another step or knows the answer."""
        if not (isinstance(ticket, str) and TICKET.fullmatch(ticket)):
            raise InputError("This vote carries no valid ticket; reload the page.")
        with self._lock:
            room = self._room(code)
            asked = room.open.asked
            if asked[:2] != (story, step):
                raise InputError("The class has moved on; here is the next question.")
            if asked.revealed:
                raise InputError("The answer is out; votes on this question are closed.")
            if not 0 <= choice < len(asked.choices):
                raise InputError("That is not one of the choices.")
            now = self._now()
            recent = [t for t in room.changes.get(ticket, []) if now - t < 60]
            if len(recent) >= RATE:
                raise InputError("Too many votes from this browser; wait a minute.")
            new = ticket not in room.changes
            if new and len(room.changes) >= VOTES:
                raise InputError("This room is full.")
            if new and address and room.voters[address] >= TICKETS:
                raise InputError(f"{TICKETS} phones or browsers of your address have voted in this room, which is all it takes.")
            room.voters[address] += new
            room.changes[ticket], room.used = [*recent, now], now
            room.open.votes[ticket] = choice
            return asked.choices[choice]

    def question(self, code: str) -> Asked:
        """What a teacher's room asks now."""
        with self._lock:
            return self._room(code, ENDED).open.asked

    def look(self, code: str, ticket: Any = "", phone: str = "") -> tuple[Asked, int | None]:
        """(what a room asks now, the choice of this ticket, None before its vote). phone: which page looks, to be counted."""
        with self._lock:
            room = self._room(code)
            if phone and (phone in room.phones or len(room.phones) < VOTES):
                room.phones[phone] = room.used = self._now()
            return room.open.asked, room.open.votes.get(ticket) if isinstance(ticket, str) else None

    def tally(self, code: str) -> tuple[Asked, list[int], int]:
        """(what a teacher's room asks, votes for each choice, phones that looked just now)."""
        with self._lock:
            room = self._room(code, ENDED)
            room.phones = {phone: at for phone, at in room.phones.items() if self._now() - at < HERE}
            votes = Counter(room.open.votes.values())
            return room.open.asked, [votes[i] for i in range(len(room.open.asked.choices))], len(room.phones)

    def _make_way(self, rooms: list[Room], most: int, where: str) -> None:
        """Forgets one of these rooms when there are `most`."""
        if len(rooms) < most:
            return
        idle = next((room for room in rooms if self._now() - room.used > LULL), None)
        if idle is None:
            raise InputError(f"There are {most} rooms with phones in them {where}, which is all there may be; open one when a class has ended.")
        del self._rooms[idle.code]

    def _own(self, code: str, key: str) -> Room:
        """The room, for whoever holds its key."""
        room = self._room(code, ENDED)
        if not (isinstance(key, str) and secrets.compare_digest(room.key.encode(), key.encode())):
            raise InputError("Only whoever opened this room can change its question.")
        return room

    def _room(self, code: str, gone: str = NONE) -> Room:
        self._forget()
        room = self._rooms.get(str(code).strip().upper()[:8])
        if room is None:
            raise InputError(gone)
        return room

    def _forget(self) -> None:
        for code in [c for c, room in self._rooms.items() if self._now() - room.born > HOURS * 3600]:
            del self._rooms[code]
