"""Kept: data that pages refer to by key, so that a page needs no state on the server and sends none back and forth."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from explorer.records import key_of


class Kept:
    """Plain data by content address, the least recently used dropped beyond `size`."""

    def __init__(self, size: int = 100) -> None:
        self._lock, self._size = threading.Lock(), size
        self._data: OrderedDict[str, Any] = OrderedDict()

    def put(self, data: Any) -> str:
        """Keeps data and gives its key."""
        key = key_of(data)
        with self._lock:
            self._data[key] = data
            self._data.move_to_end(key)
            while len(self._data) > self._size:
                self._data.popitem(last=False)
        return key

    def get(self, key: str) -> Any:
        """The data of a key, or None when it is unknown or has been dropped."""
        with self._lock:
            if key in self._data:
                self._data.move_to_end(key)
            return self._data.get(key)
