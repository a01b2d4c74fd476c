"""Kept: data that pages refer to by key, so that a page needs no state on the server and sends none back and forth; a restart forgets them all."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Any

from explorer.records import key_of

TICKETS = 2000  # of what pages may not know that are remembered


class Kept:
    """Plain data by content address, or by a key that is given; the least recently used dropped beyond `size`."""

    def __init__(self, size: int = 100) -> None:
        self._lock, self._size = threading.Lock(), size
        self._data: OrderedDict[str, Any] = OrderedDict()

    def put(self, data: Any, key: str | None = None) -> str:
        """Keeps data and gives its key."""
        key = key or key_of(data)
        with self._lock:
            self._data[key] = data
            self._data.move_to_end(key)
            while len(self._data) > self._size:
                self._data.popitem(last=False)
        return key

    def get(self, key: Any) -> Any:
        """The data of a key, or None for anything that is none, is unknown or has been dropped."""
        with self._lock:
            if not isinstance(key, str) or key not in self._data:
                return None
            self._data.move_to_end(key)
            return self._data[key]


class Sealed(Kept):
    """What a page may not know yet, such as which bug was planted: only a ticket is in the page, and it says nothing about the values."""

    def __init__(self) -> None:
        super().__init__(TICKETS)

    def put(self, data: dict[str, Any], key: str | None = None) -> str:
        """The ticket of some values: 32 hexadecimal digits, at random unless given."""
        return super().put(dict(data), key or secrets.token_hex(16))

    def open(self, ticket: Any) -> dict[str, Any]:
        """A copy of the values of a ticket; {} for anything that is none, or is no longer known."""
        return dict(self.get(ticket) or {})

    def mark(self, ticket: str, more: dict[str, Any]) -> None:
        """Adds to the values of a ticket that is known."""
        if values := self.open(ticket):
            self.put(values | more, ticket)
