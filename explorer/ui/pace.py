"""Pace: how long the last runs took from the start of each measurement to their end, so that the next one can say what is left. Measures nothing itself."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping

KINDS = 200  # of runs that are remembered
STAGES = "measurement "  # start of the stages whose rest is alike in two runs; what comes before depends on bits, calibration and what is loaded


class Pace:
    """Seconds from the start of a stage to the end, by kind of run (model, method, text) and name of the stage."""

    def __init__(self) -> None:
        self._left: dict[Hashable, dict[str, float]] = {}

    def of(self, kind: Hashable) -> Mapping[str, float]:
        """What the last run of a kind took, {} for none."""
        return self._left.get(kind, {})

    def note(self, kind: Hashable, begun: Mapping[str, float]) -> None:
        """A run has ended. begun: stage -> when it began, of time.monotonic; whoever joined a run saw the first one from its middle on, so that does not
        count. A run without stages tells nothing.
        """
        now, seen = time.monotonic(), list(begun.items())[1:]
        if left := {stage: now - start for stage, start in seen if stage.startswith(STAGES)}:
            self._left.pop(kind, None)
            self._left[kind] = left
            while len(self._left) > KINDS:
                self._left.pop(next(iter(self._left)))
