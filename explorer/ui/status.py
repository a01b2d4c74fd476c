"""The status line: progress, failures and results in one sentence, as HTML. Knows no page."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from html import escape

from explorer.records import Event, InputError, Progress

STALLED = 1.5  # times what a step of a stage usually takes, from which on nothing says how long the rest takes


def status(text: str, kind: str = "", share: float | None = None, chips: str = "", stage: str = "") -> str:
    """The status line; `text` is escaped here, `chips` (of explorer.chips) are HTML. stage: of work that goes on. assets/page.js has lines read aloud: what
    changes at once, work that goes on by its stages.
    """
    bar = f"<progress max='1' value='{share:.3f}' aria-label='progress'></progress>" if share is not None else ""
    return f"<div class='status {kind}' data-stage='{escape(stage, quote=True)}'>{bar}<span>{chips} {escape(text)}</span></div>"


class Clock:
    """Turns progress into status lines, at most five a second, with the time left once it can be told: to the end of the run where the last one of its
    kind says it, else in the stage, and only while that goes on: work that stalls would add to it. begun: when each stage of the run began. note: a
    sentence that every line ends with.
    """

    def __init__(self) -> None:
        self.started = self._stage_started = self._moved = time.monotonic()
        self._stage, self._shown, self._done, self.note = "", 0.0, 0, ""
        self.follow({})

    def follow(self, known: Mapping[str, float]) -> None:
        """A run begins. known: seconds from each stage to the end, as `Pace` has them."""
        self._known, self.begun = known, dict[str, float]()

    def seconds(self) -> float:
        """Since the run was pressed."""
        return time.monotonic() - self.started

    def line(self, event: Progress, what: str = "") -> str | None:
        """The status line for an event of `what`, or None when it is too soon for another."""
        now, stage = time.monotonic(), self._stage if event.stage == "waiting" and event.total > 1 else event.stage  # a sweep that waits is still one
        if stage == self._stage and now - self._shown < 0.2:
            return None
        self._stage_started = now if stage != self._stage else self._stage_started
        self._moved = now if (stage, event.done) != (self._stage, self._done) else self._moved
        self.begun.setdefault(event.stage, now)
        self._stage, self._shown, self._done = stage, now, event.done
        share, spent, stalled = event.done / max(1, event.total), now - self._stage_started, now - self._moved
        took = spent - stalled  # for what is done
        told = share > 0.1 and took > 1 and stalled < max(1.0, STALLED * took / event.done)
        left = f", about {max(0.0, took * (1 - share) / share - stalled):.0f} s left in this stage" if told else ""
        if (rest := self._known.get(event.stage, 0.0) - spent) > 0.5:
            left = f", about {rest:.0f} s left, by the last such run"
        count = f" {event.done} of {event.total}" if event.total > 1 else ""
        note = f". {self.note}" if self.note else ""
        return status(f"{what}{event.stage}{count}: {event.detail} ({now - self.started:.0f} s{left}){note}", "busy", share, stage=event.stage)


def many(number: int, thing: str) -> str:
    """A number with its noun: 1 user, 13 users."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def failure(error: Exception) -> str:
    """The status line for what went wrong: a person's own input in one sentence, anything else with what to do; the log gets the rest."""
    if isinstance(error, InputError):
        return status(str(error), "error")
    logging.getLogger(__name__).error("a run failed", exc_info=error)
    kept = "What was measured before is kept; try a smaller model or other parameters."
    return status(f"The run failed ({type(error).__name__}: {str(error)[:200]}). {kept}", "error")


def watched(events: Iterator[Event], clock: Clock, what: str = "") -> Iterator[str | Event]:
    """Events of a run or a task: Progress as status lines, thinned out, everything else as it is. Closes the events at the end."""
    try:
        for event in events:
            if not isinstance(event, Progress):
                yield event
            elif line := clock.line(event, what):
                yield line
    finally:
        events.close()
