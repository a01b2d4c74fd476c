"""A Cancel button and what it stops, for all tabs: the cancelled work has the last word of it, and the next press is heard while it still ends."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import gradio as gr

from explorer.ui.status import status
from explorer.ui.tab import QUIET
from explorer.ui.visitor import session

REMEMBERED = 1000  # sessions whose last Cancel is known
JUST = 5.0  # seconds for which work that gradio stopped counts as running when the button is heard
NOTHING = status("Nothing is running, so there was nothing to stop.")


class Cancel:
    """What one Cancel button stops. says: the status line for whoever pressed it, empty where the button writes the last word itself.

    Cancelled work may have a line on its way, and a page keeps the last line that comes. So it is remembered when a session last pressed, and work
    that began before says so too at its next event, instead of going on.
    """

    def __init__(self, says: str) -> None:
        self.says, self._pressed, self._running = says, dict[str, float](), list[Any]()
        self._busy, self._lock = Counter[str](), threading.Lock()  # how much each session has running
        self._closed = dict[str, float]()  # when a session's work was last stopped: gradio may close it before the button is heard

    def stops(self, start: Callable[..., Any], handler: Callable[..., Iterator[list[Any]]], inputs: Any, outputs: list[Any], **options: Any) -> Any:
        """Wires an event such as `button.click` to a generator that this button stops; gives it wired. Its first output is the status line."""
        self._running.append(start(self.heard(handler), inputs, outputs, **({"trigger_mode": "multiple"} | options), **QUIET))
        return self._running[-1]

    def by(self, button: Any, line: Any, also: Sequence[tuple[Cancel, Any]] = ()) -> Any:
        """Wires the button, after all that it stops; `line` is where it says so. also: what else it stops, each with its own line. Gives the event."""
        running = [*self._running, *(event for other, _ in also for event in other._running)]
        others = [other for other, _ in also]
        return button.click(lambda: self.press_all(others), None, [line, *(own for _, own in also)], cancels=running, queue=False, **QUIET)

    def press_all(self, others: Sequence[Cancel]) -> list[Any]:
        """The lines for whoever pressed a button that stops others, too: one that had nothing to stop keeps its own."""
        told = [gr.skip() if (said := other.press()) == NOTHING else said for other in others]
        mine, stopped = self.press(), [said for said in told if isinstance(said, str)]
        return [stopped[0] if mine == NOTHING and stopped else mine, *told]

    def instead(self, start: Callable[..., Any], handler: Callable[..., list[Any]], inputs: Any, outputs: list[Any]) -> Any:
        """Wires an event that does something else in place of all that it stops, which was wired before; gives it wired."""

        @wraps(handler)
        def pressed(*values: Any) -> list[Any]:
            self.press()
            return handler(*values)

        return start(pressed, inputs, outputs, cancels=self._running, queue=False, **QUIET)

    def press(self) -> str:
        """The line for whoever pressed; what the session has running stops at its next event, and gradio closes it."""
        visitor, now = session(), time.monotonic()
        idle = not self._busy[visitor] and now - self._closed.get(visitor, -math.inf) > JUST
        self._remember(self._pressed, visitor, now)
        return NOTHING if idle and self.says else self.says

    @staticmethod
    def _remember(times: dict[str, float], visitor: str, now: float) -> None:
        times[visitor] = now
        while len(times) > REMEMBERED:
            times.pop(next(iter(times)))

    def _counts(self, visitor: str, change: int) -> None:
        with self._lock:
            self._busy[visitor] += change
            if not self._busy[visitor]:
                del self._busy[visitor]

    def heard(self, handler: Callable[..., Iterator[list[Any]]]) -> Callable[..., Iterator[list[Any]]]:
        """The handler, ending with the line once its session has pressed Cancel. Closing it closes the handler."""

        @wraps(handler)
        def running(*values: Any) -> Iterator[list[Any]]:
            started, visitor, stopped = time.monotonic(), session(), True
            updates = handler(*values)
            self._counts(visitor, 1)
            try:
                for update in updates:
                    if self._pressed.get(visitor, 0.0) > started:
                        if self.says:
                            yield [self.says, *[gr.skip()] * (len(update) - 1)]
                        return
                    yield update
                stopped = False
            finally:
                self._counts(visitor, -1)
                if stopped:
                    self._remember(self._closed, visitor, time.monotonic())
                updates.close()

        return running
