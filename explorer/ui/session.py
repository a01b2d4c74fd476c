"""What is on a page: an ordered choice of reports kept on the server by key. A page holds only their keys, so it needs no server state."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from explorer.records import Report, key_of

COMPARED = 4  # configurations beside the baseline


class Shelf:
    """Reports by key, the least recently used dropped beyond `size`. Seeds stay."""

    def __init__(self, seeds: Iterable[Report], size: int = 500) -> None:
        self._lock, self._size = threading.Lock(), size
        self._seeds = {key_of(r.experiment): r for r in seeds}
        self._reports: OrderedDict[str, Report] = OrderedDict()

    def first_keys(self) -> str:
        """The keys a new page starts with."""
        return ",".join(list(self._seeds)[: COMPARED + 1])

    def add(self, report: Report) -> str:
        """Puts a report on the shelf and returns its key."""
        key = key_of(report.experiment)
        with self._lock:
            self._reports[key] = report
            self._reports.move_to_end(key)
            while len(self._reports) > self._size:
                self._reports.popitem(last=False)
        return key

    def pick(self, keys: str) -> list[Report]:
        """The reports of a page's keys; unknown keys are passed over."""
        with self._lock:
            found = [self._reports.get(key) or self._seeds.get(key) for key in str(keys)[:400].split(",")]
        return [report for report in found if report is not None]


def arrange(keys: str, new: str, is_baseline: bool) -> tuple[str, bool]:
    """(keys with the new one, whether the oldest configuration made room). The baseline stays first."""
    present = [key for key in keys.split(",") if key and key != new]
    if is_baseline:
        return ",".join([new, *present]), False
    full = len(present) > COMPARED
    if full:
        del present[1]
    return ",".join([*present, new]), full
