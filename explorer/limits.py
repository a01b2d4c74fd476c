"""Limits of a server and each visitor's share of it. Knows nothing of processes."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass

from explorer.records import InputError

HOUR, KNOWN = 3600.0, 1000  # seconds; sessions whose use is remembered


@dataclass(frozen=True)
class Limits:
    """deadline: seconds a job may compute; silence: seconds it may compute without an event; cancel: seconds it has to stop in.

    jobs: in all; jobs_of_address: of them, so that who makes up sessions leaves some to others, and a class of a hundred behind one address has enough;
    jobs_of_session: at once; seconds_of_session: of computing in an hour, 0 for any. remember: seconds that a finished job
    answers further equal requests. spare: whether a second process stands by.
    """

    deadline: float = 1800.0
    silence: float = 240.0
    cancel: float = 1.5
    jobs: int = 256
    jobs_of_address: int = 192
    jobs_of_session: int = 4
    seconds_of_session: float = 0.0
    remember: float = 60.0
    spare: bool = True


class Shares:
    """What each session uses. The caller holds a lock; "" is nobody in particular and has no limit."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._open = limits, Counter[str]()
        self._spent: OrderedDict[str, deque[tuple[float, float]]] = OrderedDict()

    def admit(self, session: str) -> None:
        """Raises InputError with a sentence when a session may not ask for more now."""
        limits = self._limits
        if session and self._open[session] >= limits.jobs_of_session:
            raise InputError(f"You have {limits.jobs_of_session} runs on this server already; wait for one of them or cancel it.")
        spent = self._last_hour(session)
        if session and 0 < limits.seconds_of_session < spent:
            raise InputError(f"You have used {spent:.0f} s of computing in the last hour, which is your share; stored results are still shown at once.")

    def place(self, line: list[str], address: str, usual: float) -> None:
        """Raises InputError when a line of jobs, by address, has no place for one more of this address. usual: seconds a job."""
        own = line.count(address) if address else 0
        if len(line) >= self._limits.jobs:
            raise InputError(f"This server has {len(line)} runs in line, which is all it takes; try again in {len(line) * usual:.0f} s.")
        if own >= self._limits.jobs_of_address:
            raise InputError(f"Your network address has {own} runs in line, which is its share; try again in {own * usual:.0f} s.")

    def enter(self, session: str) -> None:
        """A session waits for one more job."""
        self._open[session] += 1

    def leave(self, session: str) -> None:
        """A session waits for one job less."""
        self._open[session] -= 1
        if not self._open[session]:
            del self._open[session]

    def charge(self, sessions: list[str], seconds: float) -> None:
        """A job's seconds, shared by those who waited for it."""
        for session in sessions:
            self._spent.setdefault(session, deque()).append((time.monotonic(), seconds / len(sessions)))
            self._spent.move_to_end(session)
        while len(self._spent) > KNOWN:
            self._spent.popitem(last=False)

    def _last_hour(self, session: str) -> float:
        entries = self._spent.get(session, deque())
        while entries and time.monotonic() - entries[0][0] > HOUR:
            entries.popleft()
        return sum(seconds for _, seconds in entries)
