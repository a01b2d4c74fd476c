"""Held: the quantized layers of the last configurations, kept in memory up to a number of bytes, so that a second question answers at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from explorer.metrics import Subject

LIMIT = 512 * 2**20  # bytes: some thirty configurations of the bundled model, none of a model of several billion weights


def held_bytes(subject: Subject) -> int:
    """Bytes of the packed layers and of the tensors they were made from."""
    packed = sum(sum(layer.packed_bytes().values()) for layer in subject.layers.values())
    codes = sum(q.codes.numel() * q.codes.element_size() + q.scale.numel() * q.scale.element_size() for q in subject.qtensors.values())
    return packed + codes


@dataclass
class Held:
    """Subjects by key, the least recently used dropped beyond `limit` bytes; one that is larger by itself is not kept."""

    limit: int = LIMIT
    _kept: OrderedDict[str, Subject] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str) -> Subject | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: str, subject: Subject) -> None:
        with self._lock:
            self._kept[key] = subject
            self._kept.move_to_end(key)
            while sum(map(held_bytes, self._kept.values())) > self.limit:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
