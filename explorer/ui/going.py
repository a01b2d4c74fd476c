"""What each session has running: whose turn it is to write the status line, and what a page keeps of it while it is loaded anew. Runs nothing itself."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from explorer.records import Experiment, Report
from explorer.ui.visitor import session

REDRAWN = 1.0  # seconds from a drawing of what is measured to the next
REMEMBERED = 1000  # sessions whose closed runs are known


@dataclass(eq=False)
class SessionRun:
    """One run of a session among those it has going. `before` gets the reports of runs that were pressed before and ended meanwhile. tab, layer: what is
    open, which may change while it runs. link: what is asked for, as a query string. coming: reports that the next line of status brings onto the page.
    found: by experiment the key of the newest report that it has measured. told: whether Cancel has asked for those.
    """

    going: list[SessionRun]
    tab: str
    layer: str | None
    link: str = ""
    before: list[Report] = field(default_factory=list)
    coming: list[Report] = field(default_factory=list)
    found: dict[Experiment, str] = field(default_factory=dict)
    drawn: float = -math.inf
    told: bool = False

    def ahead(self) -> int:
        """How many runs of the session were pressed before and go on: only the first writes the status line."""
        return self.going.index(self)

    def alone(self) -> bool:
        """Whether the session has no other run going: what is not whole then belongs to one that failed."""
        return len(self.going) == 1

    def done(self, report: Report) -> None:
        """Ends the wait for a report, and tells the runs that wait, whose list of what is compared is older."""
        self.before.clear()
        self.coming = [r for r in self.coming if r.experiment != report.experiment]
        self.found[report.experiment] = report.key
        for other in self.going[self.going.index(self) + 1 :]:
            other.before.append(report)

    def expect(self, report: Report, shown: Sequence[Report]) -> None:
        """A report that is not whole, which comes onto the page unless a whole one of the same experiment is there, or comes: that stays until the end."""
        if not any(r.experiment == report.experiment and not r.missing for r in (*shown, *self.coming)):
            self.coming = [r for r in self.coming if r.experiment != report.experiment] + [report]
            self.found[report.experiment] = report.key

    def due(self) -> list[Report]:
        """What comes onto the page now; nothing so soon after the last."""
        if not self.coming or time.monotonic() - self.drawn < REDRAWN:
            return []
        self.drawn, due, self.coming = time.monotonic(), self.coming, []
        return due


class Runs:
    """The runs that each session has going, in the order in which they were pressed, and what those had measured that were closed."""

    def __init__(self) -> None:
        self._going: dict[str, list[SessionRun]] = {}
        self._closed: OrderedDict[str, list[str]] = OrderedDict()

    def on(self) -> bool:
        """Whether the session whose request this is has a run going."""
        return session() in self._going

    def links(self) -> list[str]:
        """What the session whose request this is has going, in the order in which it was asked for."""
        return [run.link for run in self._going.get(session(), [])]

    def sees(self, tab: str = "", layer: str | None = None) -> None:
        """The session whose request this is has opened a tab or chosen a layer."""
        for run in self._going.get(session(), []):
            run.tab, run.layer = tab or run.tab, layer or run.layer

    def found(self) -> list[str]:
        """Keys of what the session whose request this is has measured and may not have drawn: in runs that go on or were just closed. Told once."""
        keys = self._closed.pop(session(), [])
        for run in self._going.get(session(), []):
            keys, run.told = [*keys, *run.found.values()], True
        return list(dict.fromkeys(keys))

    @contextmanager
    def join(self, tab: str, layer: str | None, link: str) -> Iterator[SessionRun]:
        """Joins the runs of the session whose request this is; leaves them at the end."""
        whose = session()
        run = SessionRun(self._going.setdefault(whose, []), tab, layer, link)
        run.going.append(run)
        if run.alone():
            self._closed.pop(whose, None)
        try:
            yield run
        except GeneratorExit:
            self._close(whose, run)
            raise
        finally:
            run.going.remove(run)
            if not run.going:
                self._going.pop(whose, None)

    def _close(self, whose: str, run: SessionRun) -> None:
        """A run ends before its last drawing, by Cancel or because its page is gone. Gradio may close it before or after the button is heard."""
        if not run.told:
            self._closed[whose] = [*self._closed.pop(whose, []), *run.found.values()]
        while len(self._closed) > REMEMBERED:
            self._closed.popitem(last=False)
