"""Line: whose turn it is to compute, first come, first served, within one process. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from explorer.records import Progress


class Line:
    """One at a time computes. What is stored needs no turn."""

    def __init__(self) -> None:
        self._waiting: list[object] = []

    @contextmanager
    def place(self) -> Iterator[Callable[[], int]]:
        """Joins the line; gives a function that says how many are ahead. Leaves it at the end."""
        ticket = object()
        self._waiting.append(ticket)
        try:
            yield lambda: self._waiting.index(ticket)
        finally:
            self._waiting.remove(ticket)


def waiting(ahead: Callable[[], int]) -> Iterator[Progress]:
    """Progress while others are ahead in line."""
    while n := ahead():
        yield Progress("waiting", 0, 1, f"{n} experiment{'s' if n > 1 else ''} ahead in line")
        time.sleep(0.2)
