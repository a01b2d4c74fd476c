"""Job: a request that somebody waits for, and how long it has computed; what it waits for, a turn or a download, does not count. Knows no process."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, field

from explorer.child import Child
from explorer.records import Event, Partial, Progress

WAITS = ("waiting", "download")  # stages in which a job computes nothing


@dataclass(frozen=True)
class Finished:
    """What is told about a job when it has ended. outcome: "done", "cancelled" or the kind of its failure. waited, seconds: how long it waited and computed.
    event: the last one, of a job that is done.
    """

    name: str
    outcome: str
    waited: float
    seconds: float
    event: Event | None = None


@dataclass(eq=False)
class Job:
    """boxes: a queue for each who waits, with its session; owner, token, address: the session, login and place that asked.

    Times are of the monotonic clock. since: when it last began to compute, None while it waits; spent: seconds that it had computed before. heard: when it
    last said something. blamed: whether its process was ended because of it.
    """

    number: int
    key: str
    message: tuple
    owner: str
    token: str = field(default="", repr=False)
    address: str = ""
    boxes: dict[queue.SimpleQueue, str] = field(default_factory=dict)
    kept: list[Event] = field(default_factory=list)
    last: Progress = field(default_factory=lambda: Progress("starting", 0, 1, "the worker is starting"))
    asked: float = field(default_factory=time.monotonic)
    since: float | None = None
    spent: float = 0.0
    heard: float = 0.0
    cancelled: float | None = None
    child: Child | None = None
    blamed: bool = False
    tries: int = 0

    def hear(self, event: Event) -> None:
        """Takes in what it says. A job of several runs waits in line for each of them, so it may wait again after it has computed."""
        if isinstance(event, Progress):
            self.last = event
        else:
            if isinstance(event, Partial):  # whoever joins needs the last alone
                self.kept = [e for e in self.kept if not isinstance(e, Partial)]
            self.kept.append(event)
        if isinstance(event, Progress) and event.stage in WAITS:
            self.spent, self.since = self.seconds(self.heard), None
        elif self.since is None:
            self.since = self.heard

    def seconds(self, now: float) -> float:
        """How long it has computed."""
        return self.spent + (now - self.since if self.since is not None else 0.0)

    def again(self) -> None:
        """It begins anew in another process."""
        self.child, self.since, self.spent, self.last = None, None, 0.0, Progress("starting", 0, 1, "the worker is starting again")
