"""What a page may not know yet, such as which bug was planted: kept in this server's memory under a random ticket, and only the ticket is in the page."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Any

KEPT = 2000  # tickets remembered; the oldest go first


class Sealed:
    """Values by ticket. A restart of the server forgets them all."""

    def __init__(self) -> None:
        self._lock, self._values = threading.Lock(), OrderedDict[str, dict[str, Any]]()

    def put(self, value: dict[str, Any]) -> str:
        """The ticket of a value: 32 hexadecimal digits that say nothing about it."""
        with self._lock:
            ticket = secrets.token_hex(16)
            self._values[ticket] = dict(value)
            while len(self._values) > KEPT:
                self._values.popitem(last=False)
            return ticket

    def open(self, ticket: Any) -> dict[str, Any]:
        """The value of a ticket; {} for anything that is none, or is no longer known."""
        with self._lock:
            return dict(self._values.get(ticket, {})) if isinstance(ticket, str) else {}

    def mark(self, ticket: str, more: dict[str, Any]) -> None:
        """Adds to the value of a ticket that is known."""
        with self._lock:
            if ticket in self._values:
                self._values[ticket] |= more
