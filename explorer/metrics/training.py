"""How training went: the loss at every step, for methods that train."""

from __future__ import annotations

from collections.abc import Iterator

from explorer.metrics import Metric, Subject
from explorer.records import Measurement


def measure(subject: Subject) -> Iterator[Measurement]:
    if subject.losses:
        yield Measurement("training_loss", [round(loss, 5) for loss in subject.losses], "nats", n=len(subject.losses))


METRIC = Metric("training", measure)
